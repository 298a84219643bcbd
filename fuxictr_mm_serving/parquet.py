"""Parquet files of rows, users and titles. No other module needs pyarrow, so that a server may do without.

Shape letters: B rows.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.features import Column, Flat, Lists
from fuxictr_mm_serving.folders import IGNORED, SUFFIXES, natural_key, partition_values
from fuxictr_mm_serving.prepared import (
    ALL_ITEMS,
    EARLIER_ITEMS,
    EXTENDS,
    HISTORIES,
    ITEM_FILE,
    NUMBERED,
    NUMBERING,
    REWRITTEN,
    SOURCE_ID,
    SOURCE_USER,
    VOCABULARIES,
    base_of_later_log,
    has_columns_of_prepare,
)
from fuxictr_mm_serving.vocabulary import Integers, Texts

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:
    raise ServingError("Parquet files need pyarrow: pip install 'fuxictr-mm-serving[parquet]'") from None

if TYPE_CHECKING:
    from fuxictr_mm_serving.export import Export

T = TypeVar("T")

#: Rows that are read at a time.
BATCH_ROWS = 2048

#: The column under which the digest of the items is.
ITEM_ID = "item_id"

#: Column of users in the rows of a log: their numbers.
USER_ID = "user_id"

#: Column of items in the histories of a log.
ITEM_SEQ = "item_seq"

#: Column of users in what is kept of files while they are read; it may be another column's value as well.
KEY = ":user"

#: Folders of rows that ``fuxictr-mm prepare`` writes.
SPLITS = ("train", "valid", "test")

#: Columns of titles that are found by themselves.
TITLES = ("item_title", "title")

#: What Arrow calls texts.
TEXT_TYPES = ("string", "large_string", "string_view")

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


def is_numbered(file: Path) -> bool:
    """Whether ``fuxictr-mm prepare`` wrote a file of rows: it says so, or is where an earlier version wrote it."""
    metadata, split = _metadata(file), file.resolve().parent
    is_beside = (split.parent / VOCABULARIES).is_dir() and (split.parent / ITEM_FILE).is_file()
    return metadata.items() >= NUMBERED.items() or (split.name in SPLITS and is_beside)


def for_file(export: Export, file: Path, *more: str) -> Export:
    """Return the export that reads the ids of a file; the numbering of columns ``more`` is checked as well."""
    check_numbering(export, file, *export.of_numbers.columns, *more)
    if export.is_prepared and is_numbered(file):
        return export.of_numbers
    if export.is_prepared and has_columns_of_prepare(_columns(file)):
        raise ServingError(f"{file}: {REWRITTEN}")
    return export


def check_numbering(export: Export, file: Path, *columns: str) -> None:
    """Refuse a file of ``fuxictr-mm prepare`` whose items, or values of columns, have other numbers than the export's.

    A file without digests, as other programs and earlier versions wrote it, is read as it is; so are rows of a folder
    that the one of the export extends.
    """
    given, expected = _digests(file), export.manifest.numbering
    for name in sorted({ITEM_ID, *columns} & given.keys() & expected.keys()):
        # The new items of a later log have the numbers of others here.
        is_earlier = ALL_ITEMS not in given and given[name] in export.manifest.extends.get(name, ())
        if given[name] != expected[name] and not is_earlier:
            extended: dict[str, dict[str, int]] = _json_in(file, EXTENDS, {})
            what = "was numbered in another order than for the export"
            remedy = "give files of the folder that it was trained on, or with source ids"
            if ALL_ITEMS in given:
                base = base_of_later_log(file)
                what = f"is numbered as in {base}, which its log was prepared --like, not as in the export"
                remedy = "prepare the log --like the folder that the export was trained on, or give source ids"
            elif expected[name] in extended.get(name, {}):
                what = "has more numbers than the export, which is of a log before it"
                remedy = "give files of the folder that the export was trained on, or an export of this one"
            raise ServingError(
                f"{file}: '{name}' {what} (digest {str(given[name])[:8]}, expected {expected[name][:8]}); {remedy}"
            )
    new, own = given.get(ALL_ITEMS), expected.get(ALL_ITEMS)
    if new is None or own is None or new == own or new in export.manifest.earlier_items:
        return
    if own not in _json_in(file, EARLIER_ITEMS, []):  # otherwise rows with newer items are refused as such
        raise ServingError(
            f"{file}: is of another later log than the items of the export (digest {str(new)[:8]}, expected "
            f"{own[:8]}), and neither log was prepared like the other; {_export_with_items(file)}"
        )


def how_to_score_new_items(file: Path) -> str:
    """Return what to do where a file holds items that the export does not, such as one of a later log."""
    if ALL_ITEMS in _digests(file):
        return f"; {_export_with_items(file)}"
    return "; add them to the item files and export again, or drop the rows"


def _export_with_items(file: Path) -> str:
    folder = next((f for f in list(file.parents)[:2] if (f / ITEM_FILE).is_file()), "DIR")
    return f"export again with --items {quote(str(folder))}, which has these items"


def _digests(file: Path) -> dict[str, str]:
    return _json_in(file, NUMBERING, {})


def _json_in(file: Path, key: str, default: T) -> T:
    """Return what the metadata of a file has of a key, of the type of the default."""
    try:
        found = json.loads(_metadata(file).get(key.encode(), b"null"))
    except ValueError:
        found = ""
    if found is not None and not isinstance(found, type(default)):
        raise ServingError(f"{file}: its metadata {key} are damaged; prepare it again")
    return default if found is None else found


def _columns(file: Path) -> dict[str, pa.DataType]:
    try:
        return {field.name: field.type for field in pq.read_schema(file)}
    except (OSError, pa.ArrowException):
        return {}


def _metadata(file: str | os.PathLike[str]) -> dict[bytes, bytes]:
    try:
        return pq.read_schema(file).metadata or {}
    except (OSError, pa.ArrowException):
        return {}


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


def _read(path: str | os.PathLike[str], columns: list[str], what: str) -> pa.Table:
    try:
        with pq.ParquetFile(path) as reader:  # read_table would import pandas, where it is installed
            if missing := [name for name in columns if name not in reader.schema_arrow.names]:
                raise ServingError(f"{path}: has no column '{missing[0]}', which {what} need")
            return reader.read(list(dict.fromkeys(columns)))
    except (OSError, pa.ArrowException) as error:
        raise ServingError(f"{path}: cannot be read as {what} ({error})") from None


def _integer(value: Any) -> Any:
    """Return the integer of a text, as which the page sends those that JavaScript would round; all else as it is."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value) else value


