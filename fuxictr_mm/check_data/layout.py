"""The files of a dataset folder, the types of their columns, and reading in chunks."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.check_data.checks import ERROR, WARNING, Action, Fault, Report, declare
from fuxictr_mm.check_data.translation import LABEL, USER_ID, Translation, active
from fuxictr_mm.data import decoding, parquet
from fuxictr_mm.data.arrow_types import is_bytes, is_list, is_plain_text, plain_type
from fuxictr_mm.data.decoding import MAX_IDS
from fuxictr_mm.data.parquet import open_parquet, part_files, schema_of
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ
from fuxictr_mm.errors import DataError, MissingFileError, first_line
from fuxictr_mm.terminal import progress_bar
from fuxictr_mm_serving.prepared import ITEM_FILE, MANIFEST, ROW_SOURCES, SOURCE_ID

#: Numbers and rows in a chunk: they bound its memory to some 8 MB, whatever the length of its lists.
CHUNK_VALUES, CHUNK_ROWS = 1 << 20, 1 << 16

#: In the order of time: a later split must not show in an earlier one.
SPLITS = ("train", "valid", "test")
ITEM_FILES = ("item_info", "item_feature", "item_emb")
TITLE = "item_title"

#: How the column of a role is named, where it has another name than the checks'.
OPTIONS = {
    LABEL: "--label NAME",
    ITEM_ID: "--roles target=NAME",
    ITEM_SEQ: "--roles history=NAME",
    USER_ID: "--roles user=NAME",
}

#: Fraction of the numbers of a column that are exceptions: fractions among integers, outliers, negative ones among ids.
RARE = 0.01

MISSING_COLUMN = declare("missing-column", ERROR, "no such column", "the columns of the challenge's layout")
COLUMN_TYPE = declare("column-type", ERROR, "a column of a type that models cannot read", "numbers, or lists of them")
EMPTY_FILE = declare("empty-file", ERROR, "no rows", "at least one row")
BAD_ITEM_ID = declare(
    "bad-item-id", ERROR, "null, negative, fractional or too large item ids", "integers below 2^31", Action.DROP_ROW
)


@dataclass
class ItemFile:
    """An item file that can be read."""

    path: Path
    schema: pa.Schema
    #: ``item_id`` of each row, ``(I,)`` int64, -1 where the value is not an id.
    ids: np.ndarray
    #: Columns of lists of ids, such as tags.
    id_lists: list[str]
    #: Ids of all item files, sorted, without padding.
    known: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def numbers(self) -> list[str]:
        """Columns of numbers, and of lists of ids."""
        numbers = [f.name for f in self.schema if is_number(f.type) and not pa.types.is_boolean(f.type)]
        return [name for name in numbers + self.id_lists if name not in (ITEM_ID, source_of_ids(self.path))]

    @property
    def embeddings(self) -> list[str]:
        """Columns of lists of numbers that are not ids."""
        return [f.name for f in self.schema if is_number_list(f.type) and f.name not in self.id_lists]

    def fault(
        self, column: str, rows: np.ndarray, values: Sequence[object] | np.ndarray | None = None, **texts: str
    ) -> Fault:
        """Return rows ``(R,)`` of a column as a fault."""
        frame = pl.DataFrame({"row": rows, ITEM_ID: self.ids[rows]})
        value = pl.lit(None) if values is None else pl.Series(values, strict=False)
        return Fault(self.path.name, column, frame.with_columns(value=value), **texts)


@dataclass
class Layout:
    """The files of a folder: splits by name, and item files, of which ``items`` are those that can be read."""

    splits: dict[str, Path]
    item_paths: list[Path] = field(default_factory=list)
    items: list[ItemFile] = field(default_factory=list)
    #: Files that are neither, and columns (``file: column (type)``) that no check looks at.
    not_checked: list[str] = field(default_factory=list)
    #: Between the files and the checks.
    translation: Translation = field(default_factory=Translation)
    #: Columns whose numbers are ids, as ``dataset_config.yaml`` has it.
    categories: Collection[str] = ()


def find_layout(folder: Path, report: Report, title_column: str) -> Layout:
    """Find the files of a folder, read the ids of its item files, and check the types of their columns.

    Raises
    ------
    MissingFileError
        The folder does not exist, or holds none of the files.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected one with train.parquet and item files")
    paths = {name_of(path): path for path in data_paths(folder)}
    layout = Layout({name: paths.pop(name) for name in SPLITS if name in paths})
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
                known = {ITEM_ID, title_column, source_of_ids(path)}
                layout.not_checked += check_types(path, item.schema, known, report)
    ids = np.unique(np.concatenate([item.ids for item in layout.items] or [np.empty(0, np.int64)]))
    for item in layout.items:
        item.known = ids[ids > 0]
    return layout


