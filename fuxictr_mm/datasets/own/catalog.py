"""The items of a log, with what their table and an earlier log have of them."""

from __future__ import annotations

import logging

import polars as pl

from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.datasets.own.columns import LogColumn, split_lists
from fuxictr_mm.datasets.own.source import LogSource
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import DataError

logger = logging.getLogger(__name__)

#: Fewer of the items of given histories than this fraction being targets is warned of.
TARGETS = 0.1


def seen_items(source: LogSource) -> pl.Series:
    """Return the items of the log: its targets, then those that are only in the histories that it has."""
    column, rows = source.asked.history, pl.scan_parquet(source.path)
    targets = rows.select(":item").unique(maintain_order=True).collect(engine="streaming")[":item"]
    if column is None:
        return targets
    entries = rows.select(pl.col(":history").explode(**EMPTY_AS_NULL).alias(":item")).drop_nulls()
    others = entries.unique().sort(":item").collect(engine="streaming")[":item"]
    # 0 and an empty text pad histories, unless they are items.
    padding = pl.Series(["", "0"]) if others.dtype == pl.String else pl.Series([0], dtype=others.dtype)
    is_target = others.is_in(targets.implode())
    if len(others) and is_target.sum() < TARGETS * len(others):
        found = (
            f"{source.log.paths[0]}: {is_target.sum()} of {len(others)} items of {column}, such "
            f"as {others[0]!r}, occur in {source.asked.item}; both must hold the same ids"
        )
        if not is_target.any():
            raise DataError(f"{found}, or leave out --roles history={column}")
        logger.warning(found)
    return pl.concat([targets, others.filter(~is_target & ~others.is_in(padding.implode()))])


def find_missing(table: Table, column: str, rows: pl.DataFrame, seen: pl.Series, what: str) -> pl.Series:
    """Return the ids of the log that a table does not have; they are warned of."""
    missing = seen.filter(~seen.is_in(rows[column].implode()))
    if len(missing):
        count = f"{len(missing)} of {len(seen)} {what} of the log"
        found = f"{table.paths[0]}: {count} are missing, such as {missing[0]!r}"
        if len(missing) == len(seen):
            there = f", but it has {rows[column][0]!r}" if len(rows) else ", it has no rows"
            raise DataError(f"{found}{there}; {column} must hold the same ids in both")
        logger.warning(f"{found}; they are written without features")
    return missing


def item_rows(source: LogSource, table: Table) -> pl.DataFrame:
    """Return the table of items, texts of lists as lists."""
    return split_lists(source.ids.rows(table, "target"), source.written("items"))


def continued_items(source: LogSource, before: pl.DataFrame, seen: pl.Series) -> pl.DataFrame:
    """Return the items of an earlier log, then new ones of the table, then new ones that are only in the log.

    The features of the table count, also those of earlier items.
    """
    columns, features = source.written("items"), before
    parts = [before]
    if source.items is not None:
        rows = item_rows(source, source.items)
        rows = rows.select(pl.col(source.asked.item).alias("item_id"), *(column.values() for column in columns))
        _warn_of_lost(source, source.items, before.join(rows, on="item_id", suffix=":new"))
        parts = [rows, before.join(rows, on="item_id", how="anti")]
        features = pl.concat(parts)
    missing = seen.to_frame("item_id").join(features, on="item_id", how="anti")
    if len(missing) and columns:
        logger.warning(
            f"{source.log.paths[0]}: {len(missing)} new items are in no item file, such as "
            f"{missing['item_id'][0]!r}; they are written without features"
        )
    ids = pl.concat([before.select("item_id"), *(part.select("item_id") for part in parts), missing])
    order = ids.unique(maintain_order=True)
    return order.join(features, on="item_id", how="left", maintain_order="left")


def _warn_of_lost(source: LogSource, table: Table, both: pl.DataFrame) -> None:
    """Warn of features that earlier items lose; ``both`` has those of the earlier log, and new ones as ``NAME:new``."""
    assert source.base is not None
    for column in source.written("items"):
        had, has = (_is_there(column, name) for name in (column.name, f"{column.name}:new"))
        if count := both.select((had & ~has).sum()).item():
            logger.warning(
                f"{table.paths[0]}: {count} items that have a {column.source} in {source.base.folder} have none here "
                "and lose it; to keep it, write the value, or leave out the row"
            )


def _is_there(column: LogColumn, name: str) -> pl.Expr:
    """Whether an item has a value, of which another is written if it is missing."""
    if column.kind == "sequence":
        return (pl.col(name).list.len() > 0).fill_null(False)
    missing = {"numeric": 0.0, "text": ""}.get(column.kind)
    return pl.col(name).is_not_null() & (pl.lit(True) if missing is None else pl.col(name) != missing)
