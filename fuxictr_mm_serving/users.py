"""Users, whom requests may name in place of context and history, and the titles of items."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.numbering import check_numbering, for_file
from fuxictr_mm_serving.parquet import pa, part_files, pq
from fuxictr_mm_serving.prepared import HISTORIES, ITEM_ID, MANIFEST, SOURCE_ID, SOURCE_USER, SPLITS, USER_ID
from fuxictr_mm_serving.vocabulary import Integers, Texts

if TYPE_CHECKING:
    from fuxictr_mm_serving.export import Export

#: Column of items in the histories of a log.
ITEM_SEQ = "item_seq"

#: Column of users in what is kept of files while they are read; it may be another column's value as well.
KEY = ":user"

#: Columns of titles that are found by themselves.
TITLES = ("item_title", "title")

#: What Arrow calls texts.
TEXT_TYPES = ("string", "large_string", "string_view")


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
    _refuse_incomplete(folder)
    if not (folder / HISTORIES).is_dir():
        return part_files(folder), []
    rows = [file for name in SPLITS if (folder / name).is_dir() for file in part_files(folder / name)]
    return rows, part_files(folder / HISTORIES)


def _refuse_incomplete(folder: Path) -> None:
    """Refuse the folder of a log that ``fuxictr-mm prepare`` has not written to its end."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return
    origin = manifest.get("origin") if isinstance(manifest, dict) else None
    if isinstance(origin, dict) and origin.get("reader") == "log" and "log" not in manifest:
        raise ServingError(f"{folder}: is not complete; wait for fuxictr-mm prepare to end, or run its command again")


#: Names of files with their sizes and times.
Stamp = list[tuple[str, int, int]]


def stamp_of_users(paths: Iterable[str | os.PathLike[str]]) -> Stamp:
    """Return names, sizes and times of the files of users, by which a change is seen without reading them."""
    files = [file for path in paths for files in files_of_users(path) for file in files]
    try:
        found = [(str(file), file.stat()) for file in files]
    except OSError as error:
        raise ServingError(f"{error.filename}: cannot be read as users ({error.strerror})") from None
    return [(name, status.st_size, status.st_mtime_ns) for name, status in found]


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