def files_of_users(path: str | os.PathLike[str]) -> tuple[list[Path], list[Path]]:
    """Return files of rows, and those of the newest histories: of a whole folder by ``fuxictr-mm prepare log`` only."""
    folder = Path(path)
    if not (folder / HISTORIES).is_dir():
        return part_files(folder), []
    rows = [file for name in SPLITS if (folder / name).is_dir() for file in part_files(folder / name)]
    return rows, part_files(folder / HISTORIES)


class Users:
    """Context and history of known users, in memory.

    Parameters
    ----------
    paths : path or sequence of paths
        Each a Parquet file or a folder of part files with a row per user, or a folder of ``fuxictr-mm prepare log``,
        which gives its histories and the context of its rows. Of several rows or histories of a user, the last counts.
    column : str
        Their column of ids, integers or texts.
    export : Export
        Names the other columns.
    """

    def __init__(
        self, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], column: str, export: Export
    ) -> None:
        paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        self._where = ", ".join(map(str, paths))
        found = [files_of_users(path) for path in paths]
        files = [file for rows, _ in found for file in rows]
        of_files = {for_file(export, file, column) is not export: file for file in reversed(files)}
        if len(of_files) > 1:
            raise ServingError(
                f"{of_files[True]}: holds numbers of fuxictr-mm prepare, and {of_files[False]} does not; give files of "
                "one kind"
            )
        (self._is_numbered,) = of_files
        self._export, of_file = export, export.of_numbers if self._is_numbered else export
        self._history = of_file.history
        self._context = [name for name in of_file.columns if name not in (export.target, of_file.history)]
        # Users of later logs who are not in the training data all have the number 0.
        is_named = column == SOURCE_USER or (self._is_numbered and column == USER_ID)
        self._is_named = is_named and all(SOURCE_USER in pq.read_schema(file).names for file in files)
        self._column = SOURCE_USER if self._is_named else column
        whole = next((path for path, (_, histories) in zip(paths, found, strict=True) if histories), None)
        if whole is not None and self._column != SOURCE_USER:
            raise ServingError(
                f"{whole}: its histories are by {SOURCE_USER}, and users by '{column}'; give --user-column "
                f"{SOURCE_USER}, or the rows of one split such as {Path(whole) / 'test'}"
            )
        context, histories = [], []
        for rows, newest in found:
            names = [*self._context, *([] if newest else [self._history])]
            of_rows = [self._last_of(file, names) for file in rows]
            context += of_rows
            of_histories = [self._last_of(file, [ITEM_SEQ]).rename_columns([self._history, KEY]) for file in newest]
            histories += of_histories or of_rows
        self._ids = self._keep_last(self._concat(context, self._context), self._concat(histories, [self._history]))
        del context, histories
        pa.default_memory_pool().release_unused()

    def _last_of(self, file: Path, names: list[str]) -> pa.Table:
        """Return the last row of each user of a file, in the order of their first ones."""
        table = _read(file, [self._column, *names], "users")
        users = table[self._column]
        if self._is_numbered and not self._is_named:
            users = pa.chunked_array([pa.array(self._export.source_users(users.to_pylist(), self._column))])
        if self._is_named:
            kept = users.is_valid()
            table, users = table.filter(kept), users.filter(kept)
        if pa.types.is_dictionary(users.type):
            users = users.cast(users.type.value_type)
        is_text = str(users.type) in TEXT_TYPES
        if users.null_count or not (is_text or pa.types.is_integer(users.type) or not len(users)):
            # The value is of a user, and this is logged.
            row = next(row for row, user in enumerate(users) if type(user.as_py()) not in (int, str))
            given = "null" if users[row].as_py() is None else f"a {type(users[row].as_py()).__name__}"
            raise ServingError(f"{file}: {self._column}: row {row} holds {given}, expected an integer or a text")
        users = users.cast(pa.large_string()) if is_text else users
        table = table.select(names).append_column(KEY, users)
        encoded = users.combine_chunks().dictionary_encode()
        last = _last_of_codes(encoded.indices.to_numpy(), len(encoded.dictionary))
        return table if len(last) == len(table) else table.take(last)

    def _concat(self, tables: list[pa.Table], names: list[str]) -> pa.Table:
        try:
            return pa.concat_tables([table.select([*names, KEY]) for table in tables], promote_options="permissive")
        except pa.ArrowException as error:
            raise ServingError(f"{self._where}: the files have columns of other types ({error})") from None

    def _keep_last(self, context: pa.Table, histories: pa.Table) -> Integers | Texts:
        """Keep the last context and the last history of each user; returns the users in the order of their first."""
        users = self._concat([context, histories], [])[KEY]
        if len(users) == 0:
            raise ServingError(f"{self._where}: holds no users")
        encoded = users.combine_chunks().dictionary_encode()
        codes, count = encoded.indices.to_numpy(), len(encoded.dictionary)
        # Of a user who has only a history, whose rows are of days that were not given, the context is not known.
        rows, newest = (_last_of_codes(part, count) for part in np.split(codes, [len(context)]))
        self._has_context = rows >= 0
        self._table = context.select(self._context).take(pa.array(rows, mask=rows < 0))
        self._histories = histories[self._history].take(pa.array(newest, mask=newest < 0))
        if not pa.types.is_large_string(encoded.dictionary.type):
            return Integers.of(encoded.dictionary.to_numpy())
        _, bounds, content = encoded.dictionary.buffers()
        ends = np.frombuffer(bounds, np.int64, count + 1)
        return Texts.of_content(np.frombuffer(content or b"", np.uint8)[: ends[-1]], ends)

    def get(self, user: Any) -> dict[str, Any]:
        """Return context columns and history of a user, without those that no row was given of."""
        given = str(user) if isinstance(self._ids, Texts) else _integer(user)
        is_type = isinstance(given, str if isinstance(self._ids, Texts) else int)
        row = int(self._ids.find([given])[0]) - 1 if is_type else -1
        if row < 0:
            raise ServingError(f"user: {user!r} is not in the file of users; give context and history")
        found = {self._history: self._histories[row].as_py()}
        found |= {name: self._table[name][row].as_py() for name in self._context}
        found = self._export.source_of(found) if self._is_numbered else found
        if self._has_context[row]:
            return found
        known = {USER_ID: given} if self._is_numbered and self._is_named and USER_ID in self._context else {}
        return {self._export.history: found[self._export.history], **known}

    def some(self, count: int) -> list[Any]:
        """Return the first user ids."""
        return list(self._ids[:count])


