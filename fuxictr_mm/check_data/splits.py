r"""Checks of interactions: ids, labels, histories, equal examples, and how the splits differ.

The population stability index (PSI) of two histograms, with half an example added to each of K bins, p and q being
fractions:

.. math::
    \mathrm{PSI} = \sum_k (p_k - q_k) \ln(p_k / q_k)

Above 0.25 (for labels 0.1), and unlikely to be noise (chi-squared test, below 1 in 1000), it is a finding.

Shape letters: B examples of a split, N history entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from fuxictr_mm.check_data.checks import ERROR, INFO, WARNING, Action, Fault, Measure, Report, check
from fuxictr_mm.check_data.items import MOST_CATEGORIES, ContextColumn
from fuxictr_mm.check_data.layout import (
    COLUMN_TYPE,
    EMPTY_FILE,
    LABEL,
    SPLITS,
    USER_ID,
    ItemFile,
    Layout,
    as_id,
    check_types,
    has_columns,
    is_number,
    is_number_list,
    read_chunks,
    read_schema,
    to_series,
)
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ

#: A PSI above it is a finding, if the histograms would differ as much less often than ``UNLIKELY``.
PSI_MOST, PSI_LABEL, UNLIKELY = 0.25, 0.1, 1e-3
#: Fraction of cold targets that is too much, and difference between valid and test that is.
COLD_MOST, COLD_DIFFERENCE = 0.5, 0.1
#: Bins of a histogram of lengths or counts.
BINS = 10

CONTRADICTORY = pl.col("first_0").is_not_null() & pl.col("first_1").is_not_null()


class KnownItems:
    """Which items there are, and which of them interactions show, in a table by id.

    Parameters
    ----------
    ids : ndarray of int64
        Ids of the item files, sorted, without padding. Without any nothing is known, and nothing unknown.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids
        # As long as the largest id; pages that no id is in take no memory.
        self._known = np.zeros(int(ids.max(initial=0)) + 1, dtype=bool)
        self._shown = np.zeros(len(self._known), dtype=bool)
        self._known[ids] = True

    def mark(self, ids: pl.Series) -> pl.Series:
        """Mark ids as shown and return which of them are items; null is none."""
        positions = ids.fill_null(0).clip(0, len(self._known)).to_numpy()
        positions = np.where(positions < len(self._known), positions, 0)
        self._shown[positions] = True
        if not self.ids.size:
            return (ids > 0).fill_null(False)
        return pl.Series(self._known[positions])

    def never_shown(self) -> np.ndarray:
        """Return the ids that no interaction showed."""
        return self.ids[~self._shown[self.ids]]


