"""The files of a dataset folder: which there are, which types their columns have, and how they are read in chunks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fuxictr_mm.check_data.checks import ERROR, WARNING, Action, Fault, Report, declare
from fuxictr_mm.data import parquet
from fuxictr_mm.data.parquet import MAX_IDS, open_parquet
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ
from fuxictr_mm.errors import DataError, MissingFileError
from fuxictr_mm.terminal import progress_bar

#: Numbers in a chunk: bounds its memory to some 32 MB, whatever the length of its lists.
CHUNK_VALUES = 4 << 20
#: Rows in a chunk.
CHUNK_ROWS = 1 << 16

#: In the order of time: a later split must not show in an earlier one.
SPLITS = ("train", "valid", "test")
ITEM_FILES = ("item_info", "item_feature", "item_emb")
USER_ID, LABEL = "user_id", "label"
TITLE = "item_title"

#: A column whose numbers are integers but for this fraction holds integers; negative numbers are rare below it.
RARE = 0.01

MISSING_COLUMN = declare("missing-column", ERROR, "no such column", "the columns of the challenge's layout")
COLUMN_TYPE = declare("column-type", ERROR, "a column of a type that no model can read", "numbers, or lists of numbers")
EMPTY_FILE = declare("empty-file", ERROR, "no rows", "at least one row")
BAD_ITEM_ID = declare(
    "bad-item-id",
    ERROR,
    "null, negative, fractional or too large item ids",
    "integers from 0 to 2^31 - 1",
    Action.DROP_ROW,
)


@dataclass
class ItemFile:
    """An item file that can be read.

    Parameters
    ----------
    path : Path
        The file.
    schema : pyarrow.Schema
        Its columns.
    ids : ndarray of int64, (I,)
        ``item_id`` of each row, -1 where it is none.
    id_lists : list of str
        Columns of lists of ids, such as tags.
    known : ndarray of int64
        Ids of all item files, sorted, without padding.
    """

    path: Path
    schema: pa.Schema
    ids: np.ndarray
    id_lists: list[str]
    known: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    id_name = ITEM_ID

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.path.name

    @property
    def numbers(self) -> list[str]:
        """Columns of integers or other numbers, and of lists of ids."""
        scalars = [
            f.name
            for f in self.schema
            if is_number(f.type) and f.name != ITEM_ID and not pa.types.is_boolean(f.type)
        ]
        return scalars + self.id_lists

    @property
    def embeddings(self) -> list[str]:
        """Columns of lists of numbers that are no ids."""
        return [f.name for f in self.schema if is_number_list(f.type) and f.name not in self.id_lists]

    def rows(self, rows: np.ndarray, values: Sequence[object] | np.ndarray | None = None) -> pl.DataFrame:
        """Return the rows of a fault ``(R,)`` with their ids and values."""
        ids = self.ids[rows]
        frame = pl.DataFrame({"row": rows, "id": ids}, schema={"row": pl.Int64, "id": pl.Int64})
        return frame.with_columns(
            pl.when(pl.col("id") >= 0).then("id").alias("id"),
            value=pl.lit(None) if values is None else pl.Series(values, strict=False),
        )


@dataclass
class Layout:
    """The files of a folder.

    Parameters
    ----------
    splits : dict of str to Path
        The splits that are there.
    items : list of ItemFile
        The item files that can be read.
    item_paths : list of Path
        All item files.
    not_checked : list of str
        Files that are neither, and columns (``file: column (type)``) that no check looks at.
    """

    splits: dict[str, Path] = field(default_factory=dict)
    items: list[ItemFile] = field(default_factory=list)
    item_paths: list[Path] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)


def find_layout(folder: Path, report: Report, title_column: str | None = None) -> Layout:
    """Find the files of a folder and read the ids of its item files.

    Raises
    ------
    MissingFileError
        There is no such folder, or none of the files is in it.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected one with train.parquet and item files")
    layout = Layout()
    paths = {path.stem: path for path in sorted(folder.glob("*.parquet"))}
    layout.splits = {name: paths.pop(name) for name in SPLITS if name in paths}
    for name, path in paths.items():
        if name in ITEM_FILES or _is_item_file(path):
            layout.item_paths.append(path)
        else:
            layout.not_checked.append(path.name)
    if not layout.splits and not layout.item_paths:
        names = ", ".join(f"{name}.parquet" for name in (*SPLITS, *ITEM_FILES))
        raise MissingFileError(f"{folder}: holds none of {names}")
    for path in layout.item_paths:
        with report.reading(path):
            item = _read_item_file(path, report)
            if item is not None:
                layout.items.append(item)
                layout.not_checked += check_types(path, item.schema, {ITEM_ID, title_column or TITLE}, report)
    known = np.unique(np.concatenate([item.ids for item in layout.items] or [np.empty(0, np.int64)]))
    for item in layout.items:
        item.known = known[known > 0]
    return layout


