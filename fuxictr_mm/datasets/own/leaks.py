"""Columns of a log that say what the label is: they are known only after the click."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from fuxictr_mm.datasets.own.columns import Column

#: Numbers are compared in so many bins of as many rows.
BINS = 5

#: Probability below which it is no chance that all rows of a value are positive.
CHANCE = 1e-9


def find_leaks(rows: pl.DataFrame, columns: Sequence[Column], label: str) -> Iterator[tuple[Column, int]]:
    """Yield columns with a value whose rows are all positive, more than chance explains, and the number of these rows.

    Values that all rows of no click have are no such sign: what is shown at the end of a page is seldom clicked.
    """
    rows = rows.filter(pl.col(label).is_not_null())
    rate = float(rows[label].mean() or 0)  # type: ignore[arg-type]
    for column in columns:
        value = column.values()
        if column.kind == "numeric":
            value = (value.rank() * BINS / pl.len()).ceil()
        counts = rows.group_by(value.alias("value")).agg(rows=pl.len(), positive=(pl.col(label) == 1).sum())
        most = counts.filter(pl.col("rows") == pl.col("positive"))["rows"].max()
        if isinstance(most, int) and rate**most < CHANCE:
            yield column, most
