"""Embeddings of items from Parquet files of ids and lists of numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from fuxictr_mm.data import parquet
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError, DataError

#: Embeddings read at a time.
CHUNK_ITEMS = 8192


def vector_columns(path: Path, item: str, taken: Collection[str]) -> list[str]:
    """Return the columns of lists of numbers of a Parquet file.

    Raises
    ------
    ConfigError
        There is no such column, its name is taken, or the column of the item is missing.
    """
    if path.suffix.lower() == ".npy":
        raise ConfigError(
            f"--embeddings {path}: an array without the ids of its rows; write both as Parquet: "
            f'pl.DataFrame({{"{item}": ids, "vector": np.load("{path.name}")}}).write_parquet("{path.stem}.parquet")'
        )
    if path.suffix.lower() not in parquet.SUFFIXES:
        raise ConfigError(
            f"--embeddings {path}: expected a Parquet file with the column {item} and a column of lists of numbers"
        )
    table = Table([path], path.parent, "embeddings")
    table.check(item, f"--roles target={item}")
    lists = {name: kind for name, kind in table.schema.items() if isinstance(kind, pl.List | pl.Array)}
    names = [name for name, kind in lists.items() if kind.inner is not None and kind.inner.is_numeric()]
    if not names:
        raise ConfigError(f"--embeddings {path}: no column is a list of numbers (it has: {', '.join(table.schema)})")
    twice = next((name for name in names if name in taken), None)
    if twice is not None:
        raise ConfigError(f"--embeddings {path}: another file also has the column '{twice}'; rename one")
    return names


def read_vectors(path: Path, item: str, column: str, ids: pl.DataType) -> Iterator[tuple[pl.Series, np.ndarray]]:
    """Yield item ids and their embeddings; items whose embedding is null or zero (no image) are left out.

    Raises
    ------
    DataError
        Embeddings of several lengths, or with a number that is null or not finite.
    """
    width, row = 0, 0
    for batch in pq.ParquetFile(path).iter_batches(CHUNK_ITEMS, columns=[item, column]):
        frame = pl.DataFrame(batch).with_row_index(":row", row).drop_nulls()
        row += batch.num_rows
        if not len(frame):
            continue
        lists = frame[column].cast(pl.List(pl.Float32))
        width = width or int(lists.list.len()[0])
        finite = lists.list.eval(pl.element().is_finite().fill_null(False)).list.all()
        wrong = ((lists.list.len() != width) | ~finite).arg_true()
        if len(wrong):
            raise DataError(f"{path}: row {frame[':row'][wrong[0]]}: {column} is not {width} finite numbers, as before")
        is_zero = lists.list.eval(pl.element() == 0).list.all()
        frame, lists = frame.filter(~is_zero), lists.filter(~is_zero)
        if not len(frame):
            continue
        numbers = frame[item].str.strip_chars() if frame[item].dtype == pl.String else frame[item]
        yield numbers.cast(ids), lists.explode().to_numpy().reshape(-1, width)
