"""Checks of columns of numbers: tags and levels of items, context of interactions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import polars as pl
import pyarrow as pa

from fuxictr_mm.check_data.arrays import to_series
from fuxictr_mm.check_data.checks import ERROR, INFO, WARNING, Action, Fault, check
from fuxictr_mm.check_data.files import DataFile
from fuxictr_mm.check_data.layout import RARE
from fuxictr_mm.check_data.translation import USER_ID
from fuxictr_mm.data.arrow_types import is_list
from fuxictr_mm.data.decoding import MAX_IDS
from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.data.numbers import Moments
from fuxictr_mm.data.schema import ITEM_ID

#: An outlier lies above a gap of so many times the range of the values below it, of which there are at least so many.
GAP, LEAST_BELOW = 10, 20
#: Integers that leave out half of those in their range, and are more than that, are a measure.
LEAST_MEASURED = 50
#: With more distinct values than that, a context column is a measure: it has no outliers and no categories.
MOST_CATEGORIES = 1000


@dataclass
class Tally:
    """Counts of the numbers of a column, chunk by chunk."""

    #: Whether it holds floating-point numbers.
    floating: bool
    #: Distinct integers to count; a column with more has no outliers and no categories.
    most: int
    count: int = 0
    #: The fractions and the negative ones are among the finite numbers, and so are the bounds.
    finite: int = 0
    fractions: int = 0
    negative: int = 0
    lowest: float = np.inf
    highest: float = -np.inf
    #: ``value`` (a distinct integer, as a float) and ``n``, how often it occurs.
    moments: Moments = field(default_factory=Moments)
    values: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema={"value": pl.Float64, "n": pl.UInt32}))

    def add(self, numbers: pl.Series) -> None:
        """Count numbers, given as floats; NaN and null are none."""
        finite = numbers.filter(numbers.is_finite().fill_null(False))
        integers = finite.filter(finite == finite.floor())
        self.count += len(numbers)
        self.finite += len(finite)
        self.fractions += len(finite) - len(integers)
        self.negative += int((finite < 0).sum())
        self.lowest = min([self.lowest, *finite.bottom_k(1)])
        self.highest = max([self.highest, *finite.top_k(1)])
        self.moments.add(Moments.of(finite.to_numpy()))
        if self.is_complete:
            more = integers.alias("value").value_counts(name="n")
            self.values = pl.concat([self.values, more]).group_by("value").agg(pl.col("n").sum())

    @property
    def is_complete(self) -> bool:
        """Whether all distinct integers are counted."""
        return self.values.height <= self.most

    @property
    def holds_integers(self) -> bool:
        """Whether this is a column of integers."""
        return not self.floating or (self.finite > 0 and self.fractions <= RARE * self.finite)

    @property
    def is_signed(self) -> bool:
        """Whether negative numbers are common; many -1 alone are a code for "unknown" rather than numbers."""
        return self.negative > RARE * self.finite and self.lowest < -1

    @property
    def is_measure(self) -> bool:
        """Whether this is a measure, such as a price or a count, rather than ids: those leave few integers out."""
        if not self.holds_integers or self.is_signed or not self.is_complete:
            return True
        distinct = self.values.height
        return LEAST_MEASURED < distinct < 0.5 * (self.highest - self.lowest) and self.first_outlier(0) is None

    def first_outlier(self, least: float) -> float | None:
        """Return the smallest outlier among the integers from ``least`` on."""
        if not self.holds_integers or not self.is_complete:
            return None
        values = self.values.filter(pl.col("value") >= least).sort("value")
        return first_outlier(values["value"].to_numpy(), values["n"].to_numpy())


def first_outlier(values: np.ndarray, counts: np.ndarray) -> float | None:
    """Return the smallest outlier among distinct sorted values ``(K,)``, by how often each occurs, or None.

    Examples
    --------
    >>> first_outlier(np.array([0, 5, 10, 99999]), np.array([30, 30, 30, 1]))
    99999.0
    >>> first_outlier(np.array([0, 5, 10, 30]), np.array([30, 30, 30, 1])) is None
    True
    """
    if len(values) < 3:  # a single value below the gap has no range
        return None
    exact = values.astype(np.float64)
    above = np.cumsum(counts[::-1], dtype=np.int64)[::-1]
    gaps, ranges = np.diff(exact), exact[:-1] - exact[0] + 1
    rare = above[1:] <= max(1, RARE * above[0])
    enough = above[0] - above[1:] >= LEAST_BELOW
    outliers = np.flatnonzero((gaps > GAP * ranges) & rare & enough)
    outliers = outliers[outliers > 0]
    return float(exact[outliers[0] + 1]) if outliers.size else None


@dataclass
class NumberColumn:
    """A column of numbers, or of lists of ids, in a file; ``ids`` are those of the item or user of every row.

    ``is_category`` says that a configuration takes its numbers for ids.
    """

    source: DataFile
    column: pa.Field
    ids: pl.Series
    is_category: bool = field(default=False, kw_only=True)

    id_name: ClassVar[str]

    @property
    def in_lists(self) -> bool:
        """Whether it holds lists of ids."""
        return is_list(self.column.type)

    def chunks(self) -> Iterator[pl.DataFrame]:
        """Yield ``row``, the id, ``value`` and ``number`` (a float) of every number, chunk by chunk."""
        for row, batch in self.source.chunks([self.column.name]):
            values = to_series(batch.column(0))
            ids = self.ids.slice(row, len(values))
            chunk = pl.DataFrame({self.id_name: ids, "value": values}).with_row_index("row", row)
            if self.in_lists:
                chunk = chunk.filter(pl.col("value").list.len() > 0).explode("value", **EMPTY_AS_NULL)
            yield chunk.with_columns(number=pl.col("value").cast(pl.Float64))

    @cached_property
    def tally(self) -> Tally:
        """The counts of the column."""
        kind = self.column.type.value_type if self.in_lists else self.column.type
        tally = Tally(pa.types.is_floating(kind), MAX_IDS)
        for chunk in self.chunks():
            tally.add(chunk["number"])
        return tally

    def faults(self, condition: pl.Expr, **texts: str) -> Iterator[Fault]:
        """Yield the numbers where a condition holds."""
        for chunk in self.chunks():
            rows = chunk.filter(condition).select("row", self.id_name, "value")
            yield Fault(self.source.file, self.column.name, rows, **texts)

    def bad_numbers(self) -> Iterator[Fault]:
        """Yield the numbers that no model can read; milder, those that only a numeric feature can be."""
        tally, number = self.tally, pl.col("number")
        finite = number.is_finite().fill_null(False)
        bad = ~(finite & number.is_between(0, MAX_IDS - 1)) if self.in_lists else ~finite
        if tally.finite < tally.count or (self.in_lists and (tally.negative or tally.highest >= MAX_IDS)):
            yield from self.faults(bad)
        if not tally.holds_integers:
            return
        if tally.negative and not self.in_lists and not tally.is_signed:
            found = "a few negative numbers, which a categorical column cannot hold"
            yield from self.faults(finite & (number < 0), found=found, severity=WARNING)
        if tally.fractions:
            found = "fractions in a column of integers"
            yield from self.faults(~bad & (number != number.floor()), found=found, severity=WARNING)

    def outliers(self) -> Iterator[Fault]:
        """Yield the integers that are outliers; an id that is too large to be any is a fault of another kind."""
        first = self.tally.first_outlier(1 if self.in_lists else 0)  # 0 is padding in a list
        if first is not None:
            number = pl.col("number")
            last = MAX_IDS - 1 if self.in_lists else float(np.finfo(np.float64).max)
            yield from self.faults(number.is_between(first, last) & (number == number.floor()))

    def unscaled(self) -> Iterator[Fault]:
        """Yield a column of a measure, if it is far from mean 0 and standard deviation 1."""
        tally = self.tally
        if not self.in_lists and not self.is_category and tally.is_measure and tally.moments.is_unscaled:
            yield Fault(self.source.file, self.column.name, found=tally.moments.describe())


class ItemColumn(NumberColumn):
    """A column of an item file; the padding item is left out."""

    id_name = ITEM_ID

    def chunks(self) -> Iterator[pl.DataFrame]:  # noqa: D102
        return (chunk.filter(pl.col(ITEM_ID) != 0) for chunk in super().chunks())


@dataclass
class ContextCounts:
    """The counts of all columns of a split that are neither ids, histories nor labels, from one pass over its files."""

    source: DataFile
    columns: list[pa.Field]

    @cached_property
    def tallies(self) -> dict[str, Tally]:
        """The counts of each column."""
        found = {c.name: Tally(pa.types.is_floating(c.type), MOST_CATEGORIES) for c in self.columns}
        for _, batch in self.source.chunks(list(found)):
            for name, array in zip(found, batch.columns, strict=True):
                found[name].add(to_series(array).cast(pl.Float64))
        return found


@dataclass
class ContextColumn(NumberColumn):
    """A column of a split that is neither id, history nor label."""

    counts: ContextCounts

    id_name = USER_ID

    @cached_property
    def tally(self) -> Tally:  # noqa: D102
        return self.counts.tallies[self.column.name]


@check(ItemColumn, ERROR, "integers from 0", Action.DROP_ENTRY, "removed from a list, else set to 0")
def bad_item_value(column: ItemColumn) -> Iterator[Fault]:
    """Null or infinite numbers, or negative or too large ids."""
    return column.bad_numbers()


@check(
    ItemColumn, WARNING, "numbers in the range of the others", Action.DROP_ENTRY, "removed from a list, else set to 0"
)
def item_value_outlier(column: ItemColumn) -> Iterator[Fault]:
    """Numbers that are outliers of the column."""
    return column.outliers()


@check(ContextColumn, ERROR, "finite numbers, from 0 in a categorical column", Action.DROP_ROW)
def bad_context(column: ContextColumn) -> Iterator[Fault]:
    """Null or infinite context values."""
    return column.bad_numbers()


@check(ContextColumn, WARNING, "values in the range of the others", Action.DROP_ROW)
def context_outlier(column: ContextColumn) -> Iterator[Fault]:
    """Context values that are outliers."""
    return column.outliers()


SCALED = (
    "mean near 0 and standard deviation near 1: set normalizer: StandardScaler in feature_cols, or "
    "write the logarithm of a long tail"
)


@check(ItemColumn, INFO, SCALED)
def unscaled_item_number(column: ItemColumn) -> Iterator[Fault]:
    """Numbers of a measure far from mean 0 and standard deviation 1."""
    return column.unscaled()


@check(ContextColumn, INFO, SCALED)
def unscaled_context(column: ContextColumn) -> Iterator[Fault]:
    """Numbers of a measure in the training split far from mean 0 and standard deviation 1."""
    if column.source.name == "train":
        yield from column.unscaled()
