"""Columns of interactions, from Arrow to checked NumPy arrays, with errors that name file, column and row.

Shape letters: R rows, N history items of all rows, I items (padding included).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.config import nearest
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.errors import DataError, MissingFileError

#: Types of which a row holds one number.
SCALAR_TYPES = ("categorical", "numeric")


def decode_target(array: pa.Array, where: str, row: int, known: np.ndarray) -> np.ndarray:
    """Return the items shown, ``(R,)`` int32; ``known`` ``(I,)`` says which items there are."""
    ids = scalars(array, where, row)
    _check_items(ids, where, row, known)
    return ids.astype(np.int32)


def decode_history(
    array: pa.Array, where: str, row: int, known: np.ndarray, max_len: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the history without padding, ``(N,)`` int32, and where each row's begins and ends, ``(R + 1,)`` int64."""
    flat, offsets = lists(array, where, row)
    # Padding is zero, on either side or in between; what is left counts from the end of its row.
    kept = np.flatnonzero(flat)
    ends = np.searchsorted(kept, offsets)
    lengths = np.diff(ends)
    if max_len is not None and lengths.size and lengths.max() > max_len:
        from_end = np.repeat(ends[1:], lengths) - np.arange(kept.size)
        kept = kept[from_end <= max_len]
        lengths = np.minimum(lengths, max_len)
        ends = np.concatenate(([0], np.cumsum(lengths)))
    rows = row + np.repeat(np.arange(lengths.size), lengths)
    ids = whole(flat[kept], where, rows)
    _check_items(ids, where, rows, known)
    return ids.astype(np.int32), ends.astype(np.int64, copy=False)


def decode_scalar(array: pa.Array, where: str, row: int, feature: Feature) -> np.ndarray:
    """Return a categorical or numeric column, ``(R,)`` int32 ids or float32 numbers."""
    if feature.type == "numeric":
        return scalars(array, where, row, floating=True)
    ids = scalars(array, where, row)
    check_ids(ids, feature.vocab_size, where, row)
    return ids.astype(np.int32)


def decode_context(array: pa.Array, where: str, row: int, feature: Feature) -> np.ndarray:
    """Return a context column, which is categorical or numeric."""
    if feature.type in SCALAR_TYPES:
        return decode_scalar(array, where, row, feature)
    raise DataError(
        f"{where}: a {feature.type} column of the interactions, expected categorical or numeric; "
        "sequences and vectors are read from item files (source: item)"
    )


def decode_label(array: pa.Array, where: str, row: int, binary: bool) -> np.ndarray:
    """Return the labels, ``(R,)`` float32."""
    values = scalars(array, where, row, floating=True)
    wrong = (values != 0) & (values != 1)
    if binary and wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{where}: row {row + bad} is {values[bad]:g}, expected 0 or 1")
    return values


def _check_items(ids: np.ndarray, where: str, row_of: np.ndarray | int, known: np.ndarray) -> None:
    """Raise for padding or an id that no item file has; ``row_of`` is the first row or the row of every id."""
    good = (ids > 0) & (ids < known.size)
    good[good] = known[ids[good]]
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    row = row_of + first if isinstance(row_of, int) else int(row_of[first])
    unknown = np.unique(ids[~good])
    reason = "0, which is padding" if ids[first] == 0 else f"{ids[first]}, which no item file has"
    raise DataError(
        f"{where}: row {row} holds the item id {reason} ({unknown.size} such ids in these rows; the item files have "
        f"{int(known.sum()) - 1} ids up to {known.size - 1}); add the items or drop the rows"
    )


#: Ids are kept as int32.
MAX_IDS = 2**31


#: Rows decoded at once: bounds the memory of the padded lists on disk (32 Ki rows of 100 ids are 26 MB).
CHUNK_ROWS = 32_768


#: Bytes read ahead of a column: bounds the memory where one row group holds the whole file.
READ_BYTES = 1 << 20


def part_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files of a data set: one file, the same with ``.parquet`` appended, or a folder of part files."""
    path = Path(path)
    if path.is_file():
        return [path]
    with_suffix = Path(f"{path}.parquet")
    if with_suffix.is_file():
        return [with_suffix]
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if files:
            return files
        raise MissingFileError(f"{path}: the folder holds no .parquet file")
    parent = path.parent
    beside = sorted(p.name for p in parent.glob("*.parquet")) if parent.is_dir() else []
    near = nearest(path.stem + ".parquet", beside)
    there = f"{near} ({parent} holds: {', '.join(beside[:8]) or 'no .parquet file'})"
    raise MissingFileError(f"{path}: no such file or folder{there if parent.is_dir() else ''}")


def open_parquet(path: Path, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a file or say that it is none; its footer is not read again where ``metadata`` holds it."""
    try:
        return pq.ParquetFile(path, metadata=metadata, buffer_size=READ_BYTES)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read as Parquet ({reason}); download or write it again") from None


def count_rows(path: str | os.PathLike[str]) -> int:
    """Return the rows of a data set, from the files' footers alone."""
    return sum(open_parquet(file).metadata.num_rows for file in part_files(path))


