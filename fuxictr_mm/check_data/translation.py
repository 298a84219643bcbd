"""Translation of column names, and of ids that are not small integers, to those that the checks use.

``numbering.find_translation`` inspects a folder, ``files.DataFile`` translates what it reads. Findings are translated
back, so that they name columns and ids as they are in the files. By default, nothing changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from fuxictr_mm.data import decoding
from fuxictr_mm.data.arrow_types import is_list
from fuxictr_mm.data.ids import Numbering
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ
from fuxictr_mm.data.vocabulary import Vocabulary, as_text

USER_ID, LABEL = "user_id", "label"

#: Before the name of a column that has the checks' name of a role, and not the role.
NO_ROLE = "other "


@dataclass(frozen=True)
class Translation(Numbering):
    """Mapping between the names and ids of a folder and those that the checks use."""

    label: str = LABEL  #: Name of the label's column in the files.

    @property
    def list_columns(self) -> list[str]:
        """The columns of lists of items, by the checks' names."""
        return [ITEM_SEQ, *self.roles.histories]

    def names(self, present: Sequence[str]) -> dict[str, str]:
        """Return the checks' name of each column of a file."""
        own = {self.key(present): ITEM_ID, self.roles.history: ITEM_SEQ, self.roles.user: USER_ID, self.label: LABEL}
        # A column of such a name without the role, such as an item_id beside the target, is a column like any other.
        taken = set(own.values())
        return {name: own.get(name, f"{NO_ROLE}{name}" if name in taken else name) for name in present}

    def names_on_disk(self, present: Sequence[str], names: Sequence[str]) -> list[str]:
        """Return the names in a file, which has columns ``present``, of columns with the checks' names."""
        there = {ours: name for name, ours in self.names(present).items()}
        return [there.get(name, name) for name in names]

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns of a file by the checks' names, numbered ids as integers."""
        names = self.names(schema.names)
        fields = []
        for field in schema:
            name, kind = names[field.name], field.type
            if self._vocabulary(name) is not None:
                if name not in self.list_columns:
                    kind = pa.int64()
                elif is_list(kind) or pa.types.is_null(kind):  # another type is a finding
                    kind = pa.list_(pa.int64())
            fields.append(field.with_name(name).with_type(kind))
        return pa.schema(fields)

    def batch(self, path: Path, batch: pa.RecordBatch, names: Sequence[str]) -> pa.RecordBatch:
        """Return rows of a file by the checks' names, with numbers in place of ids; null ids stay null."""
        arrays = []
        for name, there, array in zip(names, batch.schema.names, batch.columns, strict=True):
            if (vocabulary := self._vocabulary(name)) is not None:
                encode = _encode_lists if name in self.list_columns else _encode
                array = encode(array, vocabulary, f"{path}: {there}")
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, list(names))

    def _vocabulary(self, name: str) -> Vocabulary | None:
        return {**dict.fromkeys([ITEM_ID, *self.list_columns], self.items), USER_ID: self.users}.get(name)

    def names_of(self, items: pl.Series) -> list[object]:
        """Return items as the files name them, for texts of findings."""
        return items.to_list() if self.items is None else self.shown(items.cast(pl.Int64).fill_null(0).to_numpy())

    def back(self, column: str, rows: pl.DataFrame) -> tuple[str, pl.DataFrame]:
        """Return the column and the rows of a finding with names and ids of the files."""
        names = {ITEM_ID: self.roles.target, ITEM_SEQ: self.roles.history, USER_ID: self.roles.user, LABEL: self.label}
        for name in (ITEM_ID, USER_ID):
            if name in rows.columns and (vocabulary := self._vocabulary(name)) is not None:
                rows = rows.with_columns(_decode(rows[name], vocabulary))
        vocabulary = self._vocabulary(column)
        if "value" in rows.columns and vocabulary is not None and rows["value"].dtype.is_integer():
            rows = rows.with_columns(_decode(rows["value"], vocabulary))
        rows = rows.rename(names, strict=False)
        there = column.removeprefix(NO_ROLE)
        if there != column and names.get(there, there) != there:  # else the file has a column of this very name
            return there, rows
        return names.get(column, column), rows


def _encode(array: pa.Array, vocabulary: Vocabulary, where: str) -> pa.Array:
    return pa.array(vocabulary.encode(array, where), mask=array.is_null().to_numpy(zero_copy_only=False))


def _encode_lists(array: pa.Array, vocabulary: Vocabulary, where: str) -> pa.Array:
    entries, offsets = decoding.list_entries(array, where)
    starts = pa.array(offsets.astype(np.int32), mask=np.append(array.is_null().to_numpy(zero_copy_only=False), False))
    return pa.ListArray.from_arrays(starts, pa.array(vocabulary.encode(entries, where)))


def _decode(numbers: pl.Series, vocabulary: Vocabulary) -> pl.Series:
    ids = vocabulary.decode(numbers.fill_null(0).to_numpy())
    if pa.types.is_large_binary(ids.type):
        ids = pa.array([as_text(value) for value in ids.to_pylist()], pa.string())
    return pl.Series(numbers.name, ids)
