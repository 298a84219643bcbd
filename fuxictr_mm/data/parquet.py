"""Parquet files: which files a path means, their columns, and reading in chunks.

Every error names the file, and the column.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.data.arrow_types import plain_array
from fuxictr_mm.data.remote import is_remote, path_of
from fuxictr_mm.errors import DataError, MissingFileError, first_line, nearest
from fuxictr_mm.files import StrPath
from fuxictr_mm_serving.folders import IGNORED, SUFFIXES, natural_key, partition_values

#: Rows decoded at a time, and fewer where lists are long: at most so many values (4 M ids are 34 MB).
CHUNK_ROWS, CHUNK_VALUES = 32_768, 1 << 22

#: Endings of other files of rows, and of compressed or unfinished files.
DATA_SUFFIXES = {
    *SUFFIXES, ".csv", ".tsv", ".feather", ".arrow", ".ipc", ".orc", ".avro", ".jsonl", ".ndjson", ".tfrecord"
}  # fmt: skip
PACKED_SUFFIXES = {
    ".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz", ".lz4", ".snappy", ".lzo", ".br", ".zip", ".crdownload", ".part",
    ".partial", ".tmp",
}  # fmt: skip

#: What separates the columns of CSV files.
SEPARATORS = ",;\t|"

#: Names without an ending that are those of part files: ``part-00000``, ``000000_0``.
_PART_NAME = re.compile(r"(?:part|data|file|chunk|shard)?[-_.]?\d[\d_.-]*(?:-[\w-]+)?", re.IGNORECASE)

#: Folders in a table of these formats, which keep files of older versions beside those of the newest.
TABLE_FORMATS = {"_delta_log": "Delta", ".hoodie": "Hudi"}

#: Bytes read at a time per column; bounds the memory where one row group holds the whole file.
READ_BYTES = 1 << 20


def part_files(path: StrPath, suffix: str = ".parquet", *, strict: bool = True) -> list[Path]:
    """Return the files of a dataset: one file, the same with ``suffix`` appended, or a folder of part files.

    The part files of a folder are in natural order (``part.2`` before ``part.10``). Hive partitions (subfolders such
    as ``dt=2024-01-01``, a column of their rows) are read as well; names that begin with ``_``, ``.`` or ``~`` are
    ignored, and so are empty files and files such as README or ``manifest.json``. A folder that holds rows in files of
    another form as well is refused, unless ``strict`` is False.
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
                    f"{path}: is a {table} table, whose folder also holds files of older versions; write its newest "
                    "version as plain Parquet"
                )
        files, others = _files_of_folder(path, suffix)
        if files and not (others and strict):
            return files
        if others:
            names = ", ".join(str(other.relative_to(path)) for other in others[:3])
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            error = DataError if files else MissingFileError
            raise error(
                f"{path}: {names}{more} would not be read, only {suffix} files are; unpack or convert them, give files "
                f"without an ending the ending {suffix}, or move them out of the folder"
            )
        raise MissingFileError(
            f"{path}: the folder holds no {suffix} file (other subfolders than partitions such as dt=2024-01-01 are "
            "not read)"
        )
    folder = path.parent
    present = sorted(p.name for p in folder.glob(f"*{suffix}")) if folder.is_dir() else []
    near = nearest(path.stem + suffix, present)
    hint = f"{near} ({folder} holds: {', '.join(present[:8]) or f'no {suffix} file'})"
    raise MissingFileError(f"{path}: no such file or folder{hint if folder.is_dir() else ''}")


def _files_of_folder(folder: Path, suffix: str) -> tuple[list[Path], list[Path]]:
    """Return the files of a folder and of its Hive partitions, in natural order, and other files that hold rows."""
    files: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.iterdir(), key=natural_key):
        if path.name.startswith(IGNORED):
            continue
        if path.is_dir():
            inside = _files_of_folder(path, suffix) if "=" in path.name else ([], [])
            files += inside[0]
            others += inside[1]
        elif path.suffix.lower() in (SUFFIXES if suffix == ".parquet" else (suffix,)):
            files.append(path)
        elif _holds_rows(path, suffix):
            others.append(path)
    # Its unpacked or converted form may be beside a file.
    present = {name for path in files for name in (path, path.with_suffix(""))}
    return files, [path for path in others if path.with_suffix("") not in present]


