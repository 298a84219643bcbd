"""Parquet files of rows: their parts, and their columns as the graphs read them.

A server without files of users or titles does without pyarrow, which only this module imports.

Shape letters: B rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.features import Column, Flat, Lists
from fuxictr_mm_serving.folders import IGNORED, SUFFIXES, natural_key, partition_values

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise ServingError("Parquet files need pyarrow: pip install 'fuxictr-mm-serving[parquet]'") from None

#: Rows that are read at a time.
BATCH_ROWS = 2048

#: Most parts of a row group: to reach one, the rows of the group before it are read as well.
GROUP_PARTS = 16


def part_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return a Parquet file, or those of a folder and its Hive partitions (``day=3/``), by their numbers."""
    path = Path(path)
    path = path if path.exists() or path.suffix.lower() in SUFFIXES else path.with_name(f"{path.name}.parquet")
    found = list(_files_of(path)) if path.is_dir() else [path]
    if not found or not found[0].exists():
        raise ServingError(f"{path}: no such file; expected Parquet")
    return found


def _files_of(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=natural_key):
        if path.name.startswith(IGNORED):
            continue
        if path.is_dir() and "=" in path.name:
            yield from _files_of(path)
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def schema_of(file: str | os.PathLike[str]) -> pa.Schema:
    """Return the schema of a file, an empty one if it cannot be read."""
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException):
        return pa.schema([])


@dataclass(frozen=True)
class Part:
    """Some rows of a file: whole row groups, or ``rows`` rows of one after the first ``skipped``.

    ``first`` is the number of the first in the file.
    """

    file: Path
    groups: tuple[int, ...]
    first: int
    rows: int
    skipped: int = 0


def split(path: str | os.PathLike[str], part_rows: int) -> list[Part]:
    """Return a file or folder as parts of about ``part_rows`` rows, in its order.

    Small row groups are taken together, and one of more rows, as files of a single one have, is divided.
    """
    parts = []
    for file in part_files(path):
        try:
            metadata = pq.read_metadata(file)
        except (OSError, pa.ArrowException) as error:
            raise ServingError(f"{file}: is no Parquet file or damaged ({error})") from None
        first = 0
        groups: list[int] = []  # small ones, which make a part together
        rows = 0
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            is_large = count > part_rows
            if is_large and rows:
                parts.append(Part(file, tuple(groups), first - rows, rows))
                groups, rows = [], 0
            if is_large:
                size = math.ceil(count / min(math.ceil(count / part_rows), GROUP_PARTS))
                starts = range(0, count, size)
                parts += [Part(file, (group,), first + i, min(size, count - i), skipped=i) for i in starts]
            elif count:
                groups.append(group)
                rows += count
            first += count
            if rows and (rows >= part_rows or group == metadata.num_row_groups - 1):
                parts.append(Part(file, tuple(groups), first - rows, rows))
                groups, rows = [], 0
    return parts


def read_part(
    part: Part, columns: list[str], batch_rows: int = BATCH_ROWS, texts: Collection[str] = ()
) -> Iterator[dict[str, Column]]:
    """Yield the columns of a part, some rows at a time; those of Hive partitions in ``texts`` are texts."""
    try:
        with pq.ParquetFile(part.file) as reader:
            present = [name for name in columns if name in reader.schema_arrow.names]
            named = {
                name: value for name, (value, _) in partition_values(part.file, texts).items() if name not in present
            }
            missing = [name for name in columns if name not in {*present, *named}]
            if missing:
                raise ServingError(f"{part.file}: has no column '{missing[0]}', which the model reads")
            for batch in _batches(reader, part, present, batch_rows):
                found = {name: to_column(batch.column(name)) for name in present}
                same = {name: to_column(pa.repeat(value, batch.num_rows)) for name, value in named.items()}
                yield {name: found[name] if name in found else same[name] for name in columns}
    except (OSError, pa.ArrowException) as error:
        raise ServingError(f"{part.file}: is damaged ({error})") from None


def part_batches(part: Part, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a part, as Arrow has them."""
    try:
        with pq.ParquetFile(part.file) as reader:
            yield from _batches(reader, part, columns, 2**16)
    except (OSError, pa.ArrowException) as error:
        raise ServingError(f"{part.file}: is damaged ({error})") from None


def _batches(reader: pq.ParquetFile, part: Part, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    skipped, left = part.skipped, part.rows
    for batch in reader.iter_batches(batch_rows, row_groups=list(part.groups), columns=columns):
        if skipped >= batch.num_rows:
            skipped -= batch.num_rows
            continue
        batch = batch.slice(skipped, left)
        skipped, left = 0, left - batch.num_rows
        yield batch
        if not left:
            break


def to_column(array: pa.Array) -> Column:
    """Return numbers without nulls as an array, lists with the offsets of their rows, and all else as a list.

    Truth values without nulls are numbers as well, but not in lists; decimals are integers, or floats by their places.
    """
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        array = array.cast(pa.list_(kind.value_type))
        kind = array.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        # Without the entries that a null may have.
        return Lists(_values(array.flatten()), np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))
    if pa.types.is_boolean(kind) and not array.null_count:
        return array.to_numpy(zero_copy_only=False)
    return _values(array)


def _values(array: pa.Array) -> Flat:
    if pa.types.is_decimal(array.type):
        number = int if array.type.scale <= 0 else float
        return [None if value is None else number(value) for value in array.to_pylist()]
    is_number = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    return array.to_pylist() if array.null_count or not is_number else array.to_numpy(zero_copy_only=False)