@dataclass(frozen=True)
class Chunk:
    """Some examples of a split.

    Parameters
    ----------
    file : str
        Name of the file.
    rows : polars.DataFrame
        The columns of the file, and ``row`` (number in the file), ``id`` (of the user), ``target``, ``known`` (whether the
        target is an item), ``click`` (0 or 1), ``history`` (ids without padding), ``length`` and ``span`` (positions from
        the first to the last of them); null where a value is none.
    entries : polars.DataFrame
        ``row``, ``id``, ``target``, ``value`` (as in the file), ``item`` and ``known`` of every entry of the histories that
        is not padding.
    later : polars.DataFrame
        ``id`` and ``item`` of the clicks of later splits.
    """

    file: str
    rows: pl.DataFrame
    entries: pl.DataFrame
    later: pl.DataFrame
    id_name = USER_ID

    def faults(self, column: str, condition: pl.Expr) -> Iterator[Fault]:
        """Yield the examples where a condition holds, if the file has the column."""
        if column in self.rows.columns:
            yield Fault(column, self.rows.filter(condition).select("row", "id", value=column))

    def entry_faults(self, condition: pl.Expr, value: str = "item") -> Iterator[Fault]:
        """Yield the history entries where a condition holds."""
        yield Fault(ITEM_SEQ, self.entries.filter(condition).select("row", "id", value=value))

    @classmethod
    def of(cls, file: str, row: int, batch: pa.RecordBatch, items: KnownItems, later: pl.DataFrame) -> Chunk:
        """Decode a record batch whose first row is ``row``."""
        rows = pl.DataFrame([to_series(column).alias(name) for name, column in zip(batch.schema.names, batch.columns, strict=True)])
        none = pl.lit(None, dtype=pl.Int64)
        rows = rows.with_row_index("row", row).with_columns(
            id=as_id(USER_ID) if USER_ID in rows.columns else none,
            target=as_id(ITEM_ID),
            click=as_id(LABEL) if LABEL in rows.columns else none,
        )
        rows = rows.with_columns(
            known=items.mark(rows["target"]), click=pl.when(pl.col("click") <= 1).then("click").cast(pl.Int8)
        )
        lists = rows.select("row", value=ITEM_SEQ if ITEM_SEQ in rows.columns else pl.lit(None, dtype=pl.List(pl.Int64)))
        entries = (
            lists.filter(pl.col("value").list.len() > 0)
            .explode("value")
            .with_row_index("position")
            .filter(pl.col("value").ne_missing(0))
            .with_columns(item=as_id("value"))
        )
        entries = entries.with_columns(known=items.mark(entries["item"]))
        histories = entries.group_by("row").agg(
            history=pl.col("item"), length=pl.len(), span=pl.col("position").max() - pl.col("position").min() + 1
        )
        rows = rows.join(histories, on="row", how="left").sort("row")
        if ITEM_SEQ in rows.columns:
            rows = rows.with_columns(pl.col("length", "span").fill_null(0))
        positions = entries["row"] - row
        entries = entries.with_columns(rows["id"].gather(positions), rows["target"].gather(positions))
        return cls(file, rows, entries, later)


@check(Chunk, "bad-user-id", ERROR, "null, negative or fractional user ids", "integers from 0", Action.DROP_ROW)
def bad_user_id(chunk: Chunk) -> Iterator[Fault]:
    """User ids that are none."""
    yield from chunk.faults(USER_ID, pl.col("id").is_null())


@check(Chunk, "bad-label", ERROR, "labels that are neither 0 nor 1", "0 or 1", Action.DROP_ROW)
def bad_label(chunk: Chunk) -> Iterator[Fault]:
    """Labels that are none."""
    yield from chunk.faults(LABEL, pl.col("click").is_null())


@check(Chunk, "unknown-target", ERROR, "targets that no item file has", "ids of the item files", Action.DROP_ROW)
def unknown_target(chunk: Chunk) -> Iterator[Fault]:
    """Targets that are no item; padding and null are none."""
    yield from chunk.faults(ITEM_ID, ~pl.col("known"))


@check(
    Chunk, "unknown-history", ERROR, "history ids that no item file has", "ids of the item files", Action.DROP_ENTRY
)
def unknown_history(chunk: Chunk) -> Iterator[Fault]:
    """History entries that are neither item nor padding."""
    yield from chunk.entry_faults(~pl.col("known"), "value")


@check(
    Chunk,
    "null-history",
    WARNING,
    "histories that are null",
    "a list, empty or of padding",
    Action.SET_ZERO,
    "set to padding",
)
def null_history(chunk: Chunk) -> Iterator[Fault]:
    """Histories that are null."""
    yield from chunk.faults(ITEM_SEQ, pl.col(ITEM_SEQ).is_null() if ITEM_SEQ in chunk.rows.columns else pl.lit(False))


@check(
    Chunk,
    "inner-padding",
    WARNING,
    "padding between real ids of a history",
    "padding at one end",
    Action.DROP_ENTRY,
    "the ids are moved together",
)
def inner_padding(chunk: Chunk) -> Iterator[Fault]:
    """Histories that span more positions than they have ids."""
    rows = chunk.rows.filter(pl.col("span") != pl.col("length"))
    texts = [str([v for v in history if v is not None]) for history in rows["history"].to_list()]
    yield Fault(ITEM_SEQ, rows.select("row", "id", value=pl.Series(texts, dtype=pl.String)))