def _is_item_file(path: Path) -> bool:
    try:
        names = read_schema(path).names
    except DataError:
        return False
    return ITEM_ID in names and ITEM_SEQ not in names and USER_ID not in names


def _read_item_file(path: Path, report: Report) -> ItemFile | None:
    schema = read_schema(path)
    if not has_columns(path, schema, [ITEM_ID], report):
        return None
    if not is_number(schema.field(ITEM_ID).type):
        fault = Fault(ITEM_ID, found=f"holds {schema.field(ITEM_ID).type}", expected="integers")
        report.add(COLUMN_TYPE, path.name, fault)
        return None
    parts = []
    for row, batch in read_chunks(path, [ITEM_ID]):
        ids = pl.DataFrame({"value": to_series(batch.column(0))}).with_row_index("row", row)
        ids = ids.with_columns(id=as_id("value")).with_columns(id=pl.when(pl.col("id") < MAX_IDS).then("id"))
        report.add(BAD_ITEM_ID, path.name, Fault(ITEM_ID, ids.filter(pl.col("id").is_null())))
        parts.append(ids["id"].fill_null(-1).to_numpy())
    if not parts:
        report.add(EMPTY_FILE, path.name, Fault())
    id_lists = [f.name for f in schema if is_number_list(f.type) and _holds_ids(path, f)]
    return ItemFile(path, schema, np.concatenate(parts or [np.empty(0, np.int64)]), id_lists)


def _holds_ids(path: Path, field: pa.Field) -> bool:
    """Whether a column of lists holds ids, by its first chunk: nearly all integers, not all 0 or 1, hardly any below -1."""
    array = first_chunk(path, field.name)
    if array is None:
        return False
    values = split_lists(array)[0].to_numpy(zero_copy_only=False).astype(np.float64)  # nulls are NaN
    values = values[np.isfinite(values)]
    if values.size and (values < -1).mean() > RARE:
        return False
    if pa.types.is_integer(field.type.value_type):
        return True
    return bool(values.size and (values == np.floor(values)).mean() >= 1 - RARE and np.abs(values).max() > 1)


def has_columns(path: Path, schema: pa.Schema, wanted: Sequence[str], report: Report) -> bool:
    """Whether all columns are there; those that are not are reported."""
    missing = [name for name in wanted if name not in schema.names]
    for name in missing:
        fault = Fault(name, found=f"no such column (columns: {', '.join(schema.names)})")
        report.add(MISSING_COLUMN, path.name, fault)
    return not missing


def check_types(path: Path, schema: pa.Schema, known: Collection[str], report: Report) -> list[str]:
    """Report the columns that no model can read, and return those that no check looks at.

    Numbers in another form (text, bytes, decimals) are an error: they are meant to be read. Text in a split and lists of
    anything else are a warning. The text of items, times and other types may well be there for something else.

    Parameters
    ----------
    path, schema
        The file.
    known : collection of str
        Columns that are checked by their names.
    report : Report
        Takes the findings.

    Returns
    -------
    list of str
        ``file: column (type)``.
    """
    not_checked = []
    in_split = path.stem in SPLITS
    for column in schema:
        if column.name in known or is_number(column.type) or (is_number_list(column.type) and not in_split):
            continue
        form = "" if models_read(column.type) else _hidden_numbers(first_chunk(path, column.name))
        suspicious = is_list(column.type) or pa.types.is_null(column.type) or (in_split and is_text(column.type))
        if form:
            mild = is_text(column.type) and not in_split  # a year or an article number, perhaps of a title
            fault = Fault(column.name, found=f"holds {form}", severity=WARNING if mild else ERROR)
            report.add(COLUMN_TYPE, path.name, fault)
        elif suspicious and not models_read(column.type):
            report.add(COLUMN_TYPE, path.name, Fault(column.name, found=f"holds {column.type}", severity=WARNING))
        else:
            not_checked.append(f"{path.name}: {column.name} ({column.type})")
    return not_checked