def data_paths(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, and folders of part files such as ``train`` or ``split=train``."""
    files = {name_of(path): path for path in sorted(folder.glob("*.parquet"))}
    for path in sorted(path for path in folder.glob("*") if path.is_dir()):
        if name_of(path) in (*SPLITS, *ITEM_FILES) and not path.name.endswith(".parquet"):
            files.setdefault(name_of(path), path)
    return sorted(files.values())


def source_of_ids(path: Path) -> str | None:
    """Return the column of the items of ``fuxictr-mm prepare`` with their ids in the source, which is not a feature."""
    return SOURCE_ID if path.name == ITEM_FILE and (path.parent / MANIFEST).is_file() else None


def sources_of_rows(path: Path) -> set[str | None]:
    """Return the columns of a split of ``fuxictr-mm prepare`` that say where rows come from, which are not features."""
    return set(ROW_SOURCES) if (path.parent / MANIFEST).is_file() else set()


def name_of(path: Path) -> str:
    """Return the name of a split or item file: that of its file or folder, or the value of a Hive partition."""
    return path.name.removesuffix(".parquet").rpartition("=")[2]


def _is_item_file(path: Path) -> bool:
    try:
        names = read_schema(path).names
    except (DataError, MissingFileError):
        return False
    return ITEM_ID in names and ITEM_SEQ not in names and USER_ID not in names


def _read_item_file(path: Path, report: Report) -> ItemFile | None:
    schema = read_schema(path)
    if not require(path, schema, {ITEM_ID: "integers"}, report):
        return None
    parts = [np.empty(0, np.int64)]
    for row, batch in read_chunks(path, [ITEM_ID]):
        ids = pl.DataFrame({"value": to_series(batch.column(0))}).with_row_index("row", row)
        ids = ids.select("row", pl.when(as_id("value") < MAX_IDS).then(as_id("value")).alias(ITEM_ID), "value")
        report.add(BAD_ITEM_ID, Fault(path.name, ITEM_ID, ids.filter(pl.col(ITEM_ID).is_null())))
        parts.append(ids[ITEM_ID].fill_null(-1).to_numpy())
    if len(parts) == 1:
        report.add(EMPTY_FILE, Fault(path.name))
    id_lists = [f.name for f in schema if is_number_list(f.type) and _holds_ids(path, f)]
    return ItemFile(path, schema, np.concatenate(parts), id_lists)


def _holds_ids(path: Path, column: pa.Field) -> bool:
    """Whether lists hold ids, by their first chunk: nearly all are integers, not all 0 or 1, hardly any below -1."""
    array = first_chunk(path, column.name)
    if array is None:
        return False
    values = split_lists(array)[0].to_numpy(zero_copy_only=False).astype(np.float64)  # nulls are NaN
    values = values[np.isfinite(values)]
    if values.size and (values < -1).mean() > RARE:
        return False
    if pa.types.is_integer(column.type.value_type):
        return True
    return bool(values.size and (values == np.floor(values)).mean() >= 1 - RARE and np.abs(values).max() > 1)


def require(
    path: Path, schema: pa.Schema, wanted: dict[str, str], report: Report, lists: Collection[str] = ()
) -> list[str]:
    """Return the columns among ``wanted`` (with what they should hold) that can be read; report the others.

    Those in ``lists`` should hold lists of numbers.
    """
    usable = []
    for name, expected in wanted.items():
        if name not in schema.names:
            text = f"no such column (columns: {', '.join(schema.names)})"
            asked = f"{expected}; if the column has another name, add {OPTIONS[name]}" if name in OPTIONS else ""
            report.add(MISSING_COLUMN, Fault(path.name, name, found=text, expected=asked))
            continue
        kind = schema.field(name).type
        if is_number_list(kind) or pa.types.is_null(kind) if name in lists else is_number(kind):
            usable.append(name)
        else:
            report.add(COLUMN_TYPE, Fault(path.name, name, found=f"holds {kind}", expected=expected))
    return usable


def check_types(path: Path, schema: pa.Schema, known: Collection[str | None], report: Report) -> list[str]:
    """Report columns that models cannot read; return those (``file: column (type)``) that no check looks at.

    Numbers as bytes are an error, and numbers as text a warning: they are meant to be read, as numbers. Lists of
    anything else are a warning. Text is read as categories; times and other types may be there for something else.
    Columns that are ``known`` are checked by their names.
    """
    not_checked = []
    in_split = name_of(path) in SPLITS
    for column in schema:
        kind, text = column.type, is_text(column.type)
        if column.name in known or is_number(kind) or (is_number_list(kind) and not in_split):
            continue
        form = "" if is_number_list(kind) else _hidden_numbers(first_chunk(path, column.name))
        # Categories may be text, and so may lists of them of items; context columns hold no lists.
        text = text or (is_list(kind) and is_text(kind.value_type) and not in_split)
        if form:
            severity = WARNING if text else ERROR
            report.add(COLUMN_TYPE, Fault(path.name, column.name, found=f"holds {form}", severity=severity))
        elif pa.types.is_null(kind) or (is_list(kind) and not is_number_list(kind) and not text):
            report.add(COLUMN_TYPE, Fault(path.name, column.name, found=f"holds {kind}", severity=WARNING))
        else:
            not_checked.append(f"{path.name}: {column.name} ({kind})")
    return not_checked


def _hidden_numbers(array: pa.Array | None) -> str:
    """Return the form of the numbers in an array that models cannot read; empty without numbers."""
    if array is None:
        return ""
    sample = split_lists(array)[0] if is_list(array.type) else array
    sample = (sample.dictionary_decode() if pa.types.is_dictionary(sample.type) else sample).drop_null()
    if pa.types.is_decimal(sample.type) or is_number(sample.type):
        return f"numbers as {array.type}"
    if is_bytes(sample.type):
        return "embeddings as bytes" if _are_embeddings(sample) else ""
    try:
        return f"numbers as {array.type}" if is_text(sample.type) and len(sample.cast(pa.float64())) else ""
    except pa.ArrowInvalid:
        return ""


def _are_embeddings(array: pa.Array) -> bool:
    """Whether bytes are those of embeddings: of one length, and long, or small numbers when read as numbers."""
    lengths = pc.unique(pc.binary_length(array)).to_pylist()
    if len(array) < 2 or len(lengths) > 1 or lengths[0] < 16:
        return False
    data = b"".join(array.slice(0, 1000).to_pylist())
    forms = [form for form in ("<f2", "<f4", "<f8") if len(data) % np.dtype(form).itemsize == 0]
    # Up to 64 bytes it may be a hash.
    return lengths[0] > 64 or any((np.abs(np.frombuffer(data, form)) < 1e4).all() for form in forms)


def read_schema(path: Path) -> pa.Schema:
    """Return the columns of a file, or of the first of part files; extension types are their storage.

    Raises
    ------
    DataError, MissingFileError
        It is not a Parquet file, or two columns have one name; a folder has no part files.
    """
    schema = schema_of(part_files(path)[0])
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: several columns are named {', '.join(twice)}, expected one of each name")
    # Of dictionaries, the checks look at the values.
    kinds = [f.type if pa.types.is_dictionary(f.type) else plain_type(f.type) for f in schema]
    schema = pa.schema([f.with_type(kind) for f, kind in zip(schema, kinds, strict=True)])
    return active().schema(schema)


def read_chunks(
    path: Path, columns: Sequence[str], what: str = "", verbose: int = 0
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield ``(first row, record batch)`` of a file or of all part files, the columns in the order asked for.

    Rows of small files come together: a chunk costs the checks some 20 ms, whatever it holds.

    Raises
    ------
    DataError
        The file is damaged; the message has the row.
    """
    row = 0
    try:
        first, translation = schema_of(part_files(path)[0]), active()
        there = translation.names_on_disk(first.names, columns)
        rows, values = _size_of(path, there)
        size = int(np.clip(CHUNK_VALUES / max(values, 1), 256, CHUNK_ROWS))
        chunks = _joined(parquet.read_rows(path, there, max_rows=size), size)
        total = -(-rows // size)
        for row, batch in progress_bar(chunks, what or path.name, verbose=verbose, total=total):
            _check_kinds(path, batch, first)
            yield row, translation.batch(path, batch.select(there), columns)
    except DataError:
        raise
    except (pa.ArrowException, ValueError, IndexError) as error:
        reason = first_line(error)
        raise DataError(f"{path}: damaged after row {row} ({reason})") from None


def _check_kinds(path: Path, batch: pa.RecordBatch, first: pa.Schema) -> None:
    """Raise a DataError for a column that is text in one part file and numbers or lists in the ``first``."""
    for column in batch.schema:
        kinds = [plain_type(first.field(column.name).type), plain_type(column.type)]
        if len({_kind(kind) for kind in kinds if not pa.types.is_null(kind)}) > 1:
            raise DataError(
                f"{path}: {column.name} holds {kinds[0]} in the first part file and {kinds[1]} in another; write "
                "all of them with one type"
            )


def _kind(kind: pa.DataType) -> str:
    if is_list(kind):
        return "lists"
    return "text" if is_plain_text(kind) else "numbers" if is_number(kind) else "others"


def _joined(chunks: Iterable[tuple[int, pa.RecordBatch]], size: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Join chunks of equal types that follow one another to at most ``size`` rows."""
    first, waiting = 0, list[pa.RecordBatch]()
    try:
        for row, batch in chunks:
            rows = sum(b.num_rows for b in waiting)
            if waiting and (rows + batch.num_rows > size or batch.schema != waiting[0].schema):
                yield first, pa.concat_batches(waiting)
                waiting = []
            first = first if waiting else row
            waiting.append(batch)
    except DataError:  # after what is before the damage
        if waiting:
            yield first, pa.concat_batches(waiting)
        raise
    if waiting:
        yield first, pa.concat_batches(waiting)


def first_chunk(path: Path, column: str) -> pa.Array | None:
    """Return the first rows of a column; None where there are none. Damage is reported by the check of the column."""
    try:
        return next((batch.column(0) for _, batch in read_chunks(path, [column])), None)
    except DataError:
        return None


def values_per_row(path: Path, columns: Sequence[str]) -> float:
    """Return how many numbers a row of these columns has, in the row group where it has most."""
    return _size_of(path, columns)[1]


def _size_of(path: Path, columns: Sequence[str]) -> tuple[int, float]:
    """Return the number of rows, and ``values_per_row``, from the footers."""
    rows, most = 0, 0.0
    for file in part_files(path):
        footer = open_parquet(file).metadata
        rows += footer.num_rows
        for group in map(footer.row_group, range(footer.num_row_groups)):
            chunks = (group.column(c) for c in range(group.num_columns))
            values = sum(c.num_values for c in chunks if c.path_in_schema.split(".")[0] in columns)
            most = max(most, values / max(group.num_rows, 1))
    return rows, most


@functools.cache
def is_number(kind: pa.DataType) -> bool:
    """Whether models read a column of this type as one number per row."""
    return _is_accepted(functools.partial(decoding.scalars, floating=True), kind)


@functools.cache
def is_scalar(kind: pa.DataType) -> bool:
    """Whether a column of this type holds a number, a text, bytes or a time per row."""
    return is_number(kind) or is_text(kind) or is_bytes(kind) or pa.types.is_temporal(kind)


@functools.cache
def is_number_list(kind: pa.DataType) -> bool:
    """Whether models read a column of this type as lists of numbers."""
    return is_list(kind) and _is_accepted(decoding.lists, kind)


def _is_accepted(read: Callable[[pa.Array, str, int], object], kind: pa.DataType) -> bool:
    try:
        read(pa.nulls(0, kind), "", 0)  # what training reads columns with, so that both agree
    except DataError:
        return False
    return True


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return is_plain_text(kind.value_type if pa.types.is_dictionary(kind) else kind)


def to_series(array: pa.Array) -> pl.Series:
    """Return a column as a Polars series; Boolean becomes 0 and 1, a time that of UTC."""
    if pa.types.is_timestamp(array.type):  # Polars has no time zones such as +05:30
        array = array.cast(pa.timestamp(array.type.unit))
    elif pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    elif is_list(array.type) and pa.types.is_float16(array.type.value_type):  # Polars 1.35 reads other numbers
        array = array.cast(pa.large_list(pa.float32()))
    series = pl.Series(array)
    if isinstance(series.dtype, pl.Array):
        return series.arr.to_list()
    return series.cast(pl.Int8) if series.dtype == pl.Boolean else series


def as_id(column: str) -> pl.Expr:
    """Return integers from 0 as Int64, null for everything else."""
    ids = pl.col(column).cast(pl.Int64, strict=False)
    return pl.when((ids >= 0) & (ids == pl.col(column))).then(ids)


def names_of_items(numbers: pl.Series | np.ndarray | list[int]) -> list[Any]:
    """Return items as the files name them, where they are numbered in memory."""
    if active().items is None:
        return list(numbers.tolist() if isinstance(numbers, np.ndarray) else numbers)
    index = pl.Series(numbers, dtype=pl.Int64).fill_null(0).to_numpy()
    return active().shown(index)


def as_text(array: pa.Array) -> list[str]:
    """Return one text per row; bytes that are not UTF-8 become U+FFFD, null becomes empty."""
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    raw = array.cast(pa.large_binary()).to_pylist()
    return ["" if b is None else b.decode("utf-8", errors="replace") for b in raw]


def split_lists(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the entries of all lists ``(N,)`` and the offsets of each row in them ``(R + 1,)``; a null is empty."""
    if pa.types.is_fixed_size_list(array.type) and array.null_count:
        array = array.cast(pa.list_(array.type.value_type))
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return array.flatten(), np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def common_length(path: Path, column: str) -> int:
    """Return the length of most lists of a column, the empty ones left out; 0 where all are empty."""
    counts = _lengths(path, column)
    return counts.most_common(1)[0][0] if counts else 0


def has_one_length(path: Path, column: str) -> bool:
    """Whether all lists of a column, the empty ones left out, have the same length, as padded ones have."""
    return len(_lengths(path, column)) == 1


def pads_right(path: Path, column: str) -> bool:
    """Whether more lists of a column end with padding than begin with it, in its first chunk."""
    array = first_chunk(path, column)
    rows = [row for row in (array.to_pylist() if array is not None else ()) if row]
    return sum(not row[-1] for row in rows) > sum(not row[0] for row in rows)


def _lengths(path: Path, column: str) -> Counter[int]:
    """Return how many lists of a column have each length, the empty ones left out."""
    kind = read_schema(path).field(column).type
    if pa.types.is_fixed_size_list(kind):
        return Counter([kind.list_size])
    counts: Counter[int] = Counter()
    for _, batch in read_chunks(path, [column]):
        counts.update(np.diff(split_lists(batch.column(0))[1]).tolist())
    del counts[0]
    return counts
