"""Checks of the rows of a split one by one: ids, labels and entries of histories.

Shape letters: N ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from fuxictr_mm.check_data.arrays import as_id, to_series
from fuxictr_mm.check_data.checks import ERROR, WARNING, Action, Fault, check
from fuxictr_mm.check_data.files import DataFile
from fuxictr_mm.check_data.translation import LABEL, USER_ID
from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ


class KnownItems:
    """Known items, and items that occur in interactions, as tables by id.

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
        """Mark ids ``(N,)`` as used and return which of them are items; null is not an item."""
        index = ids.fill_null(0).to_numpy()
        index = np.where(index < len(self._known), index, 0)
        self._shown[index] = True
        return pl.Series(self._known[index]) if self.ids.size else (ids > 0).fill_null(False)

    def never_shown(self) -> np.ndarray:
        """Return the ids that occur in no interaction."""
        return self.ids[~self._shown[self.ids]]


@dataclass(frozen=True)
class Chunk:
    """Some examples of a split; invalid ids and labels are null."""

    #: The split, and its columns.
    split: DataFile
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
    def of(cls, split: DataFile, row: int, batch: pa.RecordBatch, items: KnownItems, lists: str = ITEM_SEQ) -> Chunk:
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
        entries = rows.select("row", "value").filter(pl.col("value").list.len() > 0).explode("value", **EMPTY_AS_NULL)
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
        return cls(split, raw, rows, entries, lists)

    def faults(self, column: str, condition: pl.Expr) -> Iterator[Fault]:
        """Yield the examples where a condition holds, whose ``value`` is that of the file, if it has the column."""
        if column in self.raw.columns:
            rows = self.rows.with_columns(value=self.raw[column]).filter(condition)
            yield fault_of(self.split.file, column, rows, pl.col("value"))


@dataclass(frozen=True)
class Histories:
    """A column of histories of a chunk, that of the role ``history`` or a further one."""

    chunk: Chunk


def fault_of(file: str, column: str, rows: pl.DataFrame, value: pl.Expr | list[str], **texts: str) -> Fault:
    """Return the fault of ``rows`` with ``row`` and ``user``, whose values are an expression of them or texts."""
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
    """Targets that are in no item file."""
    return chunk.faults(ITEM_ID, ~pl.col("known"))


@check(Histories, ERROR, "ids of the item files", Action.DROP_ENTRY)
def unknown_history(histories: Histories) -> Iterator[Fault]:
    """History ids that are in no item file."""
    chunk = histories.chunk
    yield fault_of(chunk.split.file, chunk.lists, chunk.entries.filter(~pl.col("known")), pl.col("value"))


@check(Histories, WARNING, "a list, empty or of padding", Action.SET_ZERO, "set to padding")
def null_history(histories: Histories) -> Iterator[Fault]:
    """Histories that are null."""
    return histories.chunk.faults(histories.chunk.lists, pl.col("value").is_null())


@check(Histories, WARNING, "padding at one end", Action.DROP_ENTRY, "the padding between ids is removed")
def inner_padding(histories: Histories) -> Iterator[Fault]:
    """Padding between real ids of a history."""
    chunk = histories.chunk
    rows = chunk.rows.filter(pl.col("span") != pl.col("length"))
    texts = [str(chunk.split.translation.names_of(history.drop_nulls())) for history in rows["history"]]
    yield fault_of(chunk.split.file, chunk.lists, rows, texts)