def _holds_rows(path: Path, suffix: str) -> bool:
    """Whether a file seems to hold rows that are not read: by another ending, compressed, or a part without ending."""
    ending = path.suffix.lower()
    inner = path.with_suffix("")
    named = ending in DATA_SUFFIXES or (
        ending in PACKED_SUFFIXES and (inner.suffix.lower() in DATA_SUFFIXES or bool(_PART_NAME.fullmatch(inner.name)))
    )
    # Only such endings are opened: there may be thousands of other files.
    opened = not named and suffix == ".parquet" and bool(re.fullmatch(r"(\.[a-z]?\d+)?", ending))
    if not (named or opened or (not ending and _PART_NAME.fullmatch(path.name))):
        return False
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return False
        if not opened:
            return True
        with path.open("rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError:  # it may not be read
        return named


def open_parquet(path: Path, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Open a Parquet file; with ``metadata`` its footer is not read again."""
    try:
        # Buffering ahead, the default of newer pyarrow, would hold every row group that was read.
        source = path.open("rb") if is_remote(path) else path
        return pq.ParquetFile(source, metadata=metadata, buffer_size=READ_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error)
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            fix = "write it as Parquet, pl.read_csv(FILE).write_parquet(...)"
        elif kind := _kind_of_text(path):
            raise DataError(
                f"{path}: is {kind[0]}, expected a Parquet file; write it as Parquet, "
                f"pl.{kind[1]}(FILE).write_parquet(...)"
            ) from None
        else:
            fix = "download or write it again"
        raise DataError(f"{path}: cannot be read as Parquet ({reason}); {fix}") from None


def metadata_of(path: Path) -> dict[bytes, bytes]:
    """Return the metadata of a Parquet file, empty without any; see ``open_parquet``."""
    return open_parquet(path).metadata.metadata or {}


def _kind_of_text(path: Path) -> tuple[str, str] | None:
    """Return what a file of text seems to be, and the function of polars that reads it; None for any other."""
    if is_remote(path) or not path.is_file():
        return None
    with path.open("rb") as stream:
        start = stream.read(4096)
    try:
        lines = start.decode("utf-8-sig", errors="strict" if len(start) < 4096 else "ignore").splitlines()
    except UnicodeDecodeError:
        return None
    first = lines[0].strip() if lines else ""
    if "\0" in first or not first:
        return None
    if first.startswith("{"):
        is_lines = first.endswith("}")
        return ("JSON lines", "read_ndjson") if is_lines else ("JSON", "read_json")
    if first.startswith("["):
        return "JSON", "read_json"
    return ("CSV", "read_csv") if any(separator in first for separator in SEPARATORS) else None


def partition_columns(file: Path, texts: Collection[str] = ()) -> dict[str, pa.Scalar]:
    """Return the columns of Hive partitions, each with its value in all rows of the file; see ``partition_values``."""
    found = partition_values(file, texts)
    return {name: pa.scalar(value, pa.int64() if is_int else pa.string()) for name, (value, is_int) in found.items()}


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
    path: StrPath, columns: Sequence[str], max_rows: int | None = None
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the chunks of ``read_chunks`` for all part files of a dataset, with consecutive row numbers."""
    first = 0
    for file in part_files(path):
        rows = 0
        for row, batch in read_chunks(file, columns, max_rows=max_rows):
            yield first + row, batch
            rows = row + batch.num_rows
        first += rows


def count_rows(path: StrPath) -> int:
    """Return the number of rows of a dataset, from the files' footers only."""
    return sum(open_parquet(file).metadata.num_rows for file in part_files(path))


def require_columns(path: StrPath, present: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise a DataError for the first column that is missing, with the nearest name, or that occurs twice."""
    for name in wanted:
        if name not in present:
            is_parquet = path_of(path).suffix.lower() not in DATA_SUFFIXES.difference(SUFFIXES)
            if path_of(path).is_file() and is_parquet and name in _pandas_index(path_of(path)):
                raise DataError(
                    f"{path}: '{name}' is the index of a pandas frame, which is not a column of the file; "
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
    """Adjacent row groups of a file that are read together."""

    path: Path  #: The file.
    metadata: pq.FileMetaData  #: Its footer.
    groups: range  #: Indices of the row groups.
    row: int  #: Index in the file of the first row of the row groups.
    num_rows: int  #: Number of rows that are read.
    skip: int = 0  #: Rows at the beginning that are left out.


def split_row_groups(
    path: Path, metadata: pq.FileMetaData, max_rows: int, start: int = 0, stop: int | None = None
) -> list[RowGroupRange]:
    """Split a file into ranges of at most ``max_rows`` rows; a larger row group is a separate range.

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
        reason = first_line(error)
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
            f"({first_line(error)}); write the file again, in smaller row groups or other types"
        ) from None


def _chunk_rows(metadata: pq.FileMetaData, columns: Sequence[str], groups: Sequence[int]) -> int:
    """Return how many rows to decode at a time, by the mean length of lists in a file."""
    rows = values = 0
    for group in map(metadata.row_group, groups):
        rows += group.num_rows
        leaves = map(group.column, range(group.num_columns))
        values += sum(leaf.num_values for leaf in leaves if leaf.path_in_schema.split(".")[0] in columns)
    return min(CHUNK_ROWS, max(1, CHUNK_VALUES * rows // max(values, 1)))


def _plain_types(batch: pa.RecordBatch, path: Path) -> pa.RecordBatch:
    """Convert the types that writers choose by themselves, see ``plain_type``."""
    columns = []
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        try:
            columns.append(plain_array(array))
        except pa.ArrowException as error:
            raise DataError(f"{path}: {name}: holds {array.type} ({error}); cast the column to int64") from None
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)
