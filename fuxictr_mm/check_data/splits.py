"""Checks of one split, and of two: ids, labels, histories, equal examples.

Shape letters: B examples of a split, N ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from fuxictr_mm.check_data.checks import ERROR, INFO, WARNING, Action, Fault, Report, check
from fuxictr_mm.check_data.items import ContextColumn, ContextCounts
from fuxictr_mm.check_data.layout import (
    EMPTY_FILE,
    USER_ID,
    Layout,
    as_id,
    check_types,
    first_chunk,
    is_number,
    is_scalar,
    is_text,
    name_of,
    names_of_items,
    read_chunks,
    read_schema,
    require,
    to_series,
)
from fuxictr_mm.check_data.translation import LABEL, active
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ

#: Texts in a column that names the split: rows of two splits are not told apart by it.
SPLIT_NAMES = {"train", "training", "valid", "validation", "val", "dev", "eval", "test", "testing"}

#: What happens less often is no noise.
UNLIKELY = 1e-3

#: Histories of two items or more that tell how often an item is met again.
FEWEST_HISTORIES = 100

#: If none of n histories shows something, its fraction is at most 3 / n (with a confidence of 95 %).
AT_MOST = 3


class KnownItems:
    """Known items, and those that interactions show, in tables by id.

    Parameters
    ----------
    ids : ndarray of int64
        Ids of the item files, sorted, without padding; if empty, no item is known and none is unknown.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids
        # As long as the largest id; memory pages without an id are never written.
        length = int(ids.max(initial=0)) + 1
        self._known, self._shown = np.zeros(length, dtype=bool), np.zeros(length, dtype=bool)
        self._known[ids] = True

    def mark(self, ids: pl.Series) -> pl.Series:
        """Mark ids ``(N,)`` as shown and return which of them are items; null is none."""
        index = ids.fill_null(0).to_numpy()
        index = np.where(index < len(self._known), index, 0)
        self._shown[index] = True
        return pl.Series(self._known[index]) if self.ids.size else (ids > 0).fill_null(False)

    def never_shown(self) -> np.ndarray:
        """Return the ids that no interaction showed."""
        return self.ids[~self._shown[self.ids]]


@dataclass(frozen=True)
class Chunk:
    """Some examples of a split; what is no id or label is null."""

    #: Name of the file, and its columns.
    file: str
    raw: pl.DataFrame
    #: ``row`` (number in the file), ``user``, ``target``, ``known`` (whether the target is an item), ``click`` (0 or
    #: 1), ``history`` (ids without padding), ``length`` and ``span`` (positions from the first id to the last).
    rows: pl.DataFrame
    #: Of every history entry that is not padding: ``row``, ``user``, ``target``, ``value`` (as in the file), ``item``
    #: and ``known``.
    entries: pl.DataFrame
    #: Name of the column of histories.
    lists: str = ITEM_SEQ

    @classmethod
    def of(cls, file: str, row: int, batch: pa.RecordBatch, items: KnownItems, lists: str = ITEM_SEQ) -> Chunk:
        """Decode a record batch whose first row is ``row``; users, histories and labels may be missing."""
        names = batch.schema.names
        raw = pl.DataFrame([to_series(c).alias(name) for name, c in zip(names, batch.columns, strict=True)])
        none = pl.lit(None, dtype=pl.Int64)
        value = pl.col(lists) if lists in names else none
        if raw.schema.get(lists, pl.Null) in (pl.Null, pl.List(pl.Null)):  # all histories are empty
            value = value.cast(pl.List(pl.Int64))
        rows = raw.select(
            user=as_id(USER_ID) if USER_ID in names else none,
            target=as_id(ITEM_ID),
            click=as_id(LABEL) if LABEL in names else none,
            value=value,
        ).with_row_index("row", row)
        entries = rows.select("row", "value").filter(pl.col("value").list.len() > 0).explode("value")
        entries = (
            entries.with_row_index("position").filter(pl.col("value").ne_missing(0)).with_columns(item=as_id("value"))
        )
        position = pl.col("position")
        histories = entries.group_by("row").agg(
            history=pl.col("item"), length=pl.len(), span=position.max() - position.min() + 1
        )
        rows = rows.drop("value").join(histories, on="row", how="left").sort("row")
        rows = rows.with_columns(
            click=pl.when(pl.col("click") <= 1).then("click").cast(pl.Int8),
            known=items.mark(rows["target"]),
            length=pl.col("length").fill_null(0) if lists in names else pl.lit(None, dtype=pl.UInt32),
        )
        index = entries["row"] - row
        users, targets = rows["user"].gather(index), rows["target"].gather(index)
        entries = entries.with_columns(users, targets, known=items.mark(entries["item"]))
        return cls(file, raw, rows, entries, lists)

    def faults(self, column: str, condition: pl.Expr) -> Iterator[Fault]:
        """Yield the examples where a condition holds, whose ``value`` is that of the file, if it has the column."""
        if column in self.raw.columns:
            rows = self.rows.with_columns(value=self.raw[column]).filter(condition)
            yield _fault(self.file, column, rows, pl.col("value"))

    def entry_faults(self, condition: pl.Expr, value: str = "item") -> Iterator[Fault]:
        """Yield the history entries where a condition holds."""
        yield _fault(self.file, self.lists, self.entries.filter(condition), pl.col(value))


