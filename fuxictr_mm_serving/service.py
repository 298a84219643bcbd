"""What the server does with a request, without HTTP: scores by a current export, with a cache of user states."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm_serving.cache import StateCache
from fuxictr_mm_serving.deadline import check_deadline
from fuxictr_mm_serving.errors import DamagedError, ServingError, refused
from fuxictr_mm_serving.export import Export
from fuxictr_mm_serving.manifest import version_of
from fuxictr_mm_serving.new_items import NewItem

if TYPE_CHECKING:
    from fuxictr_mm_serving.users import Stamp, Titles, Users

logger = logging.getLogger("fuxictr_mm_serving")

#: The largest integer that JavaScript holds exactly.
SAFE = 2**53 - 1

#: Files up to this size are compared with their checksums before the first answer, larger ones after it.
CHECKED_BYTES = 16 * 2**20

#: Users of changed files that are tried; one that can be scored is enough.
CHECKED_USERS = 10


@dataclass
class Loaded:
    """An export with the states that belong to it; a request uses one from its start to its end."""

    export: Export
    cache: StateCache
    version: str
    #: Sizes and times of the files before they were opened.
    stamp: Stamp = field(default_factory=list)
    #: The file of users, with the columns that the export reads.
    users: Users | None = None
    #: Sizes and times of its files before they were read.
    users_stamp: Stamp = field(default_factory=list)
    #: What is wrong with its files, if anything is.
    damage: str = ""


@dataclass
class Scores:
    """The answer to one user."""

    #: Of the candidates, then of the new items, in their order; of several labels by the name of the label.
    scores: list[float] | dict[str, list[float]]
    #: Candidates that the export does not hold: scored as items that training has not seen.
    unknown: list[Any] = field(default_factory=list)
    version: str = ""  #: First digits of the checksum of the export's manifest.
    #: Of each candidate, if they were asked for: history items and their fractions of the attention.
    reasons: list[list[dict[str, Any]]] = field(default_factory=list)


class Service:
    """Scores candidates by the export in a folder, which may be replaced at any time.

    Parameters
    ----------
    folder : path
        The export, or a link to it.
    users : path or sequence of paths, optional
        Parquet files of users, or folders of them: a column of ids, the history and the context, so that requests may
        name a user. Of a folder of ``fuxictr-mm prepare log``, the newest history of each user.
    user_column : str
        Its column of ids.
    titles : path, optional
        A Parquet file of titles, for the page.
    title_column : str, optional
        Its column of titles; by default ``item_title`` or ``title``.
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
        users: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        user_column: str = "user_id",
        titles: str | os.PathLike[str] | None = None,
        title_column: str | None = None,
        threads: int = 1,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        self.folder = Path(folder)
        self.threads, self.cache_bytes = threads, cache_bytes
        paths = [users] if isinstance(users, (str, os.PathLike)) else users or []
        self._users = [Path(path) for path in paths]
        self._user_column = user_column
        self._switching = threading.Lock()
        self._damaged: Stamp | None = None  # the stamp of what was refused
        #: Whether the folder holds another export, which could not be loaded.
        self.has_refused = False
        # Stamps of files of users: that of the last look, and of what was refused.
        self._seen_users: Stamp = []
        self._refused_users: Stamp | None = None
        #: Whether the files of users have changed, and could not be read.
        self.has_refused_users = False
        self.loaded = self._load(CHECKED_BYTES, None)
        self.titles: Titles | None = None
        self._title_file, self._title_column = None if titles is None else Path(titles), title_column
        # Stamps of the file of titles: that of the last look, and of what was read or refused.
        self._seen_titles = self._read_titles = self._stamp_of_titles()
        #: Whether the file of titles has changed, and could not be read.
        self.has_refused_titles = False
        if titles is not None:
            self.titles = self._load_titles()

    def _load(self, check_bytes: float, present: Loaded | None) -> Loaded:
        stamp = self._stamp()
        try:
            export = Export(self.folder, threads=self.threads, check_bytes=check_bytes)
            self.warm_up(export)
            users, users_stamp = self._users_of(export, present)
        except ServingError:
            self._damaged = stamp
            raise
        return Loaded(export, StateCache(self.cache_bytes), export.version, stamp, users, users_stamp)

    def _users_of(self, export: Export, present: Loaded | None) -> tuple[Users | None, Stamp]:
        """Return the users with the columns that an export reads, and their stamp: those at present, if it reads these.

        Of rows of ``fuxictr-mm prepare``, they know the ids by their own export.
        """
        if not self._users:
            return None, []
        is_same = present is not None and not export.is_prepared and present.export.columns == export.columns
        if present is not None and is_same and present.users is not None:
            return present.users, present.users_stamp
        from fuxictr_mm_serving.users import Users, stamp_of_users

        stamp = stamp_of_users(self._users)
        return Users(self._users, self._user_column, export), stamp

    @staticmethod
    def warm_up(export: Export) -> None:
        """Score items of the export, so that the first request is not the slowest."""
        context = blank_context(export)
        with refused(f"{export.folder}: does not score its own items"):
            ids = export.items.some(100)
            history, labels = ids[:3], len(export.labels)
            state = export.user_state(context, history)
            scores, are_known = export.score_candidates(state, ids)
            if not are_known.all() or scores.shape != ((len(ids), labels) if labels > 1 else (len(ids),)):
                raise ValueError(f"scores of the shape {scores.shape} for {len(ids)} items and {labels} labels")
            if not np.isfinite(scores).all():
                raise ValueError("a score is not finite")
            if export.explains and ids:
                export.explain(state, history, ids[:3])

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
            try:
                is_other = version_of(self.folder) != self.loaded.version
            except ServingError:  # no export, as behind a link to a mistyped name
                self.has_refused = True
                raise
            if not is_other and not self.loaded.damage:
                self.has_refused = False
                return False
            if self._stamp() == self._damaged:  # it has been refused, and to read it again could take minutes
                return False
            self.has_refused = is_other
            self.loaded = self._load(math.inf, self.loaded)  # also a damaged one that has been repaired
            self.has_refused, self._refused_users = False, None  # which this export may read
            if self.has_refused_titles:
                self._read_titles = None
            return is_other

    def refresh_users(self) -> bool:
        """Read the files of users again if they have changed; requests under way keep what they have looked up.

        Files are written one after another, so a change is read when the next look finds the same.

        Returns
        -------
        bool
            Whether they were read.

        Raises
        ------
        ServingError
            They cannot be read: the present users stay.
        """
        if not self._users:
            return False
        from fuxictr_mm_serving.users import stamp_of_users

        with self._switching:
            loaded, seen = self.loaded, self._seen_users
            try:
                self._seen_users = stamp = stamp_of_users(self._users)
                if stamp == loaded.users_stamp:
                    self.has_refused_users = False
                if stamp == loaded.users_stamp or stamp != seen or stamp == self._refused_users:
                    return False
                users = self._read_users(loaded.export, stamp)
            except Exception:
                self.has_refused_users = True
                raise
            loaded.users, loaded.users_stamp, self.has_refused_users = users, stamp, False
            return True

    def refresh_titles(self) -> bool:
        """Read the file of titles again if it has changed, as ``refresh_users`` does that of users."""
        stamp, seen = self._stamp_of_titles(), self._seen_titles
        self._seen_titles = stamp
        if stamp != seen or stamp == self._read_titles:
            return False
        self._read_titles, self.has_refused_titles = stamp, True
        self.titles = self._load_titles()
        self.has_refused_titles = False
        return True

    def _load_titles(self) -> Titles:
        from fuxictr_mm_serving.users import Titles

        assert self._title_file is not None
        return Titles(self._title_file, self.loaded.export, self._title_column)

    def _stamp_of_titles(self) -> tuple[int, int] | None:
        """Return size and time of the file; None if there is none, or its folder cannot be read."""
        if self._title_file is None:
            return None
        try:
            status = self._title_file.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def _read_users(self, export: Export, stamp: Stamp) -> Users:
        """Return the users of changed files; what cannot be read is not read again, to read it could take minutes."""
        from fuxictr_mm_serving.users import Users, stamp_of_users

        try:
            users = Users(self._users, self._user_column, export)
            self._check_users(users, export)
        except MemoryError:  # of which there may be enough at the next look
            raise
        except Exception:
            self._refused_users = stamp
            raise
        if stamp_of_users(self._users) != stamp:
            raise ServingError(f"{', '.join(map(str, self._users))}: changed while the users were read")
        return users

    def _check_users(self, users: Users, export: Export) -> None:
        """Refuse users of whose first no one can be scored, as of a column that holds values of another type."""
        read = [f.column for f in export.context if not f.is_computed]
        first = [users.get(user) for user in users.some(CHECKED_USERS)]
        for found in first:
            if any(name not in found for name in read):  # only the history is known: a request gives the rest
                return
            with suppress(ServingError, TypeError, ValueError):
                export.user_state(found, found[export.history])
                return
        raise ServingError(  # without the values, which are of users
            f"{', '.join(map(str, self._users))}: the first {len(first)} users have values that the model does not "
            f"take; expected {', '.join([*read, export.history])} with values as in training"
        )

    def _stamp(self) -> Stamp:
        """Return sizes and times of the files, that of users too: by them a repair is seen without reading them."""
        found, paths = [], [*self._users]
        for folder in (self.folder, *paths):
            with suppress(OSError):
                paths += folder.iterdir()
        for path in paths:
            with suppress(OSError):  # a link to nothing, such as an editor's lock
                status = path.stat()
                found.append((str(path), status.st_size, status.st_mtime_ns))
        return sorted(found)

    def check(self) -> None:
        """Compare with their checksums the large files, which the start left out; if one differs, nothing is scored."""
        loaded = self.loaded
        try:
            loaded.export.check()  # of what is mapped, even if the folder holds another export by now
        except ServingError as error:
            # For clients, whom the place of the folder does not concern.
            self._damaged, loaded.damage = loaded.stamp, str(error).replace(f"{loaded.export.folder}{os.sep}", "")
            logger.error(json.dumps({"damaged": str(error)}))

    def score(
        self,
        *,
        user: Any = None,
        context: Mapping[str, Any] | None = None,
        history: Sequence[Any] | None = None,
        candidates: Sequence[Any] = (),
        new_items: Sequence[NewItem] = (),
        explain: bool = False,
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
        new_items : sequence of NewItem
            Items that the export does not hold, each by its content.
        explain : bool
            Whether to name the history items that each candidate attends to most.
        loaded : Loaded, optional
            The export to use; by default the current one.

        Raises
        ------
        ServingError
            A value that training would refuse, or an unknown user.
        DamagedError
            A file of the export has been found to be damaged.
        """
        check_deadline()
        loaded = loaded or self.loaded
        export = loaded.export
        if loaded.damage:
            raise DamagedError(loaded.damage)
        read = [f.column for f in export.context if not f.is_computed]
        if wrong := [name for name in context or {} if name not in read]:
            raise ServingError(f"context: {wrong[0]!r} is not read by the model; it reads {', '.join(read) or 'none'}")
        if user is not None:
            if loaded.users is None:
                raise ServingError("user: the server has no file of users; give context and history")
            found = loaded.users.get(user)
            context = {**found, **(context or {})}
            if missing := [name for name in read if name not in context]:
                raise ServingError(
                    f"context: {missing[0]}: is missing; the server's files of users have only a history of this "
                    f"user: give {', '.join(missing)} in context, or --users also the folders of earlier days"
                )
            history = found[export.history] if history is None else history
        context, history = context or {}, history or []
        state = loaded.cache.get(_key(context, history), lambda: export.user_state(context, history))
        scores, known = export.score_candidates(state, candidates)
        if new_items:
            scores = np.concatenate([scores, export.score_items(state, export.embed_new(new_items))])
        if not np.isfinite(scores).all():
            raise ServingError("scores: one is not finite; expected embeddings and context of ordinary size")
        unknown = [candidates[i] for i in np.flatnonzero(~known)]
        values = scores.astype(float).T.tolist()
        by_label = values if scores.ndim == 1 else dict(zip(export.labels, values, strict=True))
        reasons = export.explain(state, history, candidates) if explain else []
        named = [[{"item": exact([item])[0], "share": share} for item, share in one] for one in reasons]
        return Scores(by_label, unknown, loaded.version, named)


def blank_context(export: Export) -> dict[str, Any]:
    """Return a context that an export accepts: zeros, empty lists, and null for ids that are texts."""
    context: dict[str, Any] = {}
    for f in (f for f in export.context if not f.is_computed):
        length = f.spec.pretrain_dim
        context[f.column] = [0.0] * length if f.type == "embedding" else [] if f.type == "sequence" else 0
        if f.ids is not None and not f.ids.is_integer and not f.is_list:
            context[f.column] = None
    return context


def exact(ids: Iterable[Any]) -> list[Any]:
    """Return ids for JSON: as texts, except integers that JavaScript does not round."""
    return [value if isinstance(value, int) and abs(value) <= SAFE else str(value) for value in ids]


def _key(context: Mapping[str, Any], history: Sequence[Any]) -> str:
    """Return the hash of a user: values of other types than those of JSON, bytes and dates, never equal a text."""

    def tagged(value: Any) -> dict[str, str]:
        return {type(value).__name__: repr(value)}

    text = json.dumps([context, list(history)], sort_keys=True, default=tagged)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
