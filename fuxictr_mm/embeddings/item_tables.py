"""Reading columns of item files: Parquet, and the CSV or JSON lines files that titles often come in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from fuxictr_mm.data import parquet
from fuxictr_mm.data.ids import Numbering
from fuxictr_mm.encoding import text_files
from fuxictr_mm.encoding.text_encodings import UTF8, Encoding
from fuxictr_mm.errors import MissingFileError
from fuxictr_mm.files import StrPath


def table_files(path: StrPath) -> list[Path]:
    """Return a CSV or JSON lines file, or the files of ``parquet.part_files``."""
    if not text_files.is_text(Path(path)) or Path(path).is_dir():
        return parquet.part_files(path)
    if not Path(path).is_file():
        raise MissingFileError(f"{path}: no such file")
    return [Path(path)]


def names_of(file: Path, encoding: Encoding = UTF8) -> list[str]:
    """Return the names of the columns of a file."""
    return list(text_files.schema_of(file, encoding)) if text_files.is_text(file) else parquet.schema_of(file).names


def read_items(
    path: StrPath,
    columns: Sequence[str],
    numbering: Numbering,
    max_rows: int = parquet.CHUNK_ROWS,
    encoding: Encoding = UTF8,
) -> Iterator[tuple[Path, int, np.ndarray, pa.RecordBatch]]:
    """Yield file, first row, items ``(n,)`` int64 (0 is padding) and columns of an item file, chunk by chunk.

    Raises
    ------
    DataError, MissingFileError
        A column that is missing, an id that is none, or a file that cannot be read.
    """
    for file in table_files(path):
        key = numbering.key(names_of(file, encoding))
        for row, batch in read_table(file, [key, *columns], key, max_rows, encoding):
            yield file, row, numbering.numbers(batch.column(key), f"{file}: {key}", row), batch


def read_table(
    file: Path,
    columns: Sequence[str],
    key: str,
    max_rows: int = parquet.CHUNK_ROWS,
    encoding: Encoding = UTF8,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield ``(first row, record batch)`` of columns of a file.

    Columns of CSV files are texts, but for the ``key`` where all of its values are integers.

    Raises
    ------
    DataError
        A column that is missing, or a file that cannot be read.
    """
    if not text_files.is_text(file):
        yield from parquet.read_chunks(file, columns, max_rows=max_rows)
        return
    parquet.require_columns(file, names_of(file, encoding), columns)
    with text_files.scanned(file, encoding=encoding) as rows:
        frame = rows.select(columns).collect()
    if key in columns and frame[key].dtype == pl.String:
        frame = frame.with_columns(_as_integers(frame[key]))
    row = 0
    for batch in frame.to_arrow().to_batches(max_chunksize=max_rows):
        yield row, batch
        row += batch.num_rows


def _as_integers(ids: pl.Series) -> pl.Series:
    """Return texts of integers as integers; as they are with one such as 007, which may be a text of digits."""
    if ids.str.contains(r"^(0|-?[1-9]\d*)$").all():
        for kind in (pl.Int64, pl.UInt64):
            numbers = ids.cast(kind, strict=False)
            if numbers.null_count() == ids.null_count():
                return numbers
    return ids
