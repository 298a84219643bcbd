"""What the server does with a request, without HTTP: scores by a current export, with a cache of user states."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fuxictr_mm_serving.cache import StateCache
from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.export import MANIFEST, Export, checksum


@dataclass
class Loaded:
    """An export with the states that belong to it; a request uses one from its start to its end."""

    export: Export
    cache: StateCache
    version: str


@dataclass
class Scores:
    """The answer to one user.

    Parameters
    ----------
    scores : list of float
        Of the candidates, then of the new items, in their order.
    unknown : list
        Candidates that the export does not hold: scored as items that training has not seen.
    version : str
        First digits of the checksum of the export's manifest.
    """

    scores: list[float]
    unknown: list[Any] = field(default_factory=list)
    version: str = ""


class Service:
    """Scores candidates by the export in a folder, which may be replaced at any time.

    Parameters
    ----------
    folder : path
        The export, or a link to it.
    users : path, optional
        A Parquet file of users: a column of ids, the history and the context, so that requests may name a user.
    user_column : str
        Its column of ids.
    threads : int
        Threads of a graph.
    cache_bytes : int
        Bytes of the cache of user states.

    Raises
    ------
    ServingError
        The folder holds no export, or the file of users does not fit it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        users: str | os.PathLike[str] | None = None,
        user_column: str = "user_id",
        threads: int = 1,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        self.folder = Path(folder)
        self.threads, self.cache_bytes = threads, cache_bytes
        self._switching = threading.Lock()
        self.loaded = self._load(_version(self.folder))
        self.users = None if users is None else Users(users, user_column, self.loaded.export)

    def _load(self, version: str) -> Loaded:
        export = Export(self.folder, threads=self.threads)
        loaded = Loaded(export, StateCache(self.cache_bytes), version)
        self.warm_up(export)
        return loaded

    @staticmethod
    def warm_up(export: Export) -> None:
        """Score items of the export, so that the first request is not the slowest."""
        known = np.flatnonzero(export.items.known)[1:101]
        context: dict[str, Any] = {}
        for f in export.context:
            length = f.spec.get("pretrain_dim", 0)
            context[f.column] = [0.0] * length if f.type == "embedding" else [] if f.type == "sequence" else 0
            if f.ids is not None and not f.ids.is_integer:
                context[f.column] = None
        state = export.user_state(context, [])
        export.score_numbers(state, known)

    def switch(self) -> bool:
        """Load the export that is now in the folder, if it is another one; requests under way keep theirs.

        Returns
        -------
        bool
            Whether there was another one.

        Raises
        ------
        ServingError
            It cannot be read: the present one stays.
        """
        with self._switching:
            version = _version(self.folder)
            if version == self.loaded.version:
                return False
            self.loaded = self._load(version)
            return True

    def score(
        self,
        *,
        user: Any = None,
        context: Mapping[str, Any] | None = None,
        history: Sequence[Any] | None = None,
        candidates: Sequence[Any] = (),
        new_items: Sequence[Mapping[str, Sequence[float]]] = (),
        loaded: Loaded | None = None,
    ) -> Scores:
        """Score candidates for one user.

        Parameters
        ----------
        user : id, optional
            One of the file of users; what ``context`` and ``history`` give takes precedence over the file.
        context : mapping, optional
            Value of each context column.
        history : sequence, optional
            Item ids, oldest first.
        candidates : sequence
            Item ids.
        new_items : sequence of mapping
            Items that the export does not hold, each by its embeddings: field name to numbers.
        loaded : Loaded, optional
            The export to use; by default the current one.

        Raises
        ------
        ServingError
            A value that training would refuse, or an unknown user.
        """
        loaded = loaded or self.loaded
        export = loaded.export
        if user is not None:
            if self.users is None:
                raise ServingError("user: the server has no file of users; give context and history")
            found = self.users.get(user)
            context = {**found, **(context or {})}
            history = found[export.history] if history is None else history
        context, history = context or {}, history or []
        # Only the newest items count, so only they are part of the key.
        text = json.dumps([context, list(history)], sort_keys=True, default=str)
        key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        state = loaded.cache.get(key, lambda: export.user_state(context, history))
        scores, known = export.score_candidates(state, candidates)
        if new_items:
            scores = np.concatenate([scores, export.score_embeddings(state, export.embed_new(new_items))])
        unknown = [candidates[i] for i in np.flatnonzero(~known)]
        return Scores(scores.astype(float).tolist(), unknown, loaded.version)


class Users:
    """Context and history of known users, in memory.

    Parameters
    ----------
    path : path
        A Parquet file with a row per user; of several, the last counts.
    column : str
        Its column of ids.
    export : Export
        Names the other columns.
    """

    def __init__(self, path: str | os.PathLike[str], column: str, export: Export) -> None:
        wanted = [name for name in export.columns if name != export.target]
        try:
            present = pq.read_schema(path).names
            missing = [name for name in [column, *wanted] if name not in present]
            if missing:
                raise ServingError(f"{path}: has no column '{missing[0]}', which users need")
            table = pq.read_table(path, columns=list(dict.fromkeys([column, *wanted])))
        except (OSError, pa.ArrowException) as error:
            raise ServingError(f"{path}: cannot be read as users ({error})") from None
        self.path, self._table, self._wanted = path, table, wanted
        self._row = {user: row for row, user in enumerate(table[column].to_pylist())}

    def get(self, user: Any) -> dict[str, Any]:
        """Return context columns and history of a user.

        Raises
        ------
        ServingError
            There is no such user.
        """
        row = self._row.get(user)
        if row is None:
            raise ServingError(f"user: {user!r} is not in the file of users; give context and history")
        return {name: self._table[name][row].as_py() for name in self._wanted}

    def some(self, count: int) -> list[Any]:
        """Return the first user ids."""
        return list(self._row)[:count]


class Titles:
    """Titles of items, for the page.

    Parameters
    ----------
    path : path
        A Parquet file with ``item_id`` and ``item_title``.
    """

    def __init__(self, path: str | os.PathLike[str], key: str = "item_id", column: str = "item_title") -> None:
        try:
            table = pq.read_table(path, columns=[key, column])
        except (OSError, pa.ArrowException, KeyError) as error:
            raise ServingError(f"{path}: cannot be read as titles, columns {key} and {column} ({error})") from None
        self._titles = dict(zip(table[key].to_pylist(), pc.fill_null(table[column], "").to_pylist(), strict=True))

    def of(self, items: Sequence[Any]) -> list[str]:
        """Return the title of each item, empty where there is none."""
        return [self._titles.get(item, "") for item in items]

    def some(self, count: int) -> list[Any]:
        """Return the first item ids that have a title."""
        return [item for item, title in self._titles.items() if title][:count]


def _version(folder: Path) -> str:
    try:
        return checksum(folder / MANIFEST)[:12]
    except OSError as error:
        raise ServingError(f"{folder / MANIFEST}: cannot be read ({error.strerror}); expected an export") from None