@dataclass(frozen=True)
class Histories:
    """A column of histories of a chunk, that of the role ``history`` or a further one."""

    chunk: Chunk


def _fault(file: str, column: str, rows: pl.DataFrame, value: pl.Expr | list[str], **texts: str) -> Fault:
    values = pl.Series(value, dtype=pl.String) if isinstance(value, list) else value
    return Fault(file, column, rows.select("row", pl.col("user").alias(USER_ID), value=values), **texts)


@check(Chunk, ERROR, "integers from 0", Action.DROP_ROW)
def bad_user_id(chunk: Chunk) -> Iterator[Fault]:
    """Null, negative or fractional user ids."""
    return chunk.faults(USER_ID, pl.col("user").is_null())


@check(Chunk, ERROR, "0 or 1", Action.DROP_ROW)
def bad_label(chunk: Chunk) -> Iterator[Fault]:
    """Labels that are neither 0 nor 1."""
    return chunk.faults(LABEL, pl.col("click").is_null())


@check(Chunk, ERROR, "ids of the item files", Action.DROP_ROW)
def unknown_target(chunk: Chunk) -> Iterator[Fault]:
    """Targets that no item file has."""
    return chunk.faults(ITEM_ID, ~pl.col("known"))


@check(Histories, ERROR, "ids of the item files", Action.DROP_ENTRY)
def unknown_history(histories: Histories) -> Iterator[Fault]:
    """History ids that no item file has."""
    return histories.chunk.entry_faults(~pl.col("known"), "value")


@check(Histories, WARNING, "a list, empty or of padding", Action.SET_ZERO, "set to padding")
def null_history(histories: Histories) -> Iterator[Fault]:
    """Histories that are null."""
    return histories.chunk.faults(histories.chunk.lists, pl.col("value").is_null())


@check(Histories, WARNING, "padding at one end", Action.DROP_ENTRY, "the ids are moved together")
def inner_padding(histories: Histories) -> Iterator[Fault]:
    """Padding between real ids of a history."""
    chunk = histories.chunk
    rows = chunk.rows.filter(pl.col("span") != pl.col("length"))
    texts = [str(names_of_items(history.drop_nulls())) for history in rows["history"]]
    yield _fault(chunk.file, chunk.lists, rows, texts)


