"""Embeddings of items from Parquet files of ids and lists of numbers, or from an array and the ids of its rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from fuxictr_mm.data import parquet
from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.encoding.text_files import Encoding
from fuxictr_mm.errors import ConfigError, DataError, first_line

#: Embeddings read at a time.
CHUNK_ITEMS = 8192


def vector_columns(path: Path, item: str, taken: Collection[str]) -> list[str]:
    """Return the columns of lists of numbers of a Parquet file."""
    if path.suffix.lower() == ".npy":
        raise ConfigError(
            f"--embeddings {path}: an array without the ids of its rows; add them: {path.name}:ids.csv, with a row "
            f"for each and the column {item}, or {path.name}:ids.npy"
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
    """Yield item ids and their embeddings; items whose embedding is null or zero (no image) are left out."""
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
        yield numbers.cast(ids), lists.explode(**EMPTY_AS_NULL).to_numpy().reshape(-1, width)


def read_array(
    path: Path, of_rows: Path, item: str, scratch: Path, ids: pl.DataType, encoding: Encoding
) -> Iterator[tuple[pl.Series, np.ndarray]]:
    """Yield item ids and their embeddings, of an array ``(items, dims)`` in a ``.npy`` file and the ids of its rows.

    Rows of zeros are left out. ``of_rows`` is a table with the column ``item``, or an array ``(items,)``, in the order
    of the rows.
    """
    values = _load(path)
    if of_rows.suffix.lower() == ".npy":
        array = _load(of_rows)
        if array.ndim != 1 or array.dtype.kind not in "iuU":
            raise DataError(f"{of_rows}: holds {array.dtype} of shape {array.shape}, expected the ids of the rows")
        found = pl.Series(array)
    else:
        table = Table([of_rows], scratch, f"{path.stem}-ids", (item,), encoding=encoding)
        table.check(item, f"--roles target={item}")
        found = table.frame.select(item).collect().to_series()
    if values.ndim != 2 or len(values) != len(found) or values.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: holds {values.dtype} of shape {values.shape}, expected numbers of shape ({len(found)}, dims), a "
            f"row for each row of {of_rows}"
        )
    numbers = (found.str.strip_chars() if found.dtype == pl.String else found).cast(ids)
    for first in range(0, len(values), CHUNK_ITEMS):
        part = np.asarray(values[first : first + CHUNK_ITEMS], dtype=np.float32)
        if len(wrong := np.flatnonzero(~np.isfinite(part).all(axis=1))):
            raise DataError(f"{path}: row {first + wrong[0]} holds a number that is not finite; correct it, or write 0")
        kept = np.flatnonzero(part.any(axis=1))
        if len(kept):
            yield numbers[first : first + len(part)].gather(kept), part[kept]


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as .npy ({first_line(error)})") from None
