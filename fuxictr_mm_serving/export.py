"""An export in memory: its tables are mapped, its graphs run in ONNX Runtime.

Shape letters: B rows, N history items of all rows, U distinct items, M candidates, L history length, T labels.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm_serving.deadline import check_deadline
from fuxictr_mm_serving.errors import ServingError, UnknownItemError, refused
from fuxictr_mm_serving.features import Column, ContextField, Items, check_types
from fuxictr_mm_serving.graphs import Graph, OnnxGraph
from fuxictr_mm_serving.manifest import Files
from fuxictr_mm_serving.new_items import ItemRows, NewItem, NewItems
from fuxictr_mm_serving.tables import Ids, Table, check_shape
from fuxictr_mm_serving.vocabulary import LARGE, Integers, Texts

#: History items that explain a score.
REASONS = 3

#: Numbers of the largest array that a graph computes (64 MiB): rows and candidates are scored as many at a time.
#: A row whose history needs more is scored alone.
NUMBERS = 2**24

#: Arrays of a user that the candidate graph reads.
State = dict[str, np.ndarray]


class Export:
    """An exported model.

    Parameters
    ----------
    folder : path
        Written by ``fuxictr-mm export``.
    threads : int
        Threads of a graph.
    check_bytes : float
        Tables up to this size are compared with their checksums, larger ones by ``check``.
    graphs : mapping of str to Graph, optional
        Used in place of the files of graphs, whose format then does not matter.

    Raises
    ------
    ServingError
        A file is missing, damaged or of another version; graphs that are not of ONNX.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        threads: int = 1,
        check_bytes: float = math.inf,
        graphs: Mapping[str, Graph] | None = None,
    ) -> None:
        self._files = files = Files(Path(folder), any_graphs=graphs is not None, check_bytes=check_bytes)
        self.folder, self.manifest, self.version = files.folder, files.manifest, files.version
        with refused(f"{files.folder}: cannot be loaded"):
            self._load(files, threads, graphs)

    def _load(self, files: Files, threads: int, graphs: Mapping[str, Graph] | None) -> None:
        manifest, entry = self.manifest, self.manifest.items
        self._ids = ids = _read_ids(files, manifest.vocabulary) if manifest.vocabulary else {}
        known = files.array(entry.known)
        check_shape(files, entry.known, known, 1, 1)
        item_ids = ids.get("item_id")
        last = len(known) - 1 - int(known[::-1].argmax()) if known.any() else 0
        if known.dtype != bool or (item_ids is not None and last > len(item_ids.values)):
            raise ServingError(f"{files.folder / entry.known}: does not fit the items; export again")
        self.items = Items(Table(files, entry.table, len(known)), known, item_ids, entry.max_len)
        self.target, self.history = entry.target, entry.history
        #: More history items of a row or user would need too much memory, and are refused; None for any.
        self.longest_history = manifest.longest_history
        self.context = [ContextField.of(files, f, ids.get(f.name)) for f in manifest.context]
        self._codes = None
        if entry.codes is not None:
            self._codes = files.array(entry.codes.file, mapped=True)
            check_shape(files, entry.codes.file, self._codes, 2, len(known))
        self._new = NewItems.of(files, entry, self.items, ids)
        # What a graph looks up itself; ONNX Runtime reads a mapped one in place.
        self._tables = {name: Table(files, table).values for name, table in manifest.tables.items()}
        # The graph whose memory limits histories would keep that of the longest ever, for each request at a time.
        large = None if manifest.longest_history is None else "user" if "user" in manifest.graphs else "rows"
        self._graphs = graphs or {
            name: OnnxGraph(files.read(file), file, threads, keeps_memory=name != large)
            for name, file in manifest.graphs.items()
        }
        files.check_others()

    def check(self) -> None:
        """Compare with their checksums the tables that are larger than ``check_bytes``.

        Raises
        ------
        ServingError
            One is damaged.
        """
        self._files.check()

    @property
    def is_prepared(self) -> bool:
        """Whether ids are the owner's where ``fuxictr-mm prepare`` wrote numbers."""
        return self.manifest.items.prepared is not None

    @cached_property
    def of_numbers(self) -> Export:
        """The same export, for rows that ``fuxictr-mm prepare`` wrote: with numbers for ids, and scaled."""
        if not self.is_prepared:
            return self
        found = copy(self)
        found.items = replace(self.items, ids=None)
        found.context = [field.of_numbers() for field in self.context]
        return found

    def source_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return context and history of a row of ``of_numbers``, with the owner's ids and numbers."""
        found = {self.history: self.items.source_of(row[self.history] or [])}
        fields = zip(self.context, self.of_numbers.context, strict=True)
        return found | {f.column: f.source_of(row[n.column]) for f, n in fields if not f.is_computed}

    def source_users(self, users: Sequence[Any], column: str) -> list[Any]:
        """Return the owner's ids of users whose numbers ``fuxictr-mm prepare`` wrote, by the name of their column."""
        if (ids := self._ids.get(column)) is None:
            return list(users)
        return [ids.value(user) if isinstance(user, int) else None for user in users]

    @property
    def is_folded(self) -> bool:
        """Whether a user's part is computed once; otherwise candidates are scored as rows."""
        return "user" in self._graphs

    @property
    def columns(self) -> list[str]:
        """The columns of a file of rows that are read."""
        own = [f.column for f in self.context if not f.is_computed]
        return list(dict.fromkeys([self.target, self.history, *own]))

    @property
    def explains(self) -> bool:
        """Whether there is attention over the history."""
        return "attention" in self._graphs

    @property
    def labels(self) -> list[str]:
        """The labels that are predicted."""
        return self.manifest.labels

    def _predict(self, graph: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        found = self._graphs[graph].run({**inputs, **self._tables})[0]
        return found if len(self.labels) > 1 else found.reshape(-1)

    def _item_rows(self, numbers: np.ndarray) -> ItemRows:
        codes = None if self._codes is None else self._codes[numbers].astype(np.int64)
        return ItemRows(self.items.table.rows(numbers), codes)

    def score_rows(self, columns: Mapping[str, Column], where: str = "", first: int = 0) -> np.ndarray:
        """Return the prediction for each row ``(B,)`` float32, or ``(B, T)`` of T labels, by the columns of a file.

        Errors name ``where`` the rows are, and count rows from ``first`` on.

        Raises
        ------
        ServingError
            A value that training would refuse; a history for which the model needs too much memory.
        """

        def what(name: str) -> str:
            return f"{where}: {name}" if where else name

        for name, ids, is_list, takes_null in self._types():
            if name in columns:
                check_types(columns[name], ids, what(name), is_list=is_list, takes_null=takes_null, first=first)
        column = columns[self.target]
        target = self.items.numbers(column, what(self.target))
        if (unknown := np.flatnonzero(target <= 0)).size:
            place = f"{what(self.target)}: row {first + int(unknown[0])} holds the item {column[int(unknown[0])]}"
            if target[unknown[0]] == 0:
                raise ServingError(f"{place}, which is padding")
            raise UnknownItemError(f"{place}, which is not in the item files")
        history, offsets = self._histories(columns[self.history], what(self.history), strict=True, first=first)
        context = self._context(columns, np.diff(offsets), what)
        return self._score(context, target, history, offsets)

    def _histories(self, column: Column, what: str, *, strict: bool, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        numbers, offsets = self.items.histories(column, what, strict=strict, first=first)
        lengths, longest = np.diff(offsets), self.longest_history
        if strict and self.items.max_len is not None:  # rows of a file are not longer than those of training
            longest = None
        if longest is not None and lengths.max(initial=0) > longest:
            row = int(np.argmax(lengths > longest))
            has = f"{what}: row {first + row} has" if strict else f"{what}: has"
            raise ServingError(
                f"{has} {lengths[row]} items, expected {longest} or fewer, as the model compares all with each other"
                + ("; train with a max_len" if strict else "")
            )
        return numbers, offsets

    def _types(self) -> Iterator[tuple[str, Ids | None, bool, bool]]:
        """Yield the columns of a file, their vocabularies, whether they hold lists, and whether nulls are filled."""
        yield from ((self.target, self.items.ids, False, False), (self.history, self.items.ids, True, False))
        fields = [field for field in self.context if not field.is_computed]
        yield from ((f.column, f.ids, f.is_list, f.spec.fill_na is not None) for f in fields)

    @property
    def texts(self) -> set[str]:
        """The columns that hold texts, which folders of a partition do not tell."""
        return {name for name, ids, *_ in self._types() if ids is not None and not ids.is_integer}

    def _context(self, columns: Mapping[str, Column], lengths: np.ndarray, what: Any) -> dict[str, np.ndarray]:
        found = {}
        for field in self.context:
            if field.is_computed:
                found[f"context_{field.name}"] = field.of_lengths(lengths)
                continue
            if field.column not in columns:
                raise ServingError(f"{what(field.column)}: is missing, expected a value of type {field.type}")
            found[f"context_{field.name}"] = field.encode(columns[field.column], what(field.column))
        return found

    def _score(
        self, context: Mapping[str, np.ndarray], target: np.ndarray, history: np.ndarray, offsets: np.ndarray
    ) -> np.ndarray:
        size = self._at_once("rows", int(np.diff(offsets).max(initial=0)), len(target))
        if len(target) > size:
            starts = range(0, len(target), size)
            return np.concatenate([self._score_some(context, target, history, offsets, i, i + size) for i in starts])
        # The padding item is always row 0 of the graph's items.
        distinct, places = np.unique(np.concatenate(([0], target, history)), return_inverse=True)
        inputs = {
            **context,
            **_inputs("items", self._item_rows(distinct)),
            "target": places[1 : 1 + len(target)],
            "history": places[1 + len(target) :],
            "offsets": offsets,
            "steps": np.zeros(max(int(np.diff(offsets).max(initial=0)), 1), dtype=np.float32),
        }
        return self._predict("rows", inputs)

    def _score_some(
        self,
        context: Mapping[str, np.ndarray],
        target: np.ndarray,
        history: np.ndarray,
        offsets: np.ndarray,
        start: int,
        stop: int,
    ) -> np.ndarray:
        context = {name: values[start:stop] for name, values in context.items()}
        ends = offsets[start : stop + 1]
        return self._score(context, target[start:stop], history[ends[0] : ends[-1]], ends - ends[0])

    def user_state(self, context: Mapping[str, Any], history: Sequence[Any]) -> State:
        """Return what the scores of a user's candidates have in common.

        Parameters
        ----------
        context : mapping
            A value of each context column.
        history : sequence
            Item ids, oldest first; those that the export does not hold are left out.

        Raises
        ------
        ServingError
            A value that training would refuse; a history for which the model needs too much memory.
        """
        for field in self.context:
            if field.column in context:
                field.check_null(context[field.column], f"context: {field.column}")
        numbers, offsets = self._histories([history], "history", strict=False)
        columns = {name: [value] for name, value in context.items()}
        state = self._context(columns, np.diff(offsets), lambda name: f"context: {name}")
        if not self.is_folded:
            return {**state, "numbers": numbers}
        inputs = {**state, **_inputs("history", self._item_rows(numbers))}
        graph = self._graphs["user"]
        return {**dict(zip(graph.outputs, graph.run(inputs), strict=True)), "length": np.array(len(numbers))}

    def score_candidates(self, state: State, candidates: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the prediction for each candidate ``(M,)`` or ``(M, T)``, and whether the export holds it ``(M,)``.

        An unknown candidate is scored as an item that training has not seen: it has row 0 of the item table.
        """
        found = self.items.numbers(candidates, "candidates")
        known = found > 0
        return self.score_numbers(state, np.where(known, found, 0)), known

    def score_numbers(self, state: State, numbers: np.ndarray) -> np.ndarray:
        """Return the prediction for each item number ``(M,)``, or ``(M, T)``."""
        return self.score_items(state, self._item_rows(numbers))

    def score_items(self, state: State, candidates: ItemRows) -> np.ndarray:
        """Return the prediction for each item ``(M,)``, or ``(M, T)``."""
        check_deadline()
        if (count := len(candidates)) == 0:
            return np.zeros((0, len(self.labels)) if len(self.labels) > 1 else 0, dtype=np.float32)
        length = int(state["length"]) if self.is_folded else len(state["numbers"])
        if count > (size := self._at_once("candidates" if self.is_folded else "rows", length, count)):
            return np.concatenate([self.score_items(state, candidates[i : i + size]) for i in range(0, count, size)])
        if self.is_folded:
            return self._predict("candidates", {**state, **_inputs("candidates", candidates, "candidate_codes")})
        numbers = state["numbers"]
        items = self._item_rows(np.concatenate(([0], numbers))).joined(candidates)
        inputs = {name: np.repeat(value, count, axis=0) for name, value in state.items() if name != "numbers"}
        inputs.update(_inputs("items", items))
        inputs["target"] = np.arange(count, dtype=np.int64) + 1 + len(numbers)
        inputs["history"] = np.tile(np.arange(len(numbers), dtype=np.int64) + 1, count)
        inputs["offsets"] = np.arange(count + 1, dtype=np.int64) * len(numbers)
        inputs["steps"] = np.zeros(max(len(numbers), 1), dtype=np.float32)
        return self._predict("rows", inputs)

    def explain(self, state: State, history: Sequence[Any], candidates: Sequence[Any]) -> list[list[tuple[Any, float]]]:
        """Return, for each candidate, the history items that it attends to most, with their fractions of the attention.

        There are none for a candidate that the export does not hold.

        Parameters
        ----------
        state : State
            Of the user.
        history, candidates : sequence
            Item ids; the history is that of the state.

        Raises
        ------
        ServingError
            The model has no attention over the history.
        """
        if not self.explains:
            raise ServingError("explain: the model has no attention over the history")
        kept, _ = self.items.histories([history], "history", strict=False)
        found = self.items.numbers(candidates, "candidates")
        shares = self._shares(state, self._item_rows(np.maximum(found, 0)))
        if not np.isfinite(shares).all():
            raise ServingError("explain: a share is not finite")
        # An item that is in the history more than once has the sum of its shares.
        distinct, places = np.unique(kept, return_inverse=True)
        reasons: list[list[tuple[Any, float]]] = []
        for number, row in zip(found, shares, strict=True):
            check_deadline()
            if number <= 0:  # its attention would be that of padding
                reasons.append([])
                continue
            total = np.bincount(places, row, len(distinct))
            top = np.argsort(-total, kind="stable")[:REASONS]
            ids = self.items.ids_of(distinct[top])
            reasons.append(
                [(item, float(total[place])) for item, place in zip(ids, top, strict=True) if total[place] > 0]
            )
        return reasons

    def _shares(self, state: State, candidates: ItemRows) -> np.ndarray:
        check_deadline()
        count = len(candidates)
        if count > (size := self._at_once("attention", int(state["length"]), count)):
            return np.concatenate([self._shares(state, candidates[i : i + size]) for i in range(0, count, size)])
        return self._graphs["attention"].run({**state, **_inputs("candidates", candidates, "candidate_codes")})[0]

    def _at_once(self, graph: str, length: int, count: int) -> int:
        """Return how many of ``count`` rows or candidates a graph is given at a time, by the longest history.

        Exports of earlier versions do not hold how much each needs, which seldom is more than a row of the item table.
        """
        length, row_dim = max(length, 1), self.items.table.values.shape[1]
        numbers = self.manifest.numbers_per_pair.get(graph, row_dim)
        if graph == "rows":  # there may be attention of the items to each other
            numbers = max(numbers, length)
        size = max(NUMBERS // (length * numbers), 1)
        return math.ceil(count / math.ceil(count / size)) if count > size else size  # all about the same

    def embed_new(self, items: Sequence[NewItem]) -> ItemRows:
        """Return rows of items that the export does not hold, by their content alone.

        All other fields, the id among them, are those of an item that training has not seen.

        Raises
        ------
        ServingError
            A column that the model does not read, or values of another count.
        """
        return self._new.rows(items, self._item_rows(np.zeros(1, dtype=np.int64)))


def _inputs(name: str, rows: ItemRows, codes: str = "codes") -> dict[str, np.ndarray]:
    return {name: rows.values} if rows.codes is None else {name: rows.values, codes: rows.codes}


def _values_of(name: str, entry: Mapping[str, Any]) -> Sequence[Any]:
    """Return the values of a vocabulary; those of exports of earlier versions, which held large ones so, as arrays."""
    values, kind = entry["values"], {"integer": int, "bytes": str, "text": str}[entry["type"]]
    if not isinstance(values, list) or {*map(type, values)} - {kind}:
        raise TypeError(f"{name}: values are not all of type {entry['type']}")
    values = [bytes.fromhex(v) for v in values] if entry["type"] == "bytes" else values
    if len(values) < LARGE:
        return values
    return Integers.of(values) if kind is int else Texts.of(values)


def _arrays_of(files: Files, entry: Mapping[str, Any]) -> Integers | Texts:
    arrays = {name: files.array(file, mapped=True) for name, file in entry["arrays"].items()}
    return Integers(**arrays) if entry["type"] == "integer" else Texts(**arrays, is_text=entry["type"] == "text")


def _read_ids(files: Files, name: str) -> dict[str, Ids]:
    text = files.read(name)
    try:
        content = json.loads(text)
        found = {}
        for name, entry in content.items():
            is_integer = entry["type"] == "integer"
            values = _arrays_of(files, entry) if "arrays" in entry else _values_of(name, entry)
            found[name] = Ids(values, is_integer, takes_numbers=bool(entry.get("takes_numbers")))
        return found
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ServingError(f"{files.folder / name}: is not a vocabulary of an export ({error}); export again") from None
