"""Checks of item ids across item files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from fuxictr_mm.check_data.checks import WARNING, Report
from fuxictr_mm.data.parquet import MAX_IDS, open_parquet
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ
from fuxictr_mm.errors import DataError, MissingFileError
from fuxictr_mm.terminal import progress_bar

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


#: In the order of time: a later split must not show in an earlier one.
SPLITS = ("train", "valid", "test")


ITEM_FILES = ("item_info", "item_feature", "item_emb")


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
        Columns of lists of ids, such as tags: of integers, or of floating-point numbers that are whole.
    """

    path: Path
    schema: pa.Schema
    ids: np.ndarray
    id_lists: list[str]

    @property
    def vectors(self) -> list[str]:
        """Columns of floating-point lists, those of ids left out."""
        return [f.name for f in self.schema if is_list_of(f.type, floating=True) and f.name not in self.id_lists]


@dataclass
class Layout:
    """The files of a folder.

    Parameters
    ----------
    folder : Path
        Where they lie.
    splits : dict of str to Path
        The splits that are there.
    items : list of ItemFile
        The item files that can be read.
    item_paths : list of Path
        All item files.
    others : list of str
        Parquet files that are neither.
    """

    folder: Path
    splits: dict[str, Path] = field(default_factory=dict)
    items: list[ItemFile] = field(default_factory=list)
    item_paths: list[Path] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def known_ids(self) -> np.ndarray:
        """Return the ids that some item file has, sorted, without padding."""
        ids = np.unique(np.concatenate([item.ids for item in self.items] or [np.empty(0, np.int64)]))
        return ids[ids > 0]