@check(
    Chunk,
    "target-in-history",
    WARNING,
    "targets that are in their own history",
    "a history before the click",
    Action.DROP_ENTRY,
)
def target_in_history(chunk: Chunk) -> Iterator[Fault]:
    """History entries that are the target."""
    yield from chunk.entry_faults(pl.col("item") == pl.col("target"))


@check(
    Chunk,
    "future-click",
    WARNING,
    "clicks of a later split in the user's history",
    "histories older than the clicks",
    Action.DROP_ENTRY,
)
def future_click(chunk: Chunk) -> Iterator[Fault]:
    """History entries that the same user clicks in a later split."""
    entries = chunk.entries.join(chunk.later, on=["id", "item"], how="semi").sort("row", maintain_order=True)
    yield Fault(ITEM_SEQ, entries.select("row", "id", value="item"))


@dataclass(frozen=True)
class Split:
    """What is kept of a split.

    Parameters
    ----------
    path : Path
        Its file.
    rows : polars.DataFrame
        ``row``, ``id``, ``target``, ``click`` and ``length`` as in ``Chunk``, ``history_key`` (equal where user and history
        are) and ``row_key`` (equal where everything but the label is), ``(B,)``.
    repeats : polars.DataFrame
        ``row``, ``id`` and the first repeated item (``value``) of histories with one.
    context : dict of str to ContextColumn
        Its context columns.
    """

    path: Path
    rows: pl.DataFrame
    repeats: pl.DataFrame
    context: dict[str, ContextColumn]
    id_name = USER_ID

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.path.name

    @property
    def name(self) -> str:
        """Name of the split."""
        return self.path.stem

    @property
    def has_label(self) -> bool:
        """Whether an example has a label."""
        return self.rows["click"].count() > 0

    @property
    def has_history(self) -> bool:
        """Whether there is a column of histories."""
        return self.rows["length"].null_count() == 0

    @cached_property
    def target_counts(self) -> pl.DataFrame:
        """``target`` and ``n``, the number of examples that show it."""
        return self.rows.group_by("target").agg(n=pl.len().cast(pl.Float64))

    @cached_property
    def history_counts(self) -> pl.DataFrame:
        """``history_key`` and ``n``, the number of examples with it."""
        return self.rows.group_by("history_key").agg(n=pl.len().cast(pl.Float64))

    @cached_property
    def equal_rows(self) -> pl.DataFrame:
        """Examples that equal another, with the ``first`` of them, and the first with label 0 and with label 1."""
        row, label = pl.col("row"), pl.col("click")
        return self.rows.filter(self.rows["row_key"].is_duplicated()).with_columns(
            first=row.min().over("row_key"),
            first_0=row.filter(label == 0).min().over("row_key"),
            first_1=row.filter(label == 1).min().over("row_key"),
        )

    def expected_pairs(self, differing: bool) -> float:
        """Return how many pairs of equal examples to expect, with different labels or with the same.

        Were items met independently: the pairs with the same user and history, times the probability of the same item.
        """
        n = self.history_counts["n"]
        pairs = float((n * (n - 1) / 2).sum()) * _meeting(self, self)
        rate = float(self.rows["click"].cast(pl.Float64).mean() or 0)  # type: ignore[arg-type]  # of floats, a float
        differ = 2 * rate * (1 - rate)
        return pairs * (differ if differing else 1 - differ)

    def clicks(self) -> pl.DataFrame:
        """Return ``id`` and ``item`` of the clicks; of all examples where nothing tells which are."""
        clicked = pl.col("click") == 1 if self.has_label else pl.lit(True)
        rows = self.rows.filter(clicked & (pl.col("target") > 0) & pl.col("id").is_not_null())
        return rows.select("id", item="target").unique()

    def popularity_of(self, other: Split) -> np.ndarray:
        """Return how many examples of this split show each target of another, ``(B,)``."""
        counts = other.rows.select("target").join(self.target_counts, on="target", how="left")
        return counts["n"].fill_null(0).cast(pl.Int64).to_numpy()


