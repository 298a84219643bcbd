r"""Differences between splits: labels, context, history lengths, popularity of the targets.

The population stability index of two histograms, with half a row added to each of K bins, p and q being shares:

.. math::
    \mathrm{PSI} = \sum_k (p_k - q_k) \ln(p_k / q_k)

Above 0.25 (for labels 0.1), and unlikely by chance (chi-squared, below 1 in 1000), it is a finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from fuxictr_mm.check_data.checks import Report
from fuxictr_mm.check_data.items import (
    Tally,
    check_context,
    has_columns,
    ids_of,
    is_list_of,
    is_number,
    numbers,
    read_chunks,
    read_schema,
    split_lists,
)
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ


def mix(values: np.ndarray) -> np.ndarray:
    """Return a well-spread uint64 for each integer (the finalizer of SplitMix64; Steele et al., OOPSLA 2014)."""
    key = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def pair_keys(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return a key for each ordered pair of integers."""
    return mix(mix(left) + right.astype(np.uint64))


def history_keys(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return a key for each list ``values[ends[b] : ends[b + 1]]``, ``(B,)``; the order counts."""
    place = np.arange(len(values)) - np.repeat(ends[:-1], np.diff(ends))
    total = np.concatenate(([np.uint64(0)], np.cumsum(pair_keys(place, values), dtype=np.uint64)))
    return mix(total[ends[1:]] - total[ends[:-1]])


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


PSI_MOST, PSI_LABEL, UNLIKELY = 0.25, 0.1, 1e-3


COLD_MOST, COLD_DIFFERENCE = 0.5, 0.1


BINS = 10


def population_stability(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the PSI of two histograms ``(K,)``.

    Examples
    --------
    >>> population_stability(np.array([10, 10]), np.array([20, 20]))
    0.0
    """
    p, q = ((h + 0.5) / (h + 0.5).sum() for h in (reference, other))
    return float(((p - q) * np.log(p / q)).sum())


def is_unlikely(reference: np.ndarray, other: np.ndarray) -> bool:
    """Whether two histograms ``(K,)`` of one distribution would seldom differ as much (chi-squared test)."""
    from scipy.stats import chi2_contingency

    table = np.stack([reference, other])[:, (reference + other) > 0]
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return False
    return float(chi2_contingency(table).pvalue) < UNLIKELY


def check_drift(splits: Mapping[str, Split], report: Report) -> None:
    """Compare valid and test with train, and test with valid where there is no train; ratios go to the measures."""
    names = list(splits)
    for name in names[1:]:
        _compare(splits[names[0]], splits[name], report)
    if "train" in splits and len(names) > 1:
        _check_cold(splits["train"], [splits[n] for n in names[1:]], report)


def _compare(reference: Split, split: Split, report: Report) -> None:
    pair = f"{reference.path.stem}-{split.path.stem}"
    label = [np.bincount(s.labels[s.labels >= 0], minlength=2) for s in (reference, split)]
    if reference.has_label and split.has_label:
        rates = [h[1] / max(h.sum(), 1) for h in label]
        text = f"the share of positives is {rates[1]:.3f}, in {reference.name} {rates[0]:.3f}"
        _judge("label-drift", LABEL, label, text, split, pair, report, PSI_LABEL)
    for column in reference.context.keys() & split.context.keys():
        counts = reference.context[column], split.context[column]
        if max(map(len, counts)) > MOST_CATEGORIES:
            continue
        values = sorted(counts[0].keys() | counts[1].keys())
        histograms = [np.array([c[v] for v in values], dtype=np.int64) for c in counts]
        if values:
            shares = [h / max(h.sum(), 1) for h in histograms]
            most = int(np.abs(shares[0] - shares[1]).argmax())
            text = (
                f"{values[most]:g} in {shares[1][most]:.1%} of the rows, in {shares[0][most]:.1%} of {reference.name}"
            )
            _judge("context-drift", column, histograms, text, split, pair, report)
    width = max(len(reference.lengths), len(split.lengths))
    lengths = [np.pad(s.lengths, (0, width - len(s.lengths))) for s in (reference, split)]
    if all(h.sum() for h in lengths):
        means = [float(h @ np.arange(width)) / h.sum() for h in lengths]
        text = f"{means[1]:.1f} items on average, in {reference.name} {means[0]:.1f}"
        _judge("history-drift", ITEM_SEQ, _merge(lengths), text, split, pair, report)
    if reference.path.stem == "train":
        shown = [_popularity(reference, s) for s in (reference, split)]
        shown = [s[s > 0] for s in shown]  # cold targets are judged by themselves
        if all(len(s) for s in shown):
            medians = [np.median(s) for s in shown]
            text = (
                f"a median of {medians[1]:g} training rows per target that has any, in {reference.name} {medians[0]:g}"
            )
            histograms = _merge([np.bincount(s, minlength=max(map(np.max, shown)) + 1) for s in shown])
            _judge("popularity-drift", ITEM_ID, histograms, text, split, pair, report)


def _judge(
    check: str,
    column: str,
    histograms: list[np.ndarray],
    text: str,
    split: Split,
    pair: str,
    report: Report,
    most: float = PSI_MOST,
) -> None:
    if not report.wants(check):
        return
    psi = population_stability(*histograms)
    report.measures.setdefault("psi", {}).setdefault(pair, {})[column] = round(psi, 4)
    if psi > most and is_unlikely(*histograms):
        report.add(check, split.name, column, found=f"{text} (PSI {psi:.3f})")


def _merge(histograms: list[np.ndarray]) -> list[np.ndarray]:
    """Merge bins into ten of about equal size in the first histogram."""
    total = np.cumsum(histograms[0])
    edges = np.unique(np.searchsorted(total, total[-1] * np.arange(1, BINS) / BINS)) + 1
    starts = np.concatenate(([0], edges[edges < len(total)]))
    return [np.add.reduceat(h, starts) for h in histograms]


def _popularity(train: Split, split: Split) -> np.ndarray:
    """Return how many training rows show each target of a split."""
    items, counts = np.unique(train.targets, return_counts=True)
    if not items.size:
        return np.zeros(len(split.targets), dtype=np.int64)
    place = np.minimum(np.searchsorted(items, split.targets), len(items) - 1)
    return np.where(items[place] == split.targets, counts[place], 0)


def _check_cold(train: Split, splits: list[Split], report: Report) -> None:
    if not report.wants("cold-targets"):
        return
    shares = {s.path.stem: float((_popularity(train, s) == 0).mean()) for s in splits if len(s.targets)}
    report.measures["cold_share"] = {name: round(share, 4) for name, share in shares.items()}
    for split in splits:
        share = shares.get(split.path.stem, 0.0)
        if share > COLD_MOST:
            report.add("cold-targets", split.name, ITEM_ID, found=f"{share:.1%} of the targets are in no row of train")
    if len(shares) == 2 and abs(shares["valid"] - shares["test"]) > COLD_DIFFERENCE:
        text = f"{shares['test']:.1%} of the targets are in no row of train, in valid {shares['valid']:.1%}"
        report.add("cold-targets", "test.parquet", ITEM_ID, found=text)


UNLIKELY_REPEATS = 1e-3


def check_repeats(splits: Mapping[str, Split], report: Report) -> None:
    """Look for equal rows in each split and in each two of them (earlier first)."""
    names = list(splits)
    for name in names:
        if report.wants("contradictory-row", "duplicate-row"):
            _check_within(splits[name], report)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            if report.wants("shared-row"):
                _check_across(splits[name], splits[other], report)


def _check_within(split: Split, report: Report) -> None:
    keys, first, place, counts = np.unique(split.row_keys, return_index=True, return_inverse=True, return_counts=True)
    if len(keys) == len(place):
        return
    same = np.unique(split.history_keys, return_counts=True)[1].astype(np.float64)
    expected = float((same * (same - 1) / 2).sum()) * _meeting(split, split)
    zeros, ones = (np.bincount(place, split.labels == value) for value in (0, 1))
    share = ones.sum() / max(zeros.sum() + ones.sum(), 1)
    differing = 2 * share * (1 - share)
    contradictory = (zeros > 0) & (ones > 0)
    earlier = first[place]
    repeated = counts[place] > 1
    pairs = counts * (counts - 1) / 2
    other_label = np.where(split.labels == 1, _first(split, place, 0), _first(split, place, 1))
    for check, column, rows, partners, found, chance in (
        (
            "contradictory-row",
            LABEL,
            np.flatnonzero(contradictory[place]),
            other_label,
            (zeros * ones).sum(),
            expected * differing,
        ),
        (
            "duplicate-row",
            ITEM_ID,
            np.flatnonzero(repeated & ~contradictory[place] & (earlier != np.arange(len(place)))),
            earlier,
            pairs[~contradictory].sum(),
            expected * (1 - differing),
        ),
    ):
        both = zip(split.labels[rows], split.labels[partners[rows]], strict=True)
        labels = [f", label {here} and {there}" if check == "contradictory-row" else "" for here, there in both]
        report.add(
            check,
            split.name,
            column,
            rows,
            split.users[rows],
            [f"equals row {partners[r]} (item {split.targets[r]}{t})" for r, t in zip(rows, labels, strict=True)],
            severity=_severity(float(found), chance),
            expected=f"at most some {chance:.1f} pairs by chance",
            id_name=USER_ID,
        )


def _first(split: Split, place: np.ndarray, label: int) -> np.ndarray:
    """Return for each row the first equal one with a label, -1 without any; ``place`` says which rows are equal."""
    rows = np.flatnonzero(split.labels == label)[::-1]
    first = np.full(int(place.max(initial=0)) + 1, -1)
    first[place[rows]] = rows
    return first[place]


def _check_across(split: Split, later: Split, report: Report) -> None:
    rows = np.flatnonzero(np.isin(split.row_keys, later.row_keys))
    if not rows.size:
        return
    keys, counts = np.unique(split.history_keys, return_counts=True)
    later_keys, later_counts = np.unique(later.history_keys, return_counts=True)
    _, here, there = np.intersect1d(keys, later_keys, assume_unique=True, return_indices=True)
    expected = float(counts[here].astype(np.float64) @ later_counts[there]) * _meeting(split, later)
    order = np.argsort(later.row_keys, kind="stable")
    place = order[np.searchsorted(later.row_keys[order], split.row_keys[rows])]
    report.add(
        "shared-row",
        split.name,
        ITEM_ID,
        rows,
        split.users[rows],
        [f"equals row {p} of {later.name} (item {split.targets[r]})" for r, p in zip(rows, place, strict=True)],
        severity=_severity(len(rows), expected),
        expected=f"at most some {expected:.1f} rows shared with {later.name} by chance",
        id_name=USER_ID,
    )


def _meeting(split: Split, other: Split) -> float:
    """Return the chance that a row of each shows the same item."""
    items, counts = np.unique(split.targets, return_counts=True)
    other_items, other_counts = np.unique(other.targets, return_counts=True)
    _, here, there = np.intersect1d(items, other_items, assume_unique=True, return_indices=True)
    pairs = float(counts[here].astype(np.float64) @ other_counts[there])
    return pairs / max(len(split.targets) * len(other.targets), 1)


def _severity(found: float, expected: float) -> str:
    from scipy.stats import poisson

    # Half more than expected, and a little: items are not met quite independently.
    return "warning" if poisson.sf(found - 1, 1.5 * expected + 0.05) < UNLIKELY_REPEATS else "info"
