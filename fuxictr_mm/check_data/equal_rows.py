"""Equal rows: in one split, with one label or both, and in two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from fuxictr_mm.check_data.checks import WARNING, Action, Fault, check
from fuxictr_mm.check_data.chunks import Chunk, fault_of
from fuxictr_mm.check_data.splits import Split, SplitPair, severity_of_excess
from fuxictr_mm.check_data.translation import LABEL
from fuxictr_mm.data.schema import ITEM_ID


def with_keys(chunk: Chunk, others: Sequence[str]) -> pl.DataFrame:
    """Return the columns of ``Split.rows`` but for the time; ``others`` are columns that equal rows share."""
    history = pl.col("history").list.eval(pl.element().fill_null(-1)).hash()
    rows = chunk.rows.select("row", "user", "target", "click", "length", history_key=pl.struct("user", history).hash())
    keys = [_comparable(chunk.raw[name]).alias(f"other {name}") for name in sorted(others)]
    key = pl.struct("history_key", "target", *(column.name for column in keys)).hash()
    return rows.with_columns(rows.with_columns(keys).select(row_key=key).to_series())


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


_CONTRADICTORY = pl.col("first_0").is_not_null() & pl.col("first_1").is_not_null()


@check(Split, WARNING, "one label per row", Action.DROP_ROW, "all of them are dropped (never from test)")
def contradictory_row(split: Split) -> Iterator[Fault]:
    """Equal rows with both labels."""
    rows = split.equal_rows.filter(_CONTRADICTORY & pl.col("click").is_not_null())
    labels = rows.group_by("row_key").agg(ones=pl.col("click").cast(pl.Int64).sum(), n=pl.len().cast(pl.Int64))
    found = (labels["ones"] * (labels["n"] - labels["ones"])).sum()
    expected = _expected_pairs(split, differing=True)
    others = rows.select("target", "click", other=pl.when(pl.col("click") == 1).then("first_0").otherwise("first_1"))
    items = split.translation.names_of(others["target"])
    texts = [
        f"equals row {row} (item {item}, label {label} and {1 - label})"
        for item, (label, row) in zip(items, others.select("click", "other").iter_rows(), strict=True)
    ]
    expected_text = f"at most some {expected:.1f} pairs by coincidence"
    yield fault_of(split.file, LABEL, rows, texts, severity=severity_of_excess(found, expected), expected=expected_text)


@check(Split, WARNING, "every row once", Action.DROP_ROW, "the later row is dropped (never from test)")
def duplicate_row(split: Split) -> Iterator[Fault]:
    """Rows equal to an earlier one."""
    rows = split.equal_rows.filter(~_CONTRADICTORY)
    sizes = rows.group_by("row_key").agg(n=pl.len().cast(pl.Int64))["n"]
    expected = _expected_pairs(split, differing=False)
    severity = severity_of_excess((sizes * (sizes - 1) / 2).sum(), expected)
    later = rows.filter(pl.col("row") != pl.col("first"))
    items = split.translation.names_of(later["target"])
    texts = [f"equals row {row} (item {item})" for row, item in zip(later["first"], items, strict=True)]
    expected_text = f"at most some {expected:.1f} pairs by coincidence"
    yield fault_of(split.file, ITEM_ID, later, texts, severity=severity, expected=expected_text)


@check(SplitPair, WARNING, "disjoint splits", Action.DROP_ROW, "dropped from the earlier split")
def shared_row(pair: SplitPair) -> Iterator[Fault]:
    """Rows that are also in a later split."""
    name = pair.later.file
    first = pair.later.rows.group_by("row_key").agg(other=pl.col("row").min())
    rows = pair.earlier.rows.join(first, on="row_key").sort("row")
    expected = _pairs(pair.earlier.history_counts, pair.later.history_counts) * _meeting(pair.earlier, pair.later)
    severity = severity_of_excess(rows.height, expected)
    items = pair.earlier.translation.names_of(rows["target"])
    texts = [f"equals row {row} of {name} (item {item})" for row, item in zip(rows["other"], items, strict=True)]
    expected_text = f"at most some {expected:.1f} rows shared with {name} by coincidence"
    yield fault_of(pair.earlier.file, ITEM_ID, rows, texts, severity=severity, expected=expected_text)


def _pairs(counts: pl.DataFrame, others: pl.DataFrame) -> float:
    """Return how many pairs of examples have the same value."""
    both = counts.join(others, on=counts.columns[0], suffix="_other")
    return float((both["n"] * both["n_other"]).sum())


def _meeting(split: Split, other: Split) -> float:
    """Return the probability that an example of each shows the same item."""
    return _pairs(split.target_counts, other.target_counts) / (split.rows.height * other.rows.height)


def _expected_pairs(split: Split, differing: bool) -> float:
    """Return how many pairs of equal examples to expect, with different labels or with the same.

    Were items met independently: the pairs with the same user and history, times the probability of the same item.
    """
    n = split.history_counts["n"]
    pairs = float((n * (n - 1) / 2).sum()) * _meeting(split, split)
    rate = int(split.rows["click"].sum()) / max(split.rows["click"].count(), 1)
    differ = 2 * rate * (1 - rate)
    return pairs * (differ if differing else 1 - differ)