def read_split(
    path: Path, items: KnownItems, later: Sequence[Split], layout: Layout, report: Report, verbose: int = 0
) -> Split | None:
    """Check a split and return what the checks across splits need; None where there is no column of targets.

    Parameters
    ----------
    path : Path
        Its file. A test split may have no labels.
    items : KnownItems
        The items there are; those shown are marked.
    later : sequence of Split
        The later splits.
    layout : Layout
        Takes the columns that no check looks at.
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
    wanted = [USER_ID, ITEM_ID, ITEM_SEQ] + ([LABEL] if path.stem != "test" or LABEL in schema.names else [])
    has_columns(path, schema, wanted, report)
    usable = [name for name in wanted if name in schema.names and _has_type(path, schema, name, report)]
    layout.not_checked += check_types(path, schema, wanted, report)
    if ITEM_ID not in usable:
        return None
    context = [f for f in schema if f.name not in wanted and is_number(f.type)]
    clicks = pl.concat([s.clicks() for s in later] or [pl.DataFrame(schema={"id": pl.Int64, "item": pl.Int64})])
    parts, repeats = [], []
    for row, batch in read_chunks(path, usable + [f.name for f in context], verbose=verbose):
        chunk = Chunk.of(path.name, row, batch, items, clicks)
        report.examine(chunk)
        parts.append(_keep(chunk, [f.name for f in context]))
        if report.wants("repeated-history"):
            repeats.append(_find_repeats(chunk))
    rows = pl.concat(parts) if parts else pl.DataFrame()
    if rows.is_empty():
        report.add(EMPTY_FILE, path.name, Fault())
        return None
    split = Split(
        path,
        rows,
        pl.concat(repeats) if repeats else pl.DataFrame(),
        {f.name: ContextColumn(path, f, rows["id"]) for f in context},
    )
    report.examine(split)
    for column in split.context.values():
        report.examine(column)
    return split


def _has_type(path: Path, schema: pa.Schema, name: str, report: Report) -> bool:
    kind = schema.field(name).type
    good, expected = (is_number_list(kind), "lists of integers") if name == ITEM_SEQ else (is_number(kind), "numbers")
    if not good:
        report.add(COLUMN_TYPE, path.name, Fault(name, found=f"holds {kind}", expected=expected))
    return good


def _keep(chunk: Chunk, context: Sequence[str]) -> pl.DataFrame:
    history = pl.col("history").list.eval(pl.element().fill_null(-1)).hash()
    rows = chunk.rows.with_columns(history_key=pl.struct("id", history.alias("history")).hash())
    rows = rows.with_columns(row_key=pl.struct("history_key", "target", *context).hash())
    return rows.select("row", "id", "target", "click", "length", "history_key", "row_key")


def _find_repeats(chunk: Chunk) -> pl.DataFrame:
    repeating = chunk.rows.filter(pl.col("history").list.n_unique() < pl.col("length")).select("row")
    entries = chunk.entries.join(repeating, on="row", how="semi").filter(pl.col("item") > 0)
    entries = entries.filter(pl.struct("row", "item").is_duplicated()).unique("row", keep="first").sort("row")
    return entries.select("row", "id", value="item")


@check(Split, "one-class", ERROR, "all labels are the same", "both 0 and 1")
def one_class(split: Split) -> Iterator[Fault]:
    """Labels of one class, with which nothing can be learned or ranked."""
    labels = split.rows["click"].drop_nulls()
    if labels.n_unique() == 1:
        yield Fault(LABEL, found=f"all {len(labels):,} labels are {labels[0]}")


@check(Split, "repeated-history", INFO, "an item more than once in a history", "every item once, or a rewatch")
def repeated_history(split: Split) -> Iterator[Fault]:
    """Histories that show an item more than once."""
    fraction = split.repeats.height / max(int((split.rows["length"] > 0).sum()), 1)
    found = f"an item more than once, in {fraction:.1%} of the histories that are not empty"
    yield Fault(ITEM_SEQ, split.repeats, found=found)


def _meeting(split: Split, other: Split) -> float:
    """Return the probability that an example of each shows the same item."""
    both = split.target_counts.join(other.target_counts, on="target", suffix="_other")
    return float((both["n"] * both["n_other"]).sum()) / max(split.rows.height * other.rows.height, 1)


def _severity(found: float, expected: float) -> str:
    from scipy.stats import poisson

    # Half more than expected, and a little: items are not met quite independently.
    return WARNING if poisson.sf(found - 1, 1.5 * expected + 0.05) < UNLIKELY else INFO


@check(
    Split,
    "contradictory-row",
    WARNING,
    "equal rows with both labels",
    "one label per row",
    Action.DROP_ROW,
    "all of them are dropped (never from test)",
)
def contradictory_row(split: Split) -> Iterator[Fault]:
    """Examples that equal one with the other label."""
    rows = split.equal_rows.filter(CONTRADICTORY & pl.col("click").is_not_null())
    labels = rows.group_by("row_key").agg(ones=pl.col("click").cast(pl.Int64).sum(), n=pl.len().cast(pl.Int64))
    found = (labels["ones"] * (labels["n"] - labels["ones"])).sum()
    expected = split.expected_pairs(differing=True)
    other = pl.when(pl.col("click") == 1).then("first_0").otherwise("first_1")
    text = "equals row {} (item {}, label {} and {})"
    value = pl.format(text, other, pl.col("target").fill_null(-1), "click", 1 - pl.col("click"))
    yield Fault(
        LABEL,
        rows.select("row", "id", value=value),
        severity=_severity(found, expected),
        expected=f"at most some {expected:.1f} pairs by coincidence",
    )


@check(
    Split,
    "duplicate-row",
    WARNING,
    "rows equal to an earlier one",
    "every row once",
    Action.DROP_ROW,
    "the later row is dropped (never from test)",
)
def duplicate_row(split: Split) -> Iterator[Fault]:
    """Examples that equal an earlier one, the label included."""
    rows = split.equal_rows.filter(~CONTRADICTORY)
    sizes = rows.group_by("row_key").agg(n=pl.len().cast(pl.Int64))["n"]
    expected = split.expected_pairs(differing=False)
    value = pl.format("equals row {} (item {})", "first", pl.col("target").fill_null(-1))
    yield Fault(
        ITEM_ID,
        rows.filter(pl.col("row") != pl.col("first")).select("row", "id", value=value),
        severity=_severity((sizes * (sizes - 1) / 2).sum(), expected),
        expected=f"at most some {expected:.1f} pairs by coincidence",
    )


@dataclass(frozen=True)
class SplitPair:
    """Two splits, the earlier one first."""

    earlier: Split
    later: Split
    id_name = USER_ID

    @property
    def file(self) -> str:
        """Name of the earlier file."""
        return self.earlier.file


@check(
    SplitPair,
    "shared-row",
    WARNING,
    "rows that are in a later split as well",
    "disjoint splits",
    Action.DROP_ROW,
    "dropped from the earlier split",
)
def shared_row(pair: SplitPair) -> Iterator[Fault]:
    """Examples that equal one of a later split, but for the label."""
    first = pair.later.rows.group_by("row_key").agg(other=pl.col("row").min())
    rows = pair.earlier.rows.join(first, on="row_key").sort("row")
    both = pair.earlier.history_counts.join(pair.later.history_counts, on="history_key", suffix="_later")
    expected = float((both["n"] * both["n_later"]).sum()) * _meeting(pair.earlier, pair.later)
    text = f"equals row {{}} of {pair.later.file} (item {{}})"
    yield Fault(
        ITEM_ID,
        rows.select("row", "id", value=pl.format(text, "other", pl.col("target").fill_null(-1))),
        severity=_severity(rows.height, expected),
        expected=f"at most some {expected:.1f} rows shared with {pair.later.file} by coincidence",
    )


@dataclass(frozen=True)
class Comparison:
    """A split and the earliest one, from which it should not differ much."""

    reference: Split
    split: Split
    id_name = USER_ID

    @property
    def file(self) -> str:
        """Name of the file that is judged."""
        return self.split.file

    def judge(
        self, column: str, histograms: Sequence[np.ndarray], text: str, most: float = PSI_MOST
    ) -> Iterator[Fault | Measure]:
        """Yield the PSI of a column's histograms ``(K,)`` of both, and a fault where it is large."""
        psi = population_stability(*histograms)
        yield Measure(("psi", f"{self.reference.name}-{self.split.name}", column), round(psi, 4))
        if psi > most and is_unlikely(*histograms):
            yield Fault(column, found=f"{text} (PSI {psi:.3f})")


