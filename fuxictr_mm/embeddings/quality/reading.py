"""Read damaged Parquet without stopping: chunks of rows, and columns as NumPy arrays beside what is wrong in them.

``fuxictr_mm.data.parquet`` raises at the first bad value; here bad values are what is looked for.

Shape letters: R rows of a chunk, N entries of all lists of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from fuxictr_mm.data.parquet import open_parquet
from fuxictr_mm.errors import DataError
from fuxictr_mm.training.progress import progress_bar

#: Numbers of a chunk: bounds the memory of a chunk to some 32 MB, whatever the width of its lists.
CHUNK_VALUES = 4 << 20
MOST_ROWS = 1 << 16


def read_schema(path: Path) -> pa.Schema:
    """Return the columns of a file.

    Raises
    ------
    DataError
        It is no Parquet file, or two columns have one name.
    """
    schema = open_parquet(path).schema_arrow
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: several columns are named {', '.join(twice)}, expected one of each name")
    return schema


def values_per_row(metadata: pq.FileMetaData, columns: Sequence[str]) -> float:
    """Return how many numbers a row of these columns has, in the row group where it has most."""
    wanted, widest = set(columns), 0.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(c) for c in range(group.num_columns))
        values = sum(c.num_values for c in chunks if c.path_in_schema.split(".")[0] in wanted)
        widest = max(widest, values / max(group.num_rows, 1))
    return widest


def read_chunks(path: Path, columns: Sequence[str], what: str = "", verbose: int = 0) -> Iterator[tuple[int, dict]]:
    """Yield ``(first row, {column: pyarrow.Array})`` of a file.

    Raises
    ------
    DataError
        The file is damaged; the message says after which row.
    """
    row = 0
    try:
        file = open_parquet(path)
        size = int(np.clip(CHUNK_VALUES / max(values_per_row(file.metadata, columns), 1), 256, MOST_ROWS))
        batches = file.iter_batches(batch_size=size, columns=list(columns))
        total = -(-file.metadata.num_rows // size)
        bar: tqdm = progress_bar(batches, what or path.name, verbose=verbose, total=total)
        for batch in bar:
            yield row, {name: batch.column(batch.schema.get_field_index(name)) for name in columns}
            row += batch.num_rows
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path}: damaged after row {row} ({reason})") from None


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds one number per row."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_list_of(kind: pa.DataType, *, floating: bool) -> bool:
    """Whether a column holds lists of floating-point numbers, or of whole numbers."""
    if not is_list(kind):
        return False
    return pa.types.is_floating(kind.value_type) if floating else pa.types.is_integer(kind.value_type)


def numbers(array: pa.Array) -> np.ndarray:
    """Return one float64 per row ``(R,)``; NaN for null."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    return array.to_numpy(zero_copy_only=False).astype(np.float64)  # nulls are NaN


def ids_of(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return whole numbers from 0, ``(R,)`` int64 with -1 for what is none, and which are good, ``(R,)`` bool."""
    if pa.types.is_integer(array.type):
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        values = array.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        good = valid & (values >= 0)
    else:
        wide = numbers(array)
        good = (wide >= 0) & (wide < 2.0**63) & (wide == np.floor(wide))
        values = np.where(good, wide, 0).astype(np.int64)
    return np.where(good, values, -1), good


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def as_text(array: pa.Array) -> list[str]:
    """Return one text per row; bytes that are no UTF-8 become U+FFFD, null becomes empty."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    raw = array.cast(pa.large_binary()).to_pylist()
    return ["" if b is None else b.decode("utf-8", errors="replace") for b in raw]


def split_lists(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the entries of all lists ``(N,)`` and the offsets of each row in them ``(R + 1,)``; a null is empty."""
    if pa.types.is_fixed_size_list(array.type) and array.null_count:
        array = array.cast(pa.list_(array.type.value_type))
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return array.flatten(), np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