def _last_of_codes(codes: np.ndarray, count: int) -> np.ndarray:
    """Return the last position of each of ``count`` codes, or -1."""
    last = np.full(count, -1, np.int64)
    last[codes] = np.arange(len(codes))  # of several, numpy keeps the last
    return last


class Titles:
    """Titles of items, for the page.

    Parameters
    ----------
    path : path
        A Parquet file with the items' ids and titles.
    export : Export
        Names the column of ids; of a file of ``fuxictr-mm prepare`` it is ``source_id``.
    column : str, optional
        Of the titles; by default ``item_title`` or ``title``.
    """

    def __init__(self, path: str | os.PathLike[str], export: Export, column: str | None = None) -> None:
        try:
            names = pq.read_schema(path).names
        except (OSError, pa.ArrowException) as error:
            raise ServingError(f"{path}: cannot be read as titles ({error})") from None
        if column is None and not (column := next((name for name in TITLES if name in names), None)):
            raise ServingError(f"{path}: has no column {' or '.join(TITLES)}; name the one of titles by --title-column")
        key = SOURCE_ID if export.is_prepared and SOURCE_ID in names else export.target
        key = key if key in names else ITEM_ID
        if key != SOURCE_ID:
            check_numbering(export, Path(path))
        table = _read(path, [key, column], "titles")
        pairs = zip(table[key].to_pylist(), table[column].to_pylist(), strict=True)
        self._titles = {item: title or "" for item, title in pairs}

    def of(self, items: Sequence[Any]) -> list[str]:
        """Return the title of each item, or an empty text for an item without a title."""
        get = self._titles.get
        return [get(item, get(_integer(item), get(str(item), ""))) for item in items]

    def some(self, count: int) -> list[Any]:
        """Return the first item ids that have a title."""
        return list(islice((item for item, title in self._titles.items() if title), count))
