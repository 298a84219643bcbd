"""Ids of scored rows, which are written next to their scores.

Shape letters: R rows, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.numbering import is_numbered
from fuxictr_mm_serving.parquet import Part, pa, part_batches, pq
from fuxictr_mm_serving.prepared import (
    ITEM_FILE,
    ITEM_ID,
    SOURCE_ID,
    SOURCE_ROW,
    SOURCE_TIME,
    SOURCE_USER,
    USER_ID,
    VOCABULARIES,
)

#: Column of the index of a row in its file or folder, from 0.
ROW = "row"


class RowIds:
    """The columns by which scores are joined with rows, named as by ``fuxictr-mm predict --out``.

    Of rows that ``fuxictr-mm prepare`` wrote, these are the owner's ids and the time and row of the log; of others, the
    columns of the user and the target as they are, and the index of the row.
    """

    def __init__(self, parts: Sequence[Part], target: str) -> None:
        files = list(dict.fromkeys(part.file for part in parts))
        schemas = [pq.read_schema(file) for file in files]
        present = [name for name in schemas[0].names if all(name in schema.names for schema in schemas)]
        file = files[0]
        folder = next((f for f in list(file.absolute().parents)[:2] if (f / VOCABULARIES).is_dir()), None)
        self._folder = folder if folder is not None and (folder / ITEM_FILE).is_file() and is_numbered(file) else None
        #: Columns of the rows by the names under which they are written.
        self.sources = {USER_ID: USER_ID, target: target}
        if self._folder is not None:
            user = SOURCE_USER if SOURCE_USER in present else USER_ID
            self.sources = {USER_ID: user, ITEM_ID: target, SOURCE_TIME: SOURCE_TIME, SOURCE_ROW: SOURCE_ROW}
        self.sources = {name: source for name, source in self.sources.items() if source in present}
        self._has_row = SOURCE_ROW not in self.sources

    def _values(self, path: Path, number: str, value: str) -> pa.Array:
        table = pq.read_table(path, columns=[number, value]).sort_by(number)
        return table[value].combine_chunks()

    @cached_property
    def _vocabularies(self) -> dict[str, pa.Array]:
        """The owner's ids in the order of their numbers, by the column that holds the numbers."""
        if self._folder is None:
            return {}
        found = {ITEM_ID: self._values(self._folder / ITEM_FILE, ITEM_ID, SOURCE_ID)}
        users = self._folder / VOCABULARIES / f"{USER_ID}.parquet"
        if self.sources.get(USER_ID) == USER_ID and users.is_file():
            found[USER_ID] = self._values(users, "code", "value")
        return found

    def of(self, part: Part, first: int) -> pa.Table:
        """Return the columns of a part, whose first row is number ``first`` of all, ``(R,)`` each."""
        names = list(dict.fromkeys(self.sources.values()))
        columns: dict[str, pa.ChunkedArray | pa.Array] = {}
        if names:
            table = pa.Table.from_batches(list(part_batches(part, names)))
            columns = {name: self._decoded(name, table[source]) for name, source in self.sources.items()}
        if self._has_row:
            columns[ROW] = pa.array(np.arange(first, first + part.rows))
        return pa.table(columns)

    def _decoded(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
        values = self._vocabularies.get(name)
        if values is None:
            return column
        numbers = column.to_numpy()
        inside = (numbers > 0) & (numbers <= len(values))
        return values.take(pa.array(np.where(inside, numbers - 1, 0), mask=~inside))


def as_schema(table: pa.Table, schema: pa.Schema, file: Path) -> pa.Table:
    """Return a table with the types of the first part, which those of other files may differ from."""
    try:
        return table.cast(schema)
    except pa.ArrowException as error:
        raise ServingError(f"{file}: its ids have other types than those of the files before it ({error})") from None