@dataclass(frozen=True)
class Split:
    """The columns of a split that are kept."""

    path: Path
    #: ``row``, ``user``, ``target``, ``click`` and ``length`` as in ``Chunk``, ``history_key`` (equal where user and
    #: history are) and ``row_key`` (equal where everything but the label is, times and texts as well), ``(B,)``; and
    #: ``time``, a number, where there is a column of this role.
    rows: pl.DataFrame
    #: ``row``, ``user`` and first repeated ``item`` of the histories that have one.
    repeats: pl.DataFrame
    #: ``row``, ``user`` and ``item`` of the history entries that are the target, and of those that the user clicks in
    #: a later split.
    own: pl.DataFrame
    future: pl.DataFrame
    #: Counts of ``_again`` by ``click``.
    again: pl.DataFrame
    context: dict[str, ContextColumn]
    #: Names of the columns without a role.
    others: list[str]

    @property
    def name(self) -> str:
        """Name of the split."""
        return name_of(self.path)

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.path.name

    @property
    def has_label(self) -> bool:
        """Whether any example has a label."""
        return self.rows["click"].count() > 0

    @property
    def times(self) -> list[str]:
        """The column ``time``, if the examples have one."""
        return [name for name in self.rows.columns if name == "time"]

    @property
    def has_history(self) -> bool:
        """Whether there is a column of histories."""
        return self.rows["length"].null_count() == 0

    @cached_property
    def target_counts(self) -> pl.DataFrame:
        """Targets, and the number ``n`` of examples that show each."""
        return _counts(self.rows["target"])

    @cached_property
    def history_counts(self) -> pl.DataFrame:
        """History keys, and the number ``n`` of examples with each."""
        return _counts(self.rows["history_key"])

    @cached_property
    def equal_rows(self) -> pl.DataFrame:
        """Examples that equal another, with the ``first`` of them, and the first with label 0 and with label 1."""
        row, label = pl.col("row"), pl.col("click")
        repeated = _counts(self.rows["row_key"]).filter(pl.col("n") > 1)
        return (
            self.rows.join(repeated, on="row_key", how="semi")
            .sort("row")
            .with_columns(
                first=row.min().over("row_key"),
                first_0=row.filter(label == 0).min().over("row_key"),
                first_1=row.filter(label == 1).min().over("row_key"),
            )
        )

    def expected_pairs(self, differing: bool) -> float:
        """Return how many pairs of equal examples to expect, with different labels or with the same.

        Were items met independently: the pairs with the same user and history, times the probability of the same item.
        """
        n = self.history_counts["n"]
        pairs = float((n * (n - 1) / 2).sum()) * _meeting(self, self)
        rate = int(self.rows["click"].sum()) / max(self.rows["click"].count(), 1)
        differ = 2 * rate * (1 - rate)
        return pairs * (differ if differing else 1 - differ)

    @cached_property
    def of_clicks(self) -> dict[str, int]:
        """The counts of ``_again`` of the clicks; of all examples where labels are missing or all the same."""
        has_both = self.rows["click"].drop_nulls().n_unique() == 2
        counts = self.again.filter(pl.col("click") == 1) if has_both else self.again
        return counts.drop("click").sum().row(0, named=True)

    def clicks(self) -> pl.DataFrame:
        """Return ``user`` and ``item`` of the clicks, and the ``time`` of the first, where there is one.

        Where labels are missing or all the same, every example is a click.
        """
        clicked = pl.col("click") == 1 if self.rows["click"].drop_nulls().n_unique() == 2 else pl.lit(True)
        rows = self.rows.filter(clicked & (pl.col("target") > 0) & pl.col("user").is_not_null())
        return rows.group_by("user", pl.col("target").alias("item")).agg([pl.col(name).min() for name in self.times])

    def popularity_of(self, other: Split) -> np.ndarray:
        """Return how many examples of this split show each target of another, ``(B,)``, in any order."""
        counts = other.rows.select("target").join(self.target_counts, on="target", how="left")
        return counts["n"].fill_null(0).cast(pl.Int64).to_numpy()


def _counts(values: pl.Series) -> pl.DataFrame:
    """Return the distinct values and how often each occurs; by sorting, which takes less memory than groups."""
    runs = values.sort().rle().struct.unnest()
    return runs.select(pl.col("value").alias(values.name), n=pl.col("len").cast(pl.Float64))


def _pairs(counts: pl.DataFrame, others: pl.DataFrame) -> float:
    """Return how many pairs of examples have the same value."""
    both = counts.join(others, on=counts.columns[0], suffix="_other")
    return float((both["n"] * both["n_other"]).sum())


def _meeting(split: Split, other: Split) -> float:
    """Return the probability that an example of each shows the same item."""
    return _pairs(split.target_counts, other.target_counts) / (split.rows.height * other.rows.height)


def _severity(found: float, expected: float) -> str:
    from scipy.stats import poisson

    # Half more than expected, and a little: items are not met quite independently.
    return WARNING if poisson.sf(found - 1, 1.5 * expected + 0.05) < UNLIKELY else INFO


@check(Split, ERROR, "both 0 and 1")
def one_class(split: Split) -> Iterator[Fault]:
    """All labels are the same."""
    labels = split.rows["click"].drop_nulls()
    if labels.n_unique() == 1:
        severity = WARNING if split.name == "test" else ERROR  # in test they may be placeholders
        yield Fault(split.file, LABEL, found=f"all {len(labels):,} labels are {labels[0]}", severity=severity)


@check(Split, INFO, "every item once, or a rewatch")
def repeated_history(split: Split) -> Iterator[Fault]:
    """An item more than once in a history."""
    fraction = split.repeats.height / max(int((split.rows["length"] > 0).sum()), 1)
    found = f"an item more than once, in {fraction:.1%} of the histories that are not empty"
    yield _fault(split.file, ITEM_SEQ, split.repeats, pl.col("item"), found=found)