def models_read(kind: pa.DataType) -> bool:
    """Whether training can read a column of this type: asks the functions that it reads columns with."""
    for read in (parquet.scalars, parquet.lists):
        try:
            read(pa.nulls(0, kind), "", 0)
        except (DataError, pa.ArrowException):
            continue
        return True
    return False


def _hidden_numbers(array: pa.Array | None) -> str:
    """Say in which form an array that no model can read holds numbers; empty where it holds none."""
    if array is None:
        return ""
    if isinstance(array.type, pa.BaseExtensionType):
        return f"numbers as {array.type}" if models_read(array.type.storage_type) else ""
    prefix, sample = "", array
    if is_list(array.type):
        prefix, sample = "lists of ", split_lists(array)[0]
    if pa.types.is_dictionary(sample.type):
        sample = sample.dictionary_decode()
    sample, kind = sample.drop_null(), sample.type
    if pa.types.is_decimal(kind) or is_number(kind):
        return f"{prefix}numbers as {array.type}"
    if is_binary(kind):
        return f"{prefix}numbers as bytes" if _are_embeddings(sample) else ""
    if is_text(kind) and len(sample):
        try:
            sample.cast(pa.float64())
        except pa.ArrowInvalid:
            return ""
        return f"{prefix}numbers as text"
    return ""


def _are_embeddings(array: pa.Array) -> bool:
    """Whether bytes are those of embeddings: of one length, and long, or small numbers when read as numbers."""
    lengths = pc.unique(pc.binary_length(array)).to_pylist()
    if len(array) < 2 or len(lengths) > 1 or lengths[0] < 16:
        return False
    data = b"".join(array.slice(0, 1000).to_pylist())

    def are_small(form: str) -> bool:
        return len(data) % np.dtype(form).itemsize == 0 and bool((np.abs(np.frombuffer(data, form)) < 1e4).all())

    return lengths[0] > 64 or any(map(are_small, ("<f2", "<f4", "<f8")))  # up to 64 bytes it may be a hash


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


def read_chunks(
    path: Path, columns: Sequence[str], what: str = "", verbose: int = 0
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield ``(first row, record batch)`` of a file, the columns in the order asked for.

    Raises
    ------
    DataError
        The file is damaged; the message says after which row.
    """
    row = 0
    try:
        file = open_parquet(path)
        size = int(np.clip(CHUNK_VALUES / max(values_per_row(file.metadata, columns), 1), 256, CHUNK_ROWS))
        batches = file.iter_batches(batch_size=size, columns=list(columns))
        total = -(-file.metadata.num_rows // size)
        for batch in progress_bar(batches, what or path.name, verbose=verbose, total=total):
            yield row, batch.select(list(columns))
            row += batch.num_rows
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path}: damaged after row {row} ({reason})") from None


def first_chunk(path: Path, column: str) -> pa.Array | None:
    """Return the first rows of a column; None where there are none, or they are damaged, which its own check reports."""
    try:
        return next((batch.column(0) for _, batch in read_chunks(path, [column])), None)
    except DataError:
        return None


def values_per_row(metadata: pq.FileMetaData, columns: Sequence[str]) -> float:
    """Return how many numbers a row of these columns has, in the row group where it has most."""
    wanted, most = set(columns), 0.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(c) for c in range(group.num_columns))
        values = sum(c.num_values for c in chunks if c.path_in_schema.split(".")[0] in wanted)
        most = max(most, values / max(group.num_rows, 1))
    return most


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds one number per row."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_number_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists of numbers."""
    return is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_binary(kind: pa.DataType) -> bool:
    """Whether a column holds bytes."""
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def to_series(array: pa.Array) -> pl.Series:
    """Return a column of numbers, or of lists of numbers, as a Polars series; Boolean becomes 0 and 1."""
    if pa.types.is_float16(array.type):
        array = pa.array(array.to_numpy(zero_copy_only=False).astype(np.float32))  # nulls are NaN
    series = pl.Series(array)
    if isinstance(series.dtype, pl.Array):
        return series.arr.to_list()
    return series.cast(pl.Int8) if series.dtype == pl.Boolean else series


def as_id(column: str) -> pl.Expr:
    """Return integers from 0 as Int64, null for everything else."""
    ids = pl.col(column).cast(pl.Int64, strict=False)
    return pl.when((ids >= 0) & (ids == pl.col(column))).then(ids)


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