def require_columns(path: str | os.PathLike[str], present: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise where a column is missing, with the nearest name there is."""
    for name in wanted:
        if name not in present:
            raise DataError(f"{path}: no column '{name}'{nearest(name, present)} (columns: {', '.join(present)})")


@dataclass(frozen=True)
class Section:
    """Adjacent row groups of a file, which are read together.

    Parameters
    ----------
    path : Path
        The file.
    metadata : pyarrow.parquet.FileMetaData
        Its footer.
    groups : range
        Numbers of the row groups.
    row : int
        The first row's number in the file.
    num_rows : int
        Rows.
    """

    path: Path
    metadata: pq.FileMetaData
    groups: range
    row: int
    num_rows: int


def split_sections(path: Path, metadata: pq.FileMetaData, most_rows: int) -> list[Section]:
    """Return a file as sections of at most ``most_rows`` rows; a row group that has more is one by itself."""
    sections: list[Section] = []
    start = first = rows = 0
    for group in range(metadata.num_row_groups):
        more = metadata.row_group(group).num_rows
        if rows and rows + more > most_rows:
            sections.append(Section(path, metadata, range(start, group), first, rows))
            start, first, rows = group, first + rows, 0
        rows += more
    if rows:
        sections.append(Section(path, metadata, range(start, metadata.num_row_groups), first, rows))
    return sections


def read_chunks(
    path: Path, columns: Sequence[str], section: Section | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield ``(first row, record batch)`` of the named columns, of a whole file or of a section of it."""
    file = open_parquet(path, None if section is None else section.metadata)
    require_columns(path, file.schema_arrow.names, columns)
    row, groups = (0, None) if section is None else (section.row, list(section.groups))
    try:
        for batch in file.iter_batches(batch_size=CHUNK_ROWS, columns=list(columns), row_groups=groups):
            yield row, batch
            row += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        if "Expected all lists to be of size" in reason:
            raise DataError(
                f"{path}: a null in a column of fixed-size lists, which pyarrow {pa.__version__} cannot read; "
                "install pyarrow 26 or later, or write the column as plain lists"
            ) from None
        raise DataError(f"{path}: damaged after row {row} ({reason}); download or write it again") from None


def scalars(array: pa.Array, where: str, row: int, *, floating: bool = False) -> np.ndarray:
    """Return one number per row: int64, or float32 where ``floating``.

    Parameters
    ----------
    array : pyarrow.Array
        ``(rows,)``.
    where : str
        File and column, for messages.
    row : int
        Number of the first row, for messages.
    """
    if array.null_count:
        bad = row + int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"{where}: row {bad} is null, expected a number; fill or drop such rows")
    if not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_boolean(array.type)):
        raise DataError(f"{where}: holds {array.type}, expected numbers; encode the column as integers first")
    values = array.to_numpy(zero_copy_only=False)
    if floating:
        with np.errstate(over="ignore"):  # too large for float32: infinite, and found next
            values = values.astype(np.float32)
        _finite(values, where, row)
        return values
    return whole(values, where, row)


def whole(values: np.ndarray, where: str, row_of: np.ndarray | int) -> np.ndarray:
    """Return numbers as int64; ``row_of`` is as in ``check_ids``."""
    if values.dtype.kind == "f":
        bad = np.flatnonzero(~((np.abs(values) < 2.0**63) & (values == np.floor(values))))
        if bad.size:
            raise DataError(
                f"{where}: row {_row(row_of, bad[0])} holds {values[bad[0]]}, expected a whole number; "
                "write ids as integers"
            )
    return values.astype(np.int64)


def _row(row_of: np.ndarray | int, place: int) -> int:
    return row_of + int(place) if isinstance(row_of, int) else int(row_of[place])


def _finite(values: np.ndarray, where: str, row: int) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.argwhere(~finite)[0]
        raise DataError(f"{where}: row {row + int(bad[0])} holds {values[tuple(bad)]}, expected finite numbers")


def lists(array: pa.Array, where: str, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries of all lists ``(entries,)`` and the offsets ``(rows + 1,)`` of each row in them.

    Lists, large lists and fixed-size lists are taken; a null list is empty.
    """
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        if array.null_count:
            array = array.cast(pa.list_(kind.value_type))
        else:
            width = kind.list_size
            offsets = np.arange(len(array) + 1, dtype=np.int64) * width
            return _entries(array.flatten(), offsets, where, row), offsets
    if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
        raise DataError(f"{where}: holds {array.type}, expected a list of numbers per row")
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return _entries(array.flatten(), offsets, where, row), offsets


def _entries(flat: pa.Array, offsets: np.ndarray, where: str, row: int) -> np.ndarray:
    if flat.null_count:
        first = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0])
        bad = row + int(np.searchsorted(offsets, first, side="right")) - 1
        raise DataError(f"{where}: the list of row {bad} holds a null, expected numbers only; write 0 for padding")
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)):
        raise DataError(f"{where}: lists of {flat.type}, expected lists of numbers")
    return flat.to_numpy(zero_copy_only=False)


def check_ids(ids: np.ndarray, limit: int | None, where: str, row_of: np.ndarray | int) -> None:
    """Raise where an id is negative or not below ``limit``.

    ``row_of`` is the first row (one id per row) or the row of every id.
    """
    if ids.size == 0:
        return
    bad = (ids < 0) | (ids >= (limit or MAX_IDS))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        remedy = "number the ids anew" if limit is None else "raise vocab_size or mend the file"
        raise DataError(
            f"{where}: row {_row(row_of, first)} holds the id {int(ids[first])}, "
            f"expected 0 to {(limit or MAX_IDS) - 1}; {remedy}"
        )
