"""Checks of item files: their ids, the padding, and all of their columns of numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from fuxictr_mm.check_data.checks import ERROR, WARNING, Action, Fault, Report, check
from fuxictr_mm.check_data.layout import ItemFile, Layout
from fuxictr_mm.check_data.number_columns import ItemColumn, first_outlier
from fuxictr_mm.data.schema import ITEM_ID


@check(ItemFile, ERROR, "one row per item", Action.DROP_ROW, "later rows are dropped")
def duplicate_item(item: ItemFile) -> Iterator[Fault]:
    """Items with more than one row."""
    ids = pl.Series(item.ids)
    yield item.fault(ITEM_ID, (~ids.is_first_distinct() & (ids >= 0)).arg_true().to_numpy())


@check(ItemFile, WARNING, "a row for every item")
def partial_item(item: ItemFile) -> Iterator[Fault]:
    """Items of other files without a row in this one."""
    missing = pl.DataFrame({ITEM_ID: np.setdiff1d(item.known, item.ids)})
    yield Fault(item.file, ITEM_ID, missing.select(pl.lit(None).alias("row"), ITEM_ID, value=pl.lit(None)))


@check(ItemFile, WARNING, "ids numbered without large gaps")
def far_item_id(item: ItemFile) -> Iterator[Fault]:
    """Item ids that are outliers: tables are as long as the largest id."""
    first = first_outlier(*np.unique(item.ids[item.ids > 0], return_counts=True))
    if first is not None:
        yield item.fault(ITEM_ID, np.flatnonzero(item.ids >= first))


@check(ItemFile, ERROR, "zeros: id 0 is padding", Action.SET_ZERO, "set to zero")
def padding_row(item: ItemFile) -> Iterator[Fault]:
    """Row of item 0 that is not all zero."""
    names = item.numbers + item.embeddings
    padding = np.flatnonzero(item.ids == 0)
    for start, batch in item.chunks(names) if names and padding.size else ():
        if start > padding[-1]:
            return
        for row in padding[(padding >= start) & (padding < start + len(batch))]:
            for name in names:
                value = batch.column(name)[int(row - start)].as_py()
                if np.any(value):
                    yield item.fault(name, np.array([row]), [value])


def check_items(layout: Layout, report: Report) -> None:
    """Check the ids of all item files, and their numbers."""
    for item in layout.items:
        with report.reading(item.path):
            report.examine(item)
            for name in item.numbers if report.wants(ItemColumn) else ():
                is_category = name in layout.categories
                column = ItemColumn(item, item.schema.field(name), pl.Series(item.ids), is_category=is_category)
                report.examine(column)