def _severity_of_leak(found: float, expected: float, histories: int) -> str:
    """As ``_severity``; one is a warning where too few histories tell how often an item is met again."""
    return WARNING if found and histories < FEWEST_HISTORIES else _severity(found, expected)


# Cleaning leaves it as it is: which of these clicks are on an item met before, and which leak, is not known.
@check(Split, WARNING, "a history before the click")
def target_in_history(split: Split) -> Iterator[Fault]:
    """Targets that are in their own history."""
    # The newest item of a history is a click as the target is, without a leak: how often was it met before?
    n = split.of_clicks
    scale = n["rows"] / max(n["longer"], 1)
    expected = scale * max(n["last_again"], AT_MOST)
    ends = [(n[f"own_{end}"], scale * max(n[f"{end}_twice"], n["both_ends"], AT_MOST)) for end in ("first", "last")]
    severities = [_severity_of_leak(n["own"], expected, n["longer"]), *(_severity(*end) for end in ends)]
    found = f"targets that are in their own history, {n['own']:,} of {n['rows']:,} clicks"
    text = f"a history before the click, so at most some {expected:.1f} clicks on an item met before"
    severity = WARNING if WARNING in severities else INFO
    yield _fault(split.file, ITEM_SEQ, split.own, pl.col("item"), found=found, expected=text, severity=severity)


_CONTRADICTORY = pl.col("first_0").is_not_null() & pl.col("first_1").is_not_null()


@check(Split, WARNING, "one label per row", Action.DROP_ROW, "all of them are dropped (never from test)")
def contradictory_row(split: Split) -> Iterator[Fault]:
    """Equal rows with both labels."""
    rows = split.equal_rows.filter(_CONTRADICTORY & pl.col("click").is_not_null())
    labels = rows.group_by("row_key").agg(ones=pl.col("click").cast(pl.Int64).sum(), n=pl.len().cast(pl.Int64))
    found = (labels["ones"] * (labels["n"] - labels["ones"])).sum()
    expected = split.expected_pairs(differing=True)
    others = rows.select("target", "click", other=pl.when(pl.col("click") == 1).then("first_0").otherwise("first_1"))
    texts = [
        f"equals row {row} (item {item}, label {label} and {1 - label})"
        for item, (label, row) in zip(
            names_of_items(others["target"]), others.select("click", "other").iter_rows(), strict=True
        )
    ]
    expected_text = f"at most some {expected:.1f} pairs by coincidence"
    yield _fault(split.file, LABEL, rows, texts, severity=_severity(found, expected), expected=expected_text)


@check(Split, WARNING, "every row once", Action.DROP_ROW, "the later row is dropped (never from test)")
def duplicate_row(split: Split) -> Iterator[Fault]:
    """Rows equal to an earlier one."""
    rows = split.equal_rows.filter(~_CONTRADICTORY)
    sizes = rows.group_by("row_key").agg(n=pl.len().cast(pl.Int64))["n"]
    expected = split.expected_pairs(differing=False)
    severity = _severity((sizes * (sizes - 1) / 2).sum(), expected)
    later = rows.filter(pl.col("row") != pl.col("first"))
    texts = [
        f"equals row {row} (item {item})"
        for row, item in zip(later["first"], names_of_items(later["target"]), strict=True)
    ]
    expected_text = f"at most some {expected:.1f} pairs by coincidence"
    yield _fault(split.file, ITEM_ID, later, texts, severity=severity, expected=expected_text)


@dataclass(frozen=True)
class SplitPair:
    """Two splits, the earlier one first."""

    earlier: Split
    later: Split


@check(SplitPair, WARNING, "disjoint splits", Action.DROP_ROW, "dropped from the earlier split")
def shared_row(pair: SplitPair) -> Iterator[Fault]:
    """Rows that are in a later split as well."""
    name = pair.later.file
    first = pair.later.rows.group_by("row_key").agg(other=pl.col("row").min())
    rows = pair.earlier.rows.join(first, on="row_key").sort("row")
    expected = _pairs(pair.earlier.history_counts, pair.later.history_counts) * _meeting(pair.earlier, pair.later)
    severity = _severity(rows.height, expected)
    texts = [
        f"equals row {row} of {name} (item {item})"
        for row, item in zip(rows["other"], names_of_items(rows["target"]), strict=True)
    ]
    expected_text = f"at most some {expected:.1f} rows shared with {name} by coincidence"
    yield _fault(pair.earlier.file, ITEM_ID, rows, texts, severity=severity, expected=expected_text)