def find_layout(folder: Path, report: Report) -> Layout:
    """Find the files of a folder and read the ids of its item files.

    Raises
    ------
    MissingFileError
        There is no such folder, or none of the files is in it.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected one with train.parquet and item files")
    layout = Layout(folder)
    for path in sorted(folder.glob("*.parquet")):
        if path.stem in SPLITS:
            layout.splits[path.stem] = path
        elif path.stem in ITEM_FILES or _is_item_file(path):
            layout.item_paths.append(path)
        else:
            layout.others.append(path.name)
    layout.splits = {name: layout.splits[name] for name in SPLITS if name in layout.splits}
    if not layout.splits and not layout.item_paths:
        names = ", ".join(f"{name}.parquet" for name in (*SPLITS, *ITEM_FILES))
        raise MissingFileError(f"{folder}: holds none of {names}")
    for path in layout.item_paths:
        with report.reading(path):
            item = _read_item_file(path, report)
            if item is not None:
                layout.items.append(item)
    return layout


def _is_item_file(path: Path) -> bool:
    report = Report()
    with report.reading(path):
        names = read_schema(path).names
        return ITEM_ID in names and ITEM_SEQ not in names and "user_id" not in names
    return False


def _read_item_file(path: Path, report: Report) -> ItemFile | None:
    schema = read_schema(path)
    if not has_columns(path, schema, [ITEM_ID], report):
        return None
    if not is_number(schema.field(ITEM_ID).type):
        report.add("column-type", path.name, ITEM_ID, found=f"holds {schema.field(ITEM_ID).type}")
        return None
    parts = []
    for row, columns in read_chunks(path, [ITEM_ID]):
        ids, good = ids_of(columns[ITEM_ID])
        good &= ids < MAX_IDS
        ids = np.where(good, ids, -1)
        bad = np.flatnonzero(~good)
        report.add("bad-item-id", path.name, ITEM_ID, row + bad, ids[bad], columns[ITEM_ID].take(bad).to_pylist())
        parts.append(ids)
    if not parts:
        report.add("empty-file", path.name)
    id_lists = [f.name for f in schema if is_list_of(f.type, floating=False) or _holds_ids(path, f)]
    return ItemFile(path, schema, np.concatenate(parts or [np.empty(0, np.int64)]), id_lists)


def _holds_ids(path: Path, field: pa.Field) -> bool:
    """Whether a column of floating-point lists holds ids, by its first chunk: nearly all whole, and not all 0 or 1."""
    if not is_list_of(field.type, floating=True):
        return False
    # Damage is told by the check that reads the column.
    with Report(()).reading(path):
        for _, columns in read_chunks(path, [field.name]):
            values = numbers(split_lists(columns[field.name])[0])
            values = values[np.isfinite(values)]
            return bool(values.size and (values == np.floor(values)).mean() >= 0.99 and np.abs(values).max() > 1)
    return False


def has_columns(path: Path, schema: pa.Schema, wanted: Sequence[str], report: Report) -> bool:
    """Whether all columns are there; reports those that are not."""
    missing = [name for name in wanted if name not in schema.names]
    for name in missing:
        report.add("missing-column", path.name, name, found=f"no such column (columns: {', '.join(schema.names)})")
    return not missing


def check_items(layout: Layout, report: Report) -> None:
    """Look for items twice, items that a file lacks, and padding that is not zero."""
    known = layout.known_ids()
    for item in layout.items:
        name = item.path.name
        again = later_rows(item.ids)
        again = again[item.ids[again] >= 0]
        report.add("duplicate-item", name, ITEM_ID, again, item.ids[again])
        lacking = np.setdiff1d(known, item.ids)
        report.add("partial-item", name, ITEM_ID, np.full(len(lacking), -1), lacking)
        if report.wants("padding-row"):
            with report.reading(item.path):
                _check_padding(item, report)


def later_rows(keys: np.ndarray) -> np.ndarray:
    """Return the places whose key stands earlier as well, sorted.

    Examples
    --------
    >>> later_rows(np.array([3, 5, 3, 3]))
    array([2, 3])
    """
    _, first = np.unique(keys, return_index=True)
    later = np.ones(len(keys), dtype=bool)
    later[first] = False
    return np.flatnonzero(later)


def _check_padding(item: ItemFile, report: Report) -> None:
    rows = np.flatnonzero(item.ids == 0)
    if not rows.size:
        return
    fields = [f for f in item.schema if f.name != ITEM_ID]
    names = [f.name for f in fields if _can_be_zero(f.type)]
    for start, columns in read_chunks(item.path, names):
        if start > rows[-1]:
            break
        for row in rows[(rows >= start) & (rows < start + len(columns[names[0]]))] if names else ():
            for name in names:
                value = columns[name][int(row - start)].as_py()
                if not _is_zero(value):
                    report.add("padding-row", item.path.name, name, [row], [0], [value])


def _can_be_zero(kind: pa.DataType) -> bool:
    return is_number(kind) or is_list_of(kind, floating=True) or is_list_of(kind, floating=False)


def _is_zero(value: Any) -> bool:
    return not any(value) if isinstance(value, list) else not value


#: A gap of so many times the range of the values below it, ...
FAR = 10


#: ... above which so small a share of all values lies, and below which so many.
RARE, LEAST_BELOW = 0.01, 20


FRACTIONS = "fractions in a column of whole numbers"


def first_far(values: np.ndarray, counts: np.ndarray) -> float | None:
    """Return the least of the values that lie far beyond the others, or None.

    Parameters
    ----------
    values, counts : ndarray, (K,)
        Distinct values, ascending, and how often each occurs.

    Examples
    --------
    >>> first_far(np.array([0, 5, 10, 99999]), np.array([30, 30, 30, 1]))
    99999.0
    >>> first_far(np.array([0, 5, 10, 30]), np.array([30, 30, 30, 1])) is None
    True
    """
    exact = np.asarray(values, dtype=np.float64)
    from_here = np.cumsum(counts[::-1])[::-1]
    total = int(from_here[0]) if len(exact) else 0
    gaps, ranges = np.diff(exact), exact[:-1] - exact[:1] + 1
    rare = from_here[1:] <= max(1, RARE * total)
    known = total - from_here[1:] >= LEAST_BELOW
    far = np.flatnonzero((gaps > FAR * ranges) & rare & known)
    far = far[far > 0]
    return float(exact[far[0] + 1]) if far.size else None


class Tally:
    """What a column holds: how many finite numbers, how many of them fractions, and the whole ones by value.

    Parameters
    ----------
    floating : bool
        Whether it holds floating-point numbers.
    most : int
        With more distinct values than that it is a measure: no more are counted, and none is far.
    """

    def __init__(self, floating: bool, most: int = MAX_IDS) -> None:
        self.floating, self.most = floating, most
        self.finite = self.fractions = 0
        self.values: np.ndarray = np.empty(0)
        self.counts: np.ndarray = np.empty(0, dtype=np.int64)

    def add(self, numbers: np.ndarray) -> None:
        """Count numbers ``(N,)``; NaN is none."""
        finite = numbers[np.isfinite(numbers)]
        whole = finite[finite == np.floor(finite)]
        self.finite += len(finite)
        self.fractions += len(finite) - len(whole)
        if len(self.values) > self.most:
            return
        some, counts = np.unique(whole, return_counts=True)
        self.values, place = np.unique(np.concatenate([self.values, some]), return_inverse=True)
        both = np.concatenate([self.counts, counts])
        self.counts = np.bincount(place, weights=both, minlength=len(self.values)).astype(np.int64)

    @property
    def is_whole(self) -> bool:
        """Whether this is a column of whole numbers."""
        return not self.floating or (self.finite > 0 and self.fractions <= RARE * self.finite)

    def categories(self) -> Counter[int]:
        """Return the number of rows by whole value."""
        return Counter(dict(zip(self.values.tolist(), self.counts.tolist(), strict=True)))

    def far(self, least: float = 0) -> float | None:
        """Return the first of the values far beyond the others, of those from ``least`` on."""
        if not self.is_whole or len(self.values) > self.most:
            return None
        sound = self.values >= least
        return first_far(self.values[sound], self.counts[sound])


def entries_of(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the entries ``(N,)`` of a column of numbers or lists, and the row of each."""
    if not is_list(array.type):
        return array, np.arange(len(array))
    flat, offsets = split_lists(array)
    return flat, np.repeat(np.arange(len(array)), np.diff(offsets))