def population_stability(reference: np.ndarray, other: np.ndarray) -> float:
    """Return the PSI of two histograms ``(K,)``.

    Examples
    --------
    >>> population_stability(np.array([10, 10]), np.array([20, 20]))
    0.0
    """
    from scipy.stats import entropy

    return float(entropy(reference + 0.5, other + 0.5) + entropy(other + 0.5, reference + 0.5))


def is_unlikely(reference: np.ndarray, other: np.ndarray) -> bool:
    """Whether two histograms ``(K,)`` of one distribution would seldom differ as much (chi-squared test)."""
    from scipy.stats import chi2_contingency

    table = np.stack([reference, other])[:, (reference + other) > 0]
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return False
    return float(chi2_contingency(table).pvalue) < UNLIKELY


def histograms(reference: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """Return histograms of two samples of integers; the bins hold a tenth of the first each, about."""
    edges = np.unique(np.quantile(reference, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    edges = edges[edges < max(reference.max(), other.max())]
    return [np.bincount(np.digitize(v, edges, right=True), minlength=len(edges) + 1) for v in (reference, other)]


@check(Comparison, "label-drift", WARNING, "another fraction of positives than in train", f"PSI of at most {PSI_LABEL}")
def label_drift(pair: Comparison) -> Iterator[Fault | Measure]:
    """A fraction of positives that changes."""
    both = pair.reference, pair.split
    if all(s.has_label for s in both):
        counts = [np.bincount(s.rows["click"].drop_nulls().to_numpy(), minlength=2) for s in both]
        then, now = (n[1] / n.sum() for n in counts)
        text = f"the fraction of positives is {now:.3f}, in {pair.reference.file} {then:.3f}"
        yield from pair.judge(LABEL, counts, text, PSI_LABEL)


@check(Comparison, "context-drift", WARNING, "another distribution of categories", f"PSI of at most {PSI_MOST}")
def context_drift(pair: Comparison) -> Iterator[Fault | Measure]:
    """Categories of a context column whose frequencies change."""
    for name in pair.reference.context:
        if name not in pair.split.context:
            continue
        tallies = pair.reference.context[name].tally, pair.split.context[name].tally
        if not all(tally.is_complete for tally in tallies):
            continue
        then, now = (tally.values for tally in tallies)
        both = then.join(now, on="value", how="full", coalesce=True, suffix="_now").fill_null(0).sort("value")
        if both.is_empty():
            continue
        counts = [both[column].to_numpy().astype(np.int64) for column in ("n", "n_now")]
        before, after = (n / max(n.sum(), 1) for n in counts)
        most = int(np.abs(before - after).argmax())
        text = f"{both['value'][most]:g} in {after[most]:.1%} of the rows, in {before[most]:.1%} of {pair.reference.file}"
        yield from pair.judge(name, counts, text)


@check(Comparison, "history-drift", WARNING, "another distribution of history lengths", f"PSI of at most {PSI_MOST}")
def history_drift(pair: Comparison) -> Iterator[Fault | Measure]:
    """Histories that become longer or shorter."""
    if pair.reference.has_history and pair.split.has_history:
        then, now = (s.rows["length"].to_numpy() for s in (pair.reference, pair.split))
        text = f"{now.mean():.1f} items on average, in {pair.reference.file} {then.mean():.1f}"
        yield from pair.judge(ITEM_SEQ, histograms(then, now), text)


@check(Comparison, "popularity-drift", WARNING, "another popularity of the targets", f"PSI of at most {PSI_MOST}")
def popularity_drift(pair: Comparison) -> Iterator[Fault | Measure]:
    """Targets that are more or less popular than those of training; cold ones are judged by themselves."""
    if pair.reference.name != "train":
        return
    then, now = (counts[counts > 0] for counts in map(pair.reference.popularity_of, (pair.reference, pair.split)))
    if then.size and now.size:
        text = (
            f"a median of {np.median(now):g} training rows per target that has any, "
            f"in {pair.reference.file} {np.median(then):g}"
        )
        yield from pair.judge(ITEM_ID, histograms(then, now), text)


@dataclass(frozen=True)
class Interactions:
    """All splits that could be read.

    Parameters
    ----------
    splits : mapping of str to Split
        In the order of time.
    items : list of ItemFile
        The item files; none where a split could not be read, which may show items.
    shown : KnownItems
        Which items the splits show.
    """

    splits: Mapping[str, Split]
    items: Sequence[ItemFile]
    shown: KnownItems
    file = ""
    id_name = ITEM_ID

    @cached_property
    def cold_fractions(self) -> dict[str, float]:
        """Fraction of targets without a training row, by split after train; empty without train."""
        if "train" not in self.splits:
            return {}
        train, *others = self.splits.values()
        return {split.name: float((train.popularity_of(split) == 0).mean()) for split in others}

    @property
    def without_history(self) -> dict[str, float]:
        """Fraction of examples whose history has no id, by split."""
        lengths = {name: split.rows["length"] for name, split in self.splits.items() if split.has_history}
        return {name: int((n == 0).sum()) / len(n) for name, n in lengths.items()}


@check(Interactions, "unused-item", INFO, "items that no interaction shows", "items that are shown or in a history")
def unused_item(interactions: Interactions) -> Iterator[Fault]:
    """Items that are neither target nor in a history, in the first item file."""
    for item in interactions.items[:1]:
        rows = np.flatnonzero(np.isin(item.ids, interactions.shown.never_shown()))
        yield Fault(ITEM_ID, item.rows(rows, item.ids[rows]), file=item.file)


@check(
    Interactions,
    "cold-targets",
    WARNING,
    "targets without a training row",
    f"a fraction of at most {COLD_MOST}, as large in test",
)
def cold_targets(interactions: Interactions) -> Iterator[Fault]:
    """Targets that no training row shows, where they are many, or more or fewer in test than in valid."""
    fractions = interactions.cold_fractions
    for name, fraction in fractions.items():
        if fraction > COLD_MOST:
            found = f"{fraction:.1%} of the targets are in no row of train"
            yield Fault(ITEM_ID, found=found, file=f"{name}.parquet")
    if len(fractions) == 2 and abs(fractions["valid"] - fractions["test"]) > COLD_DIFFERENCE:
        found = f"{fractions['test']:.1%} of the targets are in no row of train, in valid {fractions['valid']:.1%}"
        yield Fault(ITEM_ID, found=found, file="test.parquet")


def check_interactions(layout: Layout, report: Report, verbose: int = 0) -> Interactions:
    """Check all splits, each by itself and against the others."""
    known = KnownItems(layout.items[0].known if layout.items else np.empty(0, np.int64))
    splits: dict[str, Split] = {}
    # Later splits first: a click of theirs must not be in an earlier history.
    for name in reversed(layout.splits):
        path = layout.splits[name]
        with report.reading(path):
            split = read_split(path, known, list(splits.values()), layout, report, verbose)
            if split is not None:
                splits[name] = split
    splits = {name: splits[name] for name in SPLITS if name in splits}
    ordered = list(splits.values())
    for index, split in enumerate(ordered):
        for later in ordered[index + 1 :]:
            report.examine(SplitPair(split, later))
    for split in ordered[1:]:
        report.examine(Comparison(ordered[0], split))
    interactions = Interactions(splits, layout.items if len(splits) == len(layout.splits) else [], known)
    report.examine(interactions)
    return interactions