@dataclass(frozen=True)
class SplitInTime:
    """All splits in the order of time, and the index of one of them."""

    splits: Sequence[Split]
    index: int


# Cleaning leaves it as it is: the history may be right, where the files lack a click, such as one before the log.
@check(SplitInTime, WARNING, "histories older than the clicks")
def future_click(subject: SplitInTime) -> Iterator[Fault]:
    """Clicks of a later split in the user's history, without an earlier one."""
    split = subject.splits[subject.index]
    rows, pair = split.future, ["user", "item"]
    if rows.height and all(s.times for s in subject.splits):
        clicks = pl.concat(s.clicks() for s in subject.splits).group_by(pair).agg(first=pl.col("time").min())
        rows = rows.with_columns(split.rows["time"].gather(rows["row"]))
        rows = rows.join(clicks, on=pair, how="left", maintain_order="left")
        rows = rows.filter(~(pl.col("first") <= pl.col("time")).fill_null(False))
    elif rows.height:
        for earlier in subject.splits[: subject.index + 1]:
            rows = rows.join(earlier.clicks(), on=pair, how="anti", maintain_order="left")
    n = split.of_clicks
    clicked = pl.concat(
        [rows.select(pair).clear(), *(s.clicks().select(pair) for s in subject.splits[subject.index + 1 :])]
    )
    users = split.rows.filter(pl.col("length") > 0).select("user").unique()
    total = clicked.unique().join(users, on="user", how="semi").height
    expected = total * max(n["last_again"], AT_MOST) / max(n["longer"], 1)
    severity = _severity_of_leak(rows.select(pair).unique().height, expected, n["longer"])
    text = f"histories older than the clicks, so at most some {expected:.1f} clicks on an item met before"
    yield _fault(split.file, ITEM_SEQ, rows, pl.col("item"), expected=text, severity=severity)


def read_split(
    path: Path, items: KnownItems, later: Sequence[Split], layout: Layout, report: Report, verbose: int
) -> Split | None:
    """Check a split and return what the checks across splits need; None where there are no targets."""
    schema = read_schema(path)
    translation = active()
    further = translation.roles.histories if translation is not None else []
    wanted = {USER_ID: "integers", ITEM_ID: "integers"} | dict.fromkeys([ITEM_SEQ, *further], "lists of integers")
    if name_of(path) != "test" or LABEL in schema.names:
        wanted[LABEL] = "numbers"
    usable = require(path, schema, wanted, report, lists=[ITEM_SEQ, *further])
    time = translation.roles.time if translation is not None else None
    times = [f.name for f in schema if f.name == time and _is_time(f.type)]
    layout.not_checked += check_types(path, schema, {*wanted, time}, report)
    if ITEM_ID not in usable:
        return None
    others = [f for f in schema if f.name not in wanted]
    context = [f for f in others if f.name != time and is_number(f.type)]
    names = [f.name for f in others if is_scalar(f.type) and not _names_the_split(path, f)]
    none = pl.DataFrame(schema={"user": pl.Int64, "item": pl.Int64})
    clicks = pl.concat([none, *(s.clicks().select("user", "item") for s in later)])
    parts: list[pl.DataFrame] = []
    repeats, own, future, again = [], [], [], []
    for row, batch in read_chunks(path, usable + names, verbose=verbose):
        chunk = Chunk.of(path.name, row, batch, items)
        report.examine(chunk)
        report.examine(Histories(chunk))
        for name in [name for name in further if name in usable]:
            report.examine(Histories(Chunk.of(path.name, row, batch, items, name)))
        parts.append(_with_keys(chunk, names).with_columns(_as_number(chunk.raw[name]) for name in times))
        repeats.append(_find_repeats(chunk))
        entries = chunk.entries.select("row", pl.col("user", "target", "item").cast(pl.Int64))
        own.append(entries.filter(pl.col("item") == pl.col("target")).drop("target"))
        clicked_later = entries.drop("target").join(clicks, on=["user", "item"], how="semi")
        future.append(clicked_later.sort("row", maintain_order=True))
        again.append(_again(chunk.rows))
    if not parts:
        report.add(EMPTY_FILE, Fault(path.name))
        return None
    rows = pl.concat(parts)
    counts = ContextCounts(path, context)
    columns = {f.name: ContextColumn(path, f, rows["user"], counts) for f in context}
    without_role = [f.name for f in others if f.name not in (LABEL, time) and not f.name.startswith("__index_level_")]
    repeated, own_targets, later_clicks, counts_again = map(pl.concat, (repeats, own, future, again))
    split = Split(path, rows, repeated, own_targets, later_clicks, counts_again, columns, without_role)
    report.examine(split)
    for column in columns.values():
        report.examine(column)
    return split


