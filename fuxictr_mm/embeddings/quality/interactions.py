"""Checks of one split, in one pass over its file: ids, labels, histories. Some 40 bytes per row are kept for the rest.

Shape letters: B rows of the split, R rows of a chunk, N history items of a chunk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ
from fuxictr_mm.embeddings.quality.findings import Report
from fuxictr_mm.embeddings.quality.keys import history_keys, pair_keys
from fuxictr_mm.embeddings.quality.layout import has_columns
from fuxictr_mm.embeddings.quality.reading import (
    ids_of,
    is_list_of,
    is_number,
    numbers,
    read_chunks,
    read_schema,
    split_lists,
)
from fuxictr_mm.embeddings.quality.values import Tally, check_context

USER_ID, LABEL = "user_id", "label"
#: Label of a row that has none.
NO_LABEL = -1

#: Categories that are told apart per context column; more make it a numeric column, which has no drift by category.
MOST_CATEGORIES = 1000


@dataclass
class Split:
    """What is kept of a split.

    Parameters
    ----------
    path : Path
        Its file.
    users, targets : ndarray of int64, (B,)
        Ids; -1 where they are none.
    labels : ndarray of int8, (B,)
        0, 1, or -1 where there is none.
    history_keys : ndarray of uint64, (B,)
        Equal where user and history are.
    row_keys : ndarray of uint64, (B,)
        Equal where everything but the label is.
    lengths : ndarray of int64
        Number of rows by history length.
    context : dict of str to Counter
        Number of rows by category, per context column.
    has_label : bool
        Whether the file has labels.
    """

    path: Path
    users: np.ndarray
    targets: np.ndarray
    labels: np.ndarray
    history_keys: np.ndarray
    row_keys: np.ndarray
    lengths: np.ndarray
    context: dict[str, Counter[int]]
    has_label: bool

    @property
    def name(self) -> str:
        """File name."""
        return self.path.name

    def clicks(self) -> np.ndarray:
        """Return the rows that are clicks; all rows where there are no labels, as it cannot be told."""
        sound = (self.users >= 0) & (self.targets > 0)
        return np.flatnonzero(sound & (self.labels == 1) if self.has_label else sound)


@dataclass(frozen=True)
class Later:
    """Clicks of later splits: users, sorted, and keys of pairs of user and item, sorted."""

    users: np.ndarray
    pairs: np.ndarray

    @classmethod
    def of(cls, splits: list[Split]) -> Later:
        """Gather the clicks of splits."""
        empty = np.empty(0, np.int64)
        users = np.concatenate([s.users[s.clicks()] for s in splits] or [empty])
        items = np.concatenate([s.targets[s.clicks()] for s in splits] or [empty])
        return cls(np.unique(users), np.unique(pair_keys(users, items)))


@dataclass
class _Gathered:
    users: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    history_keys: list[np.ndarray] = field(default_factory=list)
    row_keys: list[np.ndarray] = field(default_factory=list)


class Seen:
    """Which items interactions show, among the ``known`` ids, sorted."""

    def __init__(self, known: np.ndarray) -> None:
        self.known = known
        self.shown = np.zeros(len(known), dtype=bool)

    def mark(self, ids: np.ndarray) -> np.ndarray:
        """Mark ids as shown and return which of them are known."""
        if not self.known.size:
            return np.zeros(len(ids), dtype=bool)
        place = np.minimum(np.searchsorted(self.known, ids), len(self.known) - 1)
        found = self.known[place] == ids
        self.shown[place[found]] = True
        return found


def read_split(name: str, path: Path, seen: Seen, later: Later, report: Report, verbose: int = 0) -> Split | None:
    """Check a split and return what the checks across splits need; None where a column it cannot do without lacks.

    Parameters
    ----------
    name : {"train", "valid", "test"}
        Labels may lack in test only.
    path : Path
        Its file.
    seen : Seen
        The items there are; those shown are marked.
    later : Later
        Clicks of later splits.
    report : Report
        Takes the findings.
    verbose : int
        0 shows no progress.

    Raises
    ------
    DataError
        The file is damaged.
    """
    schema = read_schema(path)
    wanted = [USER_ID, ITEM_ID, ITEM_SEQ] + ([LABEL] if name != "test" or LABEL in schema.names else [])
    has_columns(path, schema, wanted, report)
    usable = [c for c in wanted if c in schema.names and _has_type(path, schema, c, report)]
    context = [f.name for f in schema if f.name not in wanted and is_number(f.type)]
    if ITEM_ID not in usable:
        return None
    tallies = {c: Tally(pa.types.is_floating(schema.field(c).type), MOST_CATEGORIES) for c in context}
    reader = _SplitReader(path, LABEL in usable, seen, later, report, tallies)
    for row, columns in read_chunks(path, usable + context, verbose=verbose):
        reader.take(row, columns)
    split = reader.finish()
    for column, tally in reader.tallies.items():
        check_context(path, column, tally, split.users, report)
    if not len(split.targets):
        report.add("empty-file", path.name)
    classes = np.unique(split.labels[split.labels >= 0])
    if len(classes) == 1:
        report.add(
            "one-class", path.name, LABEL, found=f"all {int((split.labels >= 0).sum()):,} labels are {classes[0]}"
        )
    return split


def _has_type(path: Path, schema: pa.Schema, name: str, report: Report) -> bool:
    kind = schema.field(name).type
    good = is_list_of(kind, floating=False) if name == ITEM_SEQ else is_number(kind)
    if not good:
        expected = "lists of whole numbers" if name == ITEM_SEQ else "numbers"
        report.add("column-type", path.name, name, found=f"holds {kind}", expected=expected)
    return good


class _SplitReader:
    def __init__(
        self, path: Path, has_label: bool, seen: Seen, later: Later, report: Report, tallies: dict[str, Tally]
    ) -> None:
        self.path, self.has_label, self.seen, self.later, self.report = path, has_label, seen, later, report
        self.gathered = _Gathered()
        self.lengths: np.ndarray = np.zeros(1, dtype=np.int64)
        self.tallies = tallies
        self.repeating: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def take(self, row: int, columns: dict[str, pa.Array]) -> None:
        """Check a chunk whose first row is ``row``."""
        count = len(columns[ITEM_ID])
        users = self._ids(columns.get(USER_ID), USER_ID, "bad-user-id", row, count, None)
        targets = self._targets(columns[ITEM_ID], row, users)
        labels = self._labels(columns.get(LABEL), row, users, count)
        keys = pair_keys(users, self._history(columns.get(ITEM_SEQ), row, users, targets))
        row_keys = pair_keys(keys.view(np.int64), targets)
        for name, tally in self.tallies.items():
            row_keys = pair_keys(row_keys.view(np.int64), self._context(columns[name], name, row, users, tally))
        kept = (users, targets, labels, keys, row_keys)
        for part, values in zip(vars(self.gathered).values(), kept, strict=True):
            part.append(values)

    def finish(self) -> Split:
        """Join the chunks."""

        def joined(parts: list[np.ndarray], kind: type) -> np.ndarray:
            return np.concatenate(parts) if parts else np.empty(0, kind)

        gathered = self.gathered
        if self.repeating:
            rows, ids, items = (np.concatenate(parts) for parts in zip(*self.repeating, strict=True))
            share = len(rows) / max(int(self.lengths[1:].sum()), 1)
            found = f"an item more than once, in {share:.1%} of the histories that are not empty"
            self.report.add(
                "repeated-history", self.path.name, ITEM_SEQ, rows, ids, items, found=found, id_name=USER_ID
            )
        return Split(
            self.path,
            users=joined(gathered.users, np.int64),
            targets=joined(gathered.targets, np.int64),
            labels=joined(gathered.labels, np.int8),
            history_keys=joined(gathered.history_keys, np.uint64),
            row_keys=joined(gathered.row_keys, np.uint64),
            lengths=self.lengths,
            context={name: tally.categories() for name, tally in self.tallies.items()},
            has_label=self.has_label,
        )

    def _add(
        self, check: str, column: str, row: int, bad: np.ndarray, users: np.ndarray, values: np.ndarray | list
    ) -> None:
        self.report.add(check, self.path.name, column, row + bad, users[bad], values, id_name=USER_ID)

    def _ids(
        self, array: pa.Array | None, column: str, check: str, row: int, count: int, users: np.ndarray | None
    ) -> np.ndarray:
        if array is None:
            return np.full(count, -1, dtype=np.int64)
        ids, good = ids_of(array)
        bad = np.flatnonzero(~good)
        if bad.size:
            self._add(check, column, row, bad, ids if users is None else users, array.take(pa.array(bad)).to_pylist())
        return ids

    def _targets(self, array: pa.Array, row: int, users: np.ndarray) -> np.ndarray:
        targets, good = ids_of(array)
        known = self.seen.mark(targets) & good
        bad = np.flatnonzero(~known)
        # Without item files nothing is known, and nothing unknown; padding and nulls are wrong all the same.
        if not self.seen.known.size:
            bad = np.flatnonzero(~good | (targets == 0))
        if bad.size:
            self._add("unknown-target", ITEM_ID, row, bad, users, array.take(pa.array(bad)).to_pylist())
        return targets

    def _labels(self, array: pa.Array | None, row: int, users: np.ndarray, count: int) -> np.ndarray:
        if array is None:
            return np.full(count, NO_LABEL, dtype=np.int8)
        values = numbers(array)
        good = (values == 0) | (values == 1)
        bad = np.flatnonzero(~good)
        if bad.size:
            self._add("bad-label", LABEL, row, bad, users, array.take(pa.array(bad)).to_pylist())
        return np.where(good, values, NO_LABEL).astype(np.int8)

    def _context(self, array: pa.Array, name: str, row: int, users: np.ndarray, tally: Tally) -> np.ndarray:
        values = numbers(array)
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if bad.size:
            self._add("bad-context", name, row, bad, users, array.take(pa.array(bad)).to_pylist())
        tally.add(values)
        return np.nan_to_num(values, nan=-1.0).view(np.int64)

    def _history(self, array: pa.Array | None, row: int, users: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Check the histories of a chunk; return their keys ``(R,)``."""
        if array is None:
            return np.zeros(len(users), dtype=np.int64)
        if array.null_count and self.report.wants("null-history"):
            bad = np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))
            self._add("null-history", ITEM_SEQ, row, bad, users, [None] * len(bad))
        entries, offsets = split_lists(array)
        values, good = ids_of(entries)
        kept = np.flatnonzero(values)  # -1 stays: it is no padding
        ends = np.searchsorted(kept, offsets)
        lengths = np.diff(ends)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        items = values[kept]
        self._count_lengths(lengths)

        known = self.seen.mark(items)
        bad = np.flatnonzero(~known if self.seen.known.size else ~good[kept])
        if bad.size:
            found = entries.take(pa.array(kept[bad])).to_pylist()
            self._add_entries("unknown-history", row, owner[bad], users, np.asarray(found, dtype=object))
        bad = np.flatnonzero(items == targets[owner])
        self._add_entries("target-in-history", row, owner[bad], users, items[bad])
        if self.later.users.size and self.report.wants("future-click"):
            known_user = np.isin(users, self.later.users)
            some = np.flatnonzero(known_user[owner])
            keys = pair_keys(users[owner[some]], items[some])
            place = np.minimum(np.searchsorted(self.later.pairs, keys), len(self.later.pairs) - 1)
            bad = some[self.later.pairs[place] == keys]
            self._add_entries("future-click", row, owner[bad], users, items[bad])
        if self.report.wants("repeated-history"):
            self._gather_repeats(row, owner, items, users)
        filled = np.flatnonzero(lengths)
        first, last = kept[ends[filled]], kept[ends[filled + 1] - 1]
        bad = filled[last - first + 1 != lengths[filled]]
        if bad.size:
            texts = [str([v for v in value if v]) for value in array.take(pa.array(bad)).to_pylist()]
            self._add("inner-padding", ITEM_SEQ, row, bad, users, texts)
        return history_keys(items, ends).view(np.int64)

    def _gather_repeats(self, row: int, owner: np.ndarray, items: np.ndarray, users: np.ndarray) -> None:
        keys = pair_keys(owner, items)
        ascending = np.sort(keys)
        twice = ascending[1:][ascending[1:] == ascending[:-1]]
        if not twice.size:
            return
        places = np.flatnonzero(np.isin(keys, twice) & (items > 0))
        rows, first = np.unique(owner[places], return_index=True)
        self.repeating.append((row + rows, users[rows], items[places[first]]))

    def _add_entries(self, check: str, row: int, owner: np.ndarray, users: np.ndarray, values: np.ndarray) -> None:
        self.report.add(check, self.path.name, ITEM_SEQ, row + owner, users[owner], values, id_name=USER_ID)

    def _count_lengths(self, lengths: np.ndarray) -> None:
        more = np.bincount(lengths)
        self.lengths = np.pad(self.lengths, (0, max(len(more) - len(self.lengths), 0)))
        self.lengths[: len(more)] += more