def check_values(item: ItemFile, report: Report) -> None:
    """Check the item ids of a file and its columns of numbers and of lists of ids, a column at a time."""
    name = item.path.name
    if report.wants("far-item-id"):
        far = first_far(*np.unique(item.ids[item.ids > 0], return_counts=True))
        rows = np.flatnonzero(item.ids >= far) if far is not None else np.empty(0, np.int64)
        report.add("far-item-id", name, ITEM_ID, rows, item.ids[rows])
    for column in item.schema:
        if column.name == ITEM_ID or pa.types.is_boolean(column.type):
            continue
        if is_number(column.type) or (is_list(column.type) and column.name in item.id_lists):
            _check_column(item, column, report)


def _check_column(item: ItemFile, column: pa.Field, report: Report) -> None:
    in_lists = is_list(column.type)
    floating = pa.types.is_floating(column.type.value_type if in_lists else column.type)
    tally, broken = Tally(floating), 0
    for _, _, entries in _entries(item, column.name):
        values = numbers(entries)
        tally.add(values)
        broken += len(values) - int(np.isfinite(values).sum())
    far = tally.far(1 if in_lists else 0)  # 0 is padding in a list
    most = MAX_IDS if in_lists else np.inf
    if not (broken or tally.fractions or far is not None or _outside(tally.values, most).any()):
        return
    name = item.path.name
    for start, owner, entries in _entries(item, column.name):
        values = numbers(entries)
        bad, fraction, beyond = ~np.isfinite(values), np.zeros(len(values), bool), np.zeros(len(values), bool)
        if tally.is_whole:
            bad |= _outside(values, most)
            fraction = ~bad & (values != np.floor(values))
            beyond = ~bad & ~fraction & (values >= (np.inf if far is None else far))
        for check, places, found in (
            ("bad-item-value", bad, ""),
            ("bad-item-value", fraction, FRACTIONS),
            ("item-value-outlier", beyond, ""),
        ):
            hits = np.flatnonzero(places)
            rows = start + owner[hits]
            report.add(
                check,
                name,
                column.name,
                rows,
                item.ids[rows],
                entries.take(pa.array(hits)).to_pylist(),
                found=found,
                severity=WARNING if found else "",
            )


def _outside(values: np.ndarray, most: float) -> np.ndarray:
    return (values < 0) | (values >= most)


def _entries(item: ItemFile, column: str) -> Iterator[tuple[int, np.ndarray, pa.Array]]:
    """Yield the first row of a chunk, the row in it of each entry ``(N,)``, and the entries; padding is left out."""
    for start, columns in read_chunks(item.path, [column]):
        entries, owner = entries_of(columns[column])
        real = np.flatnonzero(item.ids[start + owner] != 0)
        yield start, owner[real], entries.take(pa.array(real))


def check_context(path: Path, column: str, tally: Tally, users: np.ndarray, report: Report) -> None:
    """Look for the fractions and the far values of a context column, where its tally says that there are some.

    Parameters
    ----------
    path, column
        Where it stands.
    tally : Tally
        Of all its rows.
    users : ndarray of int64
        User ids of all rows.
    report : Report
        Takes the findings.
    """
    far = tally.far()
    if not tally.is_whole or (not tally.fractions and far is None):
        return
    for start, columns in read_chunks(path, [column]):
        values = numbers(columns[column])
        sound = np.isfinite(values) & (values >= 0)
        fraction = sound & (values != np.floor(values))
        beyond = sound & ~fraction & (values >= (np.inf if far is None else far))
        for check, places, found in (("bad-context", fraction, FRACTIONS), ("context-outlier", beyond, "")):
            hits = np.flatnonzero(places)
            kept = columns[column].take(pa.array(hits)).to_pylist()
            severity = WARNING if found else ""
            rows = start + hits
            report.add(
                check, path.name, column, rows, users[rows], kept, found=found, severity=severity, id_name="user_id"
            )
