"""Columns of a log that leak the label: known only after the click, or copied from the clicked item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from fuxictr_mm.datasets.own.columns import LogColumn

#: Numbers are compared in so many bins of as many rows.
BINS = 5

#: Significance level for all rows of a value being positive.
CHANCE = 1e-9


def find_leaks(rows: pl.DataFrame, columns: Sequence[LogColumn], label: str) -> Iterator[tuple[LogColumn, int, str]]:
    """Yield columns with a value whose rows are all positive, more than chance explains, their number, and that value.

    Of numbers it is the range of a bin.

    Values of only negative rows are not reported: items at the end of a page are seldom clicked.
    """
    rows = rows.filter(pl.col(label).is_not_null())
    rate = float(rows[label].mean() or 0)  # type: ignore[arg-type]
    for column in columns:
        value = column.values()
        if column.kind == "numeric":
            value = (value.rank() * BINS / pl.len()).ceil()
        held = pl.col(column.source)
        counts = rows.group_by(value.alias("value")).agg(
            rows=pl.len(), positive=(pl.col(label) == 1).sum(), least=held.min(), most=held.max()
        )
        found = counts.filter(pl.col("rows") == pl.col("positive")).sort("rows", "value").tail(1)
        for value, number, _, least, most in found.iter_rows():
            if rate**number < CHANCE:
                is_range = column.kind == "numeric" and least is not None
                yield column, number, f"from {least:g} to {most:g}" if is_range else repr(value)


def of_items(rows: pl.DataFrame, columns: Sequence[LogColumn]) -> Iterator[LogColumn]:
    """Yield columns of which all rows of an item have one value, and other items others, more than chance explains."""
    rows = rows.filter(pl.len().over(":item") > 1)
    again = len(rows) - rows[":item"].n_unique()
    for column in columns:
        pairs = rows.select(":item", column.values().alias("value")).group_by(":item", "value").len()
        counts = pairs.group_by("value").agg(pl.col("len").sum())["len"].to_numpy()
        is_chance = not len(rows) or float(((counts / len(rows)) ** 2).sum()) ** again >= CHANCE
        if not is_chance and len(pairs) == pairs[":item"].n_unique():
            yield column
