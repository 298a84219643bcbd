"""Columns of a log that leak the label: known only after the click, or copied from the clicked item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from fuxictr_mm.datasets.own.columns import LogColumn

#: Numbers are compared in so many bins of as many rows.
BINS = 5

#: Significance level for all rows of a value having one label.
CHANCE = 1e-9

#: A value is seldom clicked for many reasons, such as the end of a page, but seldom below this fraction of the rate.
SELDOM = 0.1

#: What is known before the click, such as a position or a price, seldom ranks rows with such an AUC; so many rows of
#: each label measure it.
RANKS, RANKED_ROWS = 0.8, 100

#: A column is one of the item if this fraction of its variance is between items, and is measured in so many rows of
#: items that have others.
BETWEEN, BETWEEN_ROWS = 0.5, 30


def find_leaks(
    rows: pl.DataFrame, columns: Sequence[LogColumn], label: str
) -> Iterator[tuple[LogColumn, int, str, int]]:
    """Yield columns with a value whose rows all have one label, their number, that value, and the label.

    Of numbers it is the range of a bin. There are more such rows than chance explains; for rows with label 0 also if
    the value had a tenth of the rate of all rows.
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
        for only, chance in ((1, rate), (0, 1 - SELDOM * rate)):
            found = counts.filter(pl.col("positive") == only * pl.col("rows")).sort("rows", "value").tail(1)
            if len(found) and chance ** found["rows"][0] < CHANCE:
                value, number, _, least, most = found.row(0)
                is_range = column.kind == "numeric" and least is not None
                yield column, number, f"from {least:g} to {most:g}" if is_range else repr(value), only
                break


def find_ranking(rows: pl.DataFrame, columns: Sequence[LogColumn], label: str) -> Iterator[tuple[LogColumn, float]]:
    """Yield columns of numbers that alone rank the rows by their label, and the AUC in the better direction."""
    for column in columns:
        if column.kind != "numeric":
            continue
        known = rows.select(rank=column.values().cast(pl.Float64), label=pl.col(label)).drop_nulls()
        is_positive = pl.col("label") == 1
        ranked = known.with_columns(pl.col("rank").rank())
        positives, total = ranked.select(is_positive.sum(), pl.col("rank").filter(is_positive).sum()).row(0)
        negatives = len(ranked) - positives
        if min(positives, negatives) < RANKED_ROWS:
            continue
        auc = (total - positives * (positives + 1) / 2) / (positives * negatives)
        if max(auc, 1 - auc) >= RANKS:
            yield column, max(auc, 1 - auc)


def of_items(rows: pl.DataFrame, columns: Sequence[LogColumn]) -> Iterator[tuple[LogColumn, float]]:
    """Yield columns that describe the item, and the fraction of their variance that is between items.

    A price varies with discounts, but two rows of an item have nearly the same. The variance of a number is that of its
    ranks; that of a category is the probability that two rows differ. Both are estimated without bias, so that the
    fraction of a column that has nothing to do with the item is about 0.
    """
    rows = rows.filter(pl.len().over(":item") > 1)
    again = len(rows) - rows[":item"].n_unique()
    for column in columns:
        value, number = pl.col("value"), pl.col("number")
        frame = rows.select(":item", column.values().alias("value"))
        counts = frame.group_by(":item", "value").agg(number=pl.len().cast(pl.Float64))
        frequencies = counts.group_by("value").agg(number.sum() / len(rows))
        same = float((frequencies["number"] ** 2).sum())  # the probability that two rows are equal
        if not again or same == 1:
            continue
        if column.kind == "numeric":
            frame = frame.with_columns(value.rank().fill_null(0))
            total = float(frame["value"].var())  # type: ignore[arg-type]
            parts = frame.group_by(":item").agg(part=pl.len() * value.var())
        else:
            total = (1 - same) * len(rows) / (len(rows) - 1)
            size = number.sum().over(":item")
            parts = counts.select(part=number * (size - number) / (size - 1))
        between = 1 - float(parts["part"].sum()) / len(rows) / total
        if same**again < CHANCE if between == 1 else between >= BETWEEN and again >= BETWEEN_ROWS:
            yield column, between
