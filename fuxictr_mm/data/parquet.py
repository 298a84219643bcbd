"""Parquet files: which files a path means, reading in chunks, and Arrow columns to checked NumPy arrays.

Every error names the file, the column, the row and the value.

Shape letters: R rows, N history items of all rows, I items (padding included).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fuxictr_mm.data.partitions import partition_columns
from fuxictr_mm.data.remote import is_remote, path_of
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.errors import DataError, MissingFileError, nearest

if TYPE_CHECKING:
    from fuxictr_mm.data.vocabulary import Vocabulary

#: Feature types that hold one number per row.
SCALAR_TYPES = ("categorical", "numeric")

#: Ids are stored as int32.
MAX_IDS = 2**31

#: Rows decoded at a time, and fewer where lists are long: at most so many values (4 M ids are 34 MB).
CHUNK_ROWS, CHUNK_VALUES = 32_768, 1 << 22

#: Endings of Parquet files.
SUFFIXES = (".parquet", ".pq", ".parq")

#: Folders in a table of these formats, which keep files of older versions beside those of the newest.
TABLE_FORMATS = {"_delta_log": "Delta", ".hoodie": "Hudi"}

#: Bytes read at a time per column; bounds the memory where one row group holds the whole file.
READ_BYTES = 1 << 20


def part_files(path: str | os.PathLike[str], suffix: str = ".parquet") -> list[Path]:
    """Return the files of a dataset: one file, the same with ``suffix`` appended, or a folder of part files.

    The part files of a folder are in natural order (``part.2`` before ``part.10``). Hive partitions (subfolders such
    as ``dt=2024-01-01``, a column of their rows) are read as well; names that begin with ``_`` or ``.`` are ignored,
    as in Spark.
    """
    path = path_of(path)
    if path.is_file():
        return [path]
    with_suffix = path_of(f"{path}{suffix}")
    if with_suffix.is_file():
        return [with_suffix]
    if path.is_dir():
        for name, table in TABLE_FORMATS.items():
            if (path / name).is_dir():
                raise DataError(
                    f"{path}: is a {table} table, whose folder holds files of older versions as well; write its newest "
                    "version as plain Parquet"
                )
        files = _files_of_folder(path, suffix)
        if files:
            return files
        raise MissingFileError(
            f"{path}: the folder holds no {suffix} file (other subfolders than partitions such as dt=2024-01-01 are "
            "not read)"
        )
    folder = path.parent
    present = sorted(p.name for p in folder.glob(f"*{suffix}")) if folder.is_dir() else []
    near = nearest(path.stem + suffix, present)
    hint = f"{near} ({folder} holds: {', '.join(present[:8]) or f'no {suffix} file'})"
    raise MissingFileError(f"{path}: no such file or folder{hint if folder.is_dir() else ''}")


def _files_of_folder(folder: Path, suffix: str) -> list[Path]:
    """Return the files of a folder and of its Hive partitions, in natural order."""
    files: list[Path] = []
    for path in sorted(folder.iterdir(), key=_natural_key):
        if path.name.startswith(("_", ".")):
            continue
        if path.is_dir():
            files += _files_of_folder(path, suffix) if "=" in path.name else []
        elif path.suffix.lower() in (SUFFIXES if suffix == ".parquet" else (suffix,)):
            files.append(path)
    return files


def _natural_key(path: Path) -> list[tuple[bool, int, str]]:
    """Return a sort key that compares the digits in a name as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def open_parquet(path: Path, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a Parquet file; with ``metadata`` its footer is not read again.

    Raises
    ------
    DataError
        The file is not Parquet or is damaged.
    """
    try:
        # Buffering ahead, the default of newer pyarrow, would hold every row group that was read.
        source = path.open("rb") if is_remote(path) else path
        return pq.ParquetFile(source, metadata=metadata, buffer_size=READ_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            fix = "write it as Parquet, pl.read_csv(FILE).write_parquet(...)"
        else:
            fix = "download or write it again"
        raise DataError(f"{path}: cannot be read as Parquet ({reason}); {fix}") from None


def schema_of(path: Path, metadata: pq.FileMetaData | None = None, texts: Collection[str] = ()) -> pa.Schema:
    """Return the columns of a file, and after them those of its Hive partitions that the file does not hold.

    Partition columns in ``texts`` are texts, whatever their values.
    """
    schema = open_parquet(path).schema_arrow if metadata is None else metadata.schema.to_arrow_schema()
    for name, value in partition_columns(path, texts).items():
        if name not in schema.names:
            schema = schema.append(pa.field(name, value.type))
    return schema


def read_rows(
    path: str | os.PathLike[str], columns: Sequence[str], max_rows: int | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield what ``read_chunks`` does of all part files of a dataset, whose rows are counted on."""
    first = 0
    for file in part_files(path):
        rows = 0
        for row, batch in read_chunks(file, columns, max_rows=max_rows):
            yield first + row, batch
            rows = row + batch.num_rows
        first += rows


def count_rows(path: str | os.PathLike[str]) -> int:
    """Return the number of rows of a dataset, from the files' footers only."""
    return sum(open_parquet(file).metadata.num_rows for file in part_files(path))


def require_columns(path: str | os.PathLike[str], present: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise a DataError for the first column that is missing, with the nearest name, or that occurs twice."""
    for name in wanted:
        if name not in present:
            if path_of(path).is_file() and path_of(path).suffix != ".csv" and name in _pandas_index(path_of(path)):
                raise DataError(
                    f"{path}: '{name}' is the index of a pandas frame, which is no column of the file; "
                    "write it with frame.reset_index().to_parquet(...)"
                )
            raise DataError(f"{path}: no column '{name}'{nearest(name, present)} (columns: {', '.join(present)})")
        if list(present).count(name) > 1:
            raise DataError(
                f"{path}: {list(present).count(name)} columns are named '{name}', expected one; drop the others"
            )


def _pandas_index(path: Path) -> list[str]:
    """Return the names of range indexes, which pandas stores in the metadata only."""
    metadata = open_parquet(path).schema_arrow.pandas_metadata or {}
    return [str(index["name"]) for index in metadata.get("index_columns", ()) if isinstance(index, dict)]


@dataclass(frozen=True)
class RowGroupRange:
    """Adjacent row groups of a file that are read together.

    Parameters
    ----------
    path : Path
        The file.
    metadata : pyarrow.parquet.FileMetaData
        Its footer.
    groups : range
        Indices of the row groups.
    row : int
        Index in the file of the first row of the row groups.
    num_rows : int
        Number of rows that are read.
    skip : int
        Rows at the beginning that are left out.
    """

    path: Path
    metadata: pq.FileMetaData
    groups: range
    row: int
    num_rows: int
    skip: int = 0


def split_row_groups(
    path: Path, metadata: pq.FileMetaData, max_rows: int, start: int = 0, stop: int | None = None
) -> list[RowGroupRange]:
    """Split a file into ranges of at most ``max_rows`` rows; a larger row group is a range of its own.

    With ``start`` and ``stop``, the ranges are of rows ``start`` to ``stop - 1`` of the file, and other row groups are
    in none.
    """
    stop = metadata.num_rows if stop is None else stop
    ranges: list[RowGroupRange] = []
    groups: list[int] = []
    row = first = rows = 0

    def close() -> None:
        if groups:
            inside = range(groups[0], groups[-1] + 1)
            ranges.append(RowGroupRange(path, metadata, inside, first, rows, max(start - first, 0)))

    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        kept = min(row + size, stop) - max(row, start)
        if kept > 0:
            if groups and rows + kept > max_rows:
                close()
                groups, rows = [], 0
            first = row if not groups else first
            groups.append(group)
            rows += kept
        row += size
    close()
    return ranges


def read_chunks(
    path: Path,
    columns: Sequence[str],
    row_groups: RowGroupRange | None = None,
    max_rows: int | None = None,
    texts: Collection[str] = (),
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield ``(first row, record batch)`` of the named columns of a file, or of a range of its row groups.

    A batch has 1 to ``max_rows`` rows (default: ``CHUNK_ROWS``, or as many as hold about ``CHUNK_VALUES`` values of the
    columns). Extension types (such as Arrow's tensors) are read as
    their storage, dictionaries as their values, and decimals as int64 or, with decimal places, as float64. Columns of
    Hive partitions in ``texts`` are texts, whatever their values.
    """
    file = open_parquet(path, None if row_groups is None else row_groups.metadata)
    present = file.schema_arrow.names
    partitions = {name: value for name, value in partition_columns(path, texts).items() if name not in present}
    require_columns(path, [*present, *partitions], columns)
    partitions = {name: value for name, value in partitions.items() if name in columns}
    columns = [name for name in columns if name not in partitions]
    groups = range(file.num_row_groups) if row_groups is None else row_groups.groups
    row = 0 if row_groups is None else row_groups.row
    first = row if row_groups is None else row + row_groups.skip
    stop = file.metadata.num_rows if row_groups is None else first + row_groups.num_rows
    size = max_rows or _chunk_rows(file.metadata, columns, groups)
    try:
        for batch in file.iter_batches(batch_size=size, columns=list(columns), row_groups=list(groups)):
            low, high = max(first - row, 0), min(stop - row, batch.num_rows)
            if low < high:
                found = _plain_types(batch.slice(low, high - low), path)
                for name, value in partitions.items():
                    # Without a column of the file, a batch would not know its rows.
                    arrays = [*found.columns, pa.repeat(value, high - low)]
                    found = pa.RecordBatch.from_arrays(arrays, [*found.schema.names, name])
                yield row + low, found
            row += batch.num_rows
            if row >= stop:
                return
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        wide = [name for name in columns if getattr(file.schema_arrow.field(name).type, "list_size", 1) == 0]
        if wide:
            raise DataError(
                f"{path}: {wide[0]}: fixed-size lists of size 0, which pyarrow cannot read from Parquet; write plain "
                "lists: column.cast(pyarrow.list_(pyarrow.int64()))"
            ) from None
        if "Expected all lists to be of size" in reason:
            raise DataError(
                f"{path}: a null in a column of fixed-size lists, which pyarrow {pa.__version__} cannot read; "
                "install pyarrow 26 or later, or write the column as plain lists"
            ) from None
        raise DataError(f"{path}: damaged after row {row} ({reason}); download or write it again") from None
    except (pa.ArrowNotImplementedError, pa.ArrowCapacityError, pa.ArrowTypeError) as error:
        raise DataError(
            f"{path}: pyarrow {pa.__version__} cannot read {', '.join(columns)} after row {row} "
            f"({str(error).splitlines()[0]}); write the file again, in smaller row groups or other types"
        ) from None


def _chunk_rows(metadata: pq.FileMetaData, columns: Sequence[str], groups: Sequence[int]) -> int:
    """Return how many rows to decode at a time, by the mean length of lists in a file."""
    rows = values = 0
    for group in map(metadata.row_group, groups):
        rows += group.num_rows
        leaves = map(group.column, range(group.num_columns))
        values += sum(leaf.num_values for leaf in leaves if leaf.path_in_schema.split(".")[0] in columns)
    return min(CHUNK_ROWS, max(1, CHUNK_VALUES * rows // max(values, 1)))


def decode_target(
    array: pa.Array, where: str, row: int, known: np.ndarray, vocabulary: Vocabulary | None = None
) -> np.ndarray:
    """Return the target items, ``(R,)`` int32; ``known`` ``(I,)`` is True for numbers of items in the item files."""
    if vocabulary is not None:
        numbers_R = vocabulary.encode(array, where)
        _check_numbers(numbers_R, array, where, row, known)
        return numbers_R.astype(np.int32)
    ids = scalars(array, where, row)
    _check_items(ids, where, row, known)
    return ids.astype(np.int32)


def decode_history(
    array: pa.Array,
    where: str,
    row: int,
    known: np.ndarray,
    max_len: int | None,
    vocabulary: Vocabulary | None = None,
    zero_ends: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the history items without padding, ``(N,)`` int32, and the offsets of each row, ``(R + 1,)`` int64.

    With a vocabulary, null, an empty text and a 0 that is no item are padding; ``zero_ends`` is that of ``Encoding``.
    """
    found = decode_positions(array, where, row, known, max_len, vocabulary, zero_ends)
    return found.items, found.offsets


class Positions(NamedTuple):
    """A history, and which entries of its lists it is.

    Parameters
    ----------
    items : ndarray
        ``(N,)`` int32.
    offsets : ndarray
        ``(R + 1,)`` int64, of each row in the items.
    kept : ndarray
        ``(N,)`` index of each item in the entries of all lists.
    lists : ndarray
        ``(R + 1,)`` int64, of each row in the entries of all lists.
    """

    items: np.ndarray
    offsets: np.ndarray
    kept: np.ndarray
    lists: np.ndarray


def decode_positions(
    array: pa.Array,
    where: str,
    row: int,
    known: np.ndarray,
    max_len: int | None,
    vocabulary: Vocabulary | None = None,
    zero_ends: int = 1,
) -> Positions:
    """Return a history as ``decode_history`` does, with the positions that sequences along it are read at."""
    if vocabulary is None:
        flat, offsets = lists(array, where, row)
    else:
        entries, offsets = list_entries(array, where)
        if vocabulary.has_zero:
            _check_zero_padding(entries, offsets, where, row, zero_ends)
        flat = vocabulary.encode(entries, where)
    # Padding is 0, on either side or in between; max_len counts the remaining items from the end of the row.
    kept = np.flatnonzero(flat)
    ends = np.searchsorted(kept, offsets)
    lengths = np.diff(ends)
    if max_len is not None and lengths.size and lengths.max() > max_len:
        from_end = np.repeat(ends[1:], lengths) - np.arange(kept.size)
        kept = kept[from_end <= max_len]
        lengths = np.minimum(lengths, max_len)
        ends = np.concatenate(([0], np.cumsum(lengths)))
    rows = row + np.repeat(np.arange(lengths.size), lengths)
    if vocabulary is not None:
        _check_numbers(flat[kept], entries, where, rows, known, kept)
        return Positions(flat[kept].astype(np.int32), ends.astype(np.int64, copy=False), kept, offsets)
    ids = integers(flat[kept], where, rows)
    _check_items(ids, where, rows, known)
    return Positions(ids.astype(np.int32), ends.astype(np.int64, copy=False), kept, offsets)


def decode_along(array: pa.Array, where: str, row: int, feature: Feature, history: Positions) -> np.ndarray:
    """Return the entries of a sequence along a history, ``(N,)`` int32 ids or float32 numbers, one for each item.

    Raises
    ------
    DataError
        A row has another number of entries than the list of its history; an entry is no number or id.
    """
    flat, offsets = lists(array, where, row)
    wrong = np.flatnonzero(np.diff(offsets) != np.diff(history.lists))
    if wrong.size:
        bad = int(wrong[0])
        found, expected = (int(ends[bad + 1] - ends[bad]) for ends in (offsets, history.lists))
        raise DataError(
            f"{where}: row {row + bad} has {found} entries, expected {expected}, one for each of the list of "
            f"{feature.history}, padding included"
        )
    entries = flat[history.kept]
    if feature.is_number:
        entries = entries.astype(np.float32)
        _check_finite(entries, where, row)
        return entries
    rows = row + np.repeat(np.arange(len(array)), np.diff(history.offsets))
    ids = integers(entries, where, rows)
    check_ids(ids, feature.vocab_size, where, rows)
    return ids.astype(np.int32)


def decode_scalar(array: pa.Array, where: str, row: int, feature: Feature) -> np.ndarray:
    """Return a categorical or numeric column, ``(R,)`` int32 ids or float32 numbers."""
    if feature.type == "numeric":
        return scalars(array, where, row, floating=True)
    ids = scalars(array, where, row)
    check_ids(ids, feature.vocab_size, where, row)
    return ids.astype(np.int32)


def decode_context(
    array: pa.Array, where: str, row: int, feature: Feature, vocabulary: Vocabulary | None = None
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Return a context column: ``(R,)`` ids or numbers, ``(R, D)`` embeddings, or entries and offsets of sequences.

    With a vocabulary, null and unseen texts are 0.
    """
    if vocabulary is not None:
        return np.maximum(vocabulary.encode(array, where), 0).astype(np.int32)
    if feature.type in SCALAR_TYPES:
        return decode_scalar(array, where, row, feature)
    flat, offsets = lists(array, where, row)
    if feature.type == "embedding":
        dim = feature.pretrain_dim or int(offsets[1])
        wrong = np.flatnonzero(np.diff(offsets) != dim)
        if wrong.size:
            found = int(offsets[wrong[0] + 1] - offsets[wrong[0]])
            raise DataError(f"{where}: row {row + int(wrong[0])} has {found} numbers, expected {dim} (pretrain_dim)")
        embeddings = flat.astype(np.float32).reshape(-1, dim)
        _check_finite(embeddings, where, row)
        return embeddings
    rows = row + np.repeat(np.arange(len(array)), np.diff(offsets))
    ids = integers(flat, where, rows)
    check_ids(ids, feature.vocab_size, where, rows)
    return _trim(ids.astype(np.int32), offsets, feature.max_len, feature.padding == "pre")


def _trim(ids: np.ndarray, offsets: np.ndarray, max_len: int | None, pre: bool) -> tuple[np.ndarray, np.ndarray]:
    """Cut rows to ``max_len`` on one side, as FuxiCTR does, and drop their padding on that side.

    Zeros in between stay: padded again, the rows are as they were.
    """
    starts, stops, kept = offsets[:-1], offsets[1:], np.flatnonzero(ids)
    if pre:
        starts = starts if max_len is None else np.maximum(starts, stops - max_len)
        starts = np.minimum(np.append(kept, ids.size)[np.searchsorted(kept, starts)], stops)
    else:
        stops = stops if max_len is None else np.minimum(stops, starts + max_len)
        stops = np.maximum(np.append(-1, kept)[np.searchsorted(kept, stops)] + 1, starts)
    trimmed = np.concatenate(([0], np.cumsum(stops - starts)))
    index = np.arange(trimmed[-1]) + np.repeat(starts - trimmed[:-1], stops - starts)
    return ids[index], trimmed


def is_plain_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def decode_label(array: pa.Array, where: str, row: int, binary: bool, *, missing: bool = False) -> np.ndarray:
    """Return the labels, ``(R,)`` float32; with ``missing``, a null or NaN is NaN instead of an error."""
    absent = array.is_null(nan_is_null=True).to_numpy(zero_copy_only=False) if missing else np.zeros(len(array), bool)
    if absent.all() and missing:
        return np.full(len(array), np.nan, np.float32)
    if absent.any():
        array = array.take(pa.array(np.where(absent, absent.argmin(), np.arange(len(array)))))
    values = scalars(array, where, row, floating=True)
    wrong = (values != 0) & (values != 1)
    if binary and wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{where}: row {row + bad} is {values[bad]:g}, expected 0 or 1")
    return np.where(absent, np.float32(np.nan), values) if absent.any() else values


def label_kinds(array: pa.Array, binary: bool) -> set[str]:
    """Return which kinds of values a label column holds: ``label``, or of placeholders ``null``, ``text``, the number.

    One number other than 0 and 1 in all rows is a placeholder of a binary label.
    """
    absent = array.is_null(nan_is_null=True)
    kinds = {"null"} if absent.true_count else set()
    values = array.filter(pc.invert(absent))
    kind = values.type
    if len(values) == 0:
        return kinds
    if is_plain_text(kind):
        texts = pc.match_substring_regex(values.cast(pa.large_string()), r"^\s*[+-]?\.?\d")
        return {*kinds, "label" if texts.true_count else "text"}
    if binary and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        low, high = (float(bound.as_py()) for bound in pc.min_max(values).values())
        if low == high and low not in (0, 1):
            return {*kinds, f"{low:g}"}
    return {*kinds, "label"}


def scalars(array: pa.Array, where: str, row: int, *, floating: bool = False) -> np.ndarray:
    """Return one number per row: int64, or float32 if ``floating``.

    Parameters
    ----------
    array : pyarrow.Array
        ``(R,)``.
    where : str
        File and column, for errors.
    row : int
        Index of the first row, for errors.
    """
    if array.null_count:
        bad = row + int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{where}: row {bad} is null, expected a number; fill or drop such rows")
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise DataError(f"{where}: holds {array.type}, expected numbers; encode the column as integers first")
    values = numbers(array)
    if floating:
        with np.errstate(over="ignore"):  # too large for float32: becomes infinite and is refused next
            values = values.astype(np.float32)
        _check_finite(values, where, row)
        return values
    return integers(values, where, row)


def numbers(array: pa.Array) -> np.ndarray:
    """Return numbers or truth values without nulls; ``Array.to_numpy`` would import pandas, which takes 0.3 s."""
    if pa.types.is_boolean(array.type):  # stored as bits
        return np.from_dlpack(array.cast(pa.int8())).astype(bool)
    return np.from_dlpack(array)


def from_numbers(values: np.ndarray) -> pa.Array:
    """Return numbers ``(R,)`` as an Arrow array, without importing pandas as ``pyarrow.array`` would."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])


def integers(values: np.ndarray, where: str, row_of: np.ndarray | int) -> np.ndarray:
    """Return numbers as int64; ``row_of`` is as in ``check_ids``."""
    if values.dtype.kind == "f":
        bad = np.flatnonzero(~((np.abs(values) < 2.0**63) & (values == np.floor(values))))
        if bad.size:
            raise DataError(
                f"{where}: row {_row(row_of, bad[0])} holds {values[bad[0]]}, expected an integer; "
                "write ids as integers"
            )
    return values.astype(np.int64)


def lists(array: pa.Array, where: str, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries of all lists ``(entries,)`` and the offsets ``(R + 1,)`` of each row in them.

    Lists, large lists and fixed-size lists are accepted; a null list is empty, as are all rows of a column of nulls.
    """
    entries, offsets = list_entries(array, where)
    return _entries(entries, offsets, where, row), offsets


def list_entries(array: pa.Array, where: str) -> tuple[pa.Array, np.ndarray]:
    """Return the entries of all lists as an Arrow array of any type, and the offsets as ``lists`` does."""
    kind = array.type
    if pa.types.is_null(kind) or (not is_list(kind) and len(array) > 0 and _all_missing(array)):
        array = pa.nulls(len(array), pa.list_(pa.int64()))
    elif pa.types.is_list(kind) and pa.types.is_null(kind.value_type):
        array = array.cast(pa.list_(pa.int64()))
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        if array.null_count:
            array = array.cast(pa.list_(kind.value_type))
        else:
            return array.flatten(), np.arange(len(array) + 1, dtype=np.int64) * kind.list_size
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        is_text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
        split = "split the texts: frame.with_columns(pl.col(NAME).str.split(SEPARATOR))" if is_text else "write lists"
        raise DataError(f"{where}: holds {array.type}, expected a list per row; {split}, or name a column of lists")
    lengths = numbers(array.value_lengths().fill_null(0))
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return array.flatten(), offsets


def _all_missing(array: pa.Array) -> bool:
    """Whether a column holds no value: writers choose its type, and NaN or an empty text for what is missing."""
    if is_plain_text(array.type):
        return not pc.any(pc.greater(pc.binary_length(array), 0)).as_py()
    return pc.all(array.is_null(nan_is_null=True)).as_py()


def check_ids(ids: np.ndarray, limit: int | None, where: str, row_of: np.ndarray | int) -> None:
    """Raise a DataError for an id that is negative or not below ``limit``.

    ``row_of`` is the index of the first row (one id per row), or the row of every id.
    """
    if ids.size == 0:
        return
    bad = (ids < 0) | (ids >= (limit or MAX_IDS))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        fix = "number the ids from 1 on" if limit is None else "raise vocab_size or correct the file"
        raise DataError(
            f"{where}: row {_row(row_of, first)} holds the id {int(ids[first])}, "
            f"expected 0 to {(limit or MAX_IDS) - 1}; {fix}"
        )


def _check_items(ids: np.ndarray, where: str, row_of: np.ndarray | int, known: np.ndarray) -> None:
    """Raise a DataError for padding or an id that is in no item file; ``row_of`` is as in ``check_ids``."""
    good = (ids > 0) & (ids < known.size)
    good[good] = known[ids[good]]
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    unknown = np.unique(ids[~good])
    row = _row(row_of, first)
    if ids[first] <= 0:
        raise DataError(
            f"{where}: row {row} holds the item id {ids[first]}, expected 1 or more; only 0 is padding: pad histories "
            "with 0, or set ids: vocabulary in dataset_config.yaml if it is an item"
        )
    raise DataError(
        f"{where}: row {row} holds the item id {ids[first]}, which no item file has ({unknown.size} such ids in these "
        f"rows; the item files have {int(known.sum()) - 1} ids up to {known.size - 1}); {_fix_of_unknown(good)}"
    )


def _fix_of_unknown(good: np.ndarray) -> str:
    """Return what to do about unknown items; of a column without a known one, it is probably another column."""
    if good.any():
        return "add the items or drop the rows"
    return "no entry of these rows is an item: name the column of items in roles, or their files in item_info"


def _check_numbers(
    found: np.ndarray,
    values: pa.Array,
    where: str,
    row_of: np.ndarray | int,
    known: np.ndarray,
    places: np.ndarray | None = None,
) -> None:
    """Raise a DataError for an id without a number, or of an item that is in no item file.

    ``values`` are the ids, those at ``places`` or all; ``row_of`` is as in ``check_ids``.
    """
    good = (found > 0) & (found < known.size)
    good[good] = known[found[good]]
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    value = values[first if places is None else int(places[first])].as_py()
    row = _row(row_of, first)
    if found[first] == 0:
        raise DataError(
            f"{where}: row {row} holds {value!r}, which is padding, expected an item; fill or drop such rows"
        )
    raise DataError(
        f"{where}: row {row} holds the item id {value!r}, which no item file has ({int((~good).sum())} such entries in "
        f"these rows; the item files have {int(known.sum()) - 1} ids); {_fix_of_unknown(good)}"
    )


def is_zero_padded(path: str | os.PathLike[str], column: str) -> bool:
    """Whether the first lists of integers of a dataset all have one length, and some have a 0 at an end."""
    for file in part_files(path):
        if column not in schema_of(file).names:
            return False
        for _, batch in read_chunks(file, [column], max_rows=1000):
            entries, offsets = list_entries(batch.column(0), f"{file}: {column}")
            return pa.types.is_integer(entries.type) and bool(_zero_padded(entries, offsets, 1).any())
    return False


def _zero_padded(entries: pa.Array, offsets: np.ndarray, zero_ends: int) -> np.ndarray:
    """Return which lists ``(R,)`` seem to be padded by ``zero_ends`` zeros; none where lengths differ."""
    lengths = np.diff(offsets)
    if lengths.size < 2 or lengths.min() != lengths.max() or lengths[0] < max(2, zero_ends):
        return np.zeros(lengths.size, dtype=bool)
    zero = numbers(entries.cast(pa.float64(), safe=False).fill_null(1)).reshape(lengths.size, -1) == 0
    return zero[:, :zero_ends].all(axis=1) | zero[:, -zero_ends:].all(axis=1)


def _check_zero_padding(entries: pa.Array, offsets: np.ndarray, where: str, row: int, zero_ends: int) -> None:
    """Refuse histories that 0 pads, it seems, where 0 is an item: all of one length, and zeros at an end.

    Lists that differ in length have no padding. ``zero_ends`` is how many zeros at an end make it padding.
    """
    lengths = np.diff(offsets)
    padded = _zero_padded(entries, offsets, zero_ends)
    if padded.any():
        fix = "write the histories without padding"
        if zero_ends == 1:
            fix += ", or set ids: vocabulary in dataset_config.yaml if they have none, ids: as_is if 0 is no item"
        raise DataError(
            f"{where}: all {lengths.size} lists have {lengths[0]} entries, and that of row "
            f"{row + int(np.flatnonzero(padded)[0])} has a 0 at an end: padding, or the item 0 of the item files? {fix}"
        )


def _plain_types(batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
    """Convert the types that writers choose by themselves, see ``plain_type``."""
    columns = []
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns.append(_plain(array))
        except pa.ArrowException as error:
            raise DataError(f"{path}: {name}: holds {array.type} ({error}); cast the column to int64") from None
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _plain(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
        # A cast gives a list without its last offset (pyarrow 26).
        lengths = numbers(array.value_lengths().fill_null(0))
        offsets = from_numbers(np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))
        array = pa.LargeListArray.from_arrays(offsets, array.flatten(), mask=array.is_null())
    kind = plain_type(array.type)
    if kind == array.type:
        return array
    entries = array.type.value_type if is_list(array.type) else array.type
    if pa.types.is_decimal(entries) and entries.bit_width < 128:  # pyarrow 26 finds integers of these out of bounds
        wide = pa.decimal128(entries.precision, entries.scale)
        array = array.cast(pa.large_list(wide) if is_list(array.type) else wide)
    return array.cast(kind)


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a column is read as.

    Extension types are their storage, dictionaries their values, list views lists; texts and bytes as Polars hands
    them over (views, for which pyarrow has few functions) are large ones, decimals int64 or, with decimal places,
    float64, all also in lists.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_decimal(kind):
        return pa.int64() if kind.scale <= 0 else pa.float64()
    if _is_view(kind):
        return pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary()
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(plain_type(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        entries = kind.value_type
        if pa.types.is_decimal(entries) or _is_view(entries):
            return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(plain_type(entries))
    return kind


def _is_view(kind: pa.DataType) -> bool:
    return pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _entries(flat: pa.Array, offsets: np.ndarray, where: str, row: int) -> np.ndarray:
    if not len(flat) and len(offsets) > 1:  # only empty lists, of any type
        return np.zeros(0, np.int64)
    if flat.null_count:
        first = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0])
        bad = row + int(np.searchsorted(offsets, first, side="right")) - 1
        raise DataError(f"{where}: the list of row {bad} holds a null, expected numbers only; write 0 for padding")
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)):
        raise DataError(
            f"{where}: lists of {flat.type}, expected lists of numbers; name another column, or write ids as one type "
            "in all files"
        )
    return numbers(flat)


def _check_finite(values: np.ndarray, where: str, row: int) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.argwhere(~finite)[0]
        raise DataError(f"{where}: row {row + int(bad[0])} holds {values[tuple(bad)]}, expected finite numbers")


def _row(row_of: np.ndarray | int, index: int) -> int:
    return row_of + int(index) if isinstance(row_of, int) else int(row_of[index])