def _names_the_split(path: Path, column: pa.Field) -> bool:
    """Whether a column of text is the name of the split in all rows, as far as its first chunk tells."""
    array = first_chunk(path, column.name) if is_text(column.type) else None
    values = [] if array is None else array.unique().drop_null().to_pylist()
    return len(values) == 1 and values[0].lower() in SPLIT_NAMES


def _with_keys(chunk: Chunk, others: Sequence[str]) -> pl.DataFrame:
    history = pl.col("history").list.eval(pl.element().fill_null(-1)).hash()
    rows = chunk.rows.select("row", "user", "target", "click", "length", history_key=pl.struct("user", history).hash())
    keys = [_comparable(chunk.raw[name]).alias(f"other {name}") for name in sorted(others)]
    key = pl.struct("history_key", "target", *(column.name for column in keys)).hash()
    return rows.with_columns(rows.with_columns(keys).select(row_key=key).to_series())


def _is_time(kind: pa.DataType) -> bool:
    """Whether the values of a type are points in time that can be compared: numbers, dates, dates with times."""
    return is_number(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)


def _as_number(times: pl.Series) -> pl.Series:
    number = times.dt.epoch("us") if times.dtype in (pl.Date, pl.Datetime) else times
    return number.cast(pl.Float64).fill_nan(None).alias("time")


def _comparable(values: pl.Series) -> pl.Series:
    """Return hashes that are equal where values are, whatever their type: a split may hold int32, another float64."""
    kind = values.dtype
    if kind in (pl.Date, pl.Datetime):
        return values.dt.epoch("us").hash()
    if kind == pl.UInt64:
        return values.reinterpret(signed=True).hash()
    if kind.is_integer():
        return values.cast(pl.Int64).hash()
    if kind.is_float():
        number = values.cast(pl.Float64)
        is_integer = ((number == number.floor()) & (number.abs() < 2.0**63)).fill_null(False)
        return pl.select(
            pl.when(is_integer).then(number.cast(pl.Int64, strict=False).hash()).otherwise(number.hash())
        ).to_series()
    return values.hash()


#: Columns of ``_again`` beside ``click``.
_COUNTS = (
    "rows", "longer", "own", "own_first", "own_last", "both_ends", "last_again", "first_twice", "last_twice"
)  # fmt: skip


def _again(rows: pl.DataFrame) -> pl.DataFrame:
    """Count, by ``click``, histories, and how often an item is met again in them.

    Returns
    -------
    DataFrame
        ``rows`` that have a history, and those whose target is in it (``own``), is its first or last item; histories
        that are ``longer`` than one item, and those whose last item is in the rest of it (``_again``), whose first or
        last item equals its neighbour (``_twice``), or the other of the two (``both_ends``).
    """
    rows = rows.filter(pl.col("length") > 0)
    if rows.is_empty():  # histories may be of nulls
        return pl.DataFrame(schema={"click": pl.Int8, **dict.fromkeys(_COUNTS, pl.Int64)})
    history, target = pl.col("history"), pl.col("target")
    first, last = history.list.first(), history.list.last()
    found = rows.select(
        "click",
        rows=pl.lit(True),
        longer=pl.col("length") > 1,
        own=history.list.contains(target),
        own_first=first == target,
        own_last=last == target,
        both_ends=(first == last) & (pl.col("length") > 1),
        last_again=history.list.head(pl.col("length") - 1).list.contains(last),
        first_twice=first == history.list.get(1, null_on_oob=True),
        last_twice=last == history.list.get(-2, null_on_oob=True),
    )
    return found.group_by("click").agg(pl.col(*_COUNTS).cast(pl.Int64).sum())


def _find_repeats(chunk: Chunk) -> pl.DataFrame:
    keys = chunk.entries.select(key=pl.struct("row", "item").hash()).to_series()
    repeated = chunk.entries.filter(keys.is_duplicated() & (chunk.entries["item"] > 0))
    return repeated.unique("row", keep="first").sort("row").select("row", "user", "item")
