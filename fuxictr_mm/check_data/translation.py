"""Translation of column names, and of ids that are not small integers, to those that the checks use.

``Translation.find`` inspects a folder, and ``files.DataFile`` translates what it reads. Findings are translated back,
so that they name columns and ids as they are in the files. By default, nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.config import Roles
from fuxictr_mm.data import decoding, parquet
from fuxictr_mm.data.arrow_types import is_list
from fuxictr_mm.data.decoding import MAX_IDS
from fuxictr_mm.data.ids import Numbering, beyond, entries_of, number_ids
from fuxictr_mm.data.item_columns import is_zero_padded
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ
from fuxictr_mm.data.vocabulary import Vocabulary, as_text, is_text
from fuxictr_mm.errors import DataError, MissingFileError

USER_ID, LABEL = "user_id", "label"

#: Before the name of a column that has the checks' name of a role, and not the role.
NO_ROLE = "other "


@dataclass(frozen=True)
class Translation(Numbering):
    """Mapping between the names and ids of a folder and those that the checks use."""

    label: str = LABEL  #: Name of the label's column in the files.

    @classmethod
    def find(cls, paths: Sequence[Path], roles: Roles, ids: str = "auto", label: str = LABEL) -> Translation:
        """Return how the files of a folder are to be translated.

        Items are numbered where all their ids are texts, or most are not integers from 0 to 2**31 - 1, or 0 is an item
        by training's rule: it has features, and histories are not padded with 0. Users are numbered where all are texts
        or most are not integers from 0 to 2**63 - 1. ``ids`` is the setting of this name.

        Raises
        ------
        DataError, MissingFileError
            Ids are of several types.
        """
        names = cls(roles)
        items = [(path, name) for path in paths for name in names.columns(path, [ITEM_ID, *names.list_columns])]
        keys = [(path, name) for path, name in items if name == ITEM_ID]
        keys = [pair for pair in keys if not names.columns(pair[0], [ITEM_SEQ])] or keys
        users = [(path, name) for path in paths for name in names.columns(path, [USER_ID])]
        has_zero = ids == "vocabulary" or (ids == "auto" and names._zero_is_item(paths))
        numbered = names._number([*keys, *items], keys, MAX_IDS, ids, has_zero)
        return cls(roles, numbered, names._number(users, users, 2**63, "auto"), label=label)

    def _number(
        self,
        columns: Sequence[tuple[Path, str]],
        keys: Sequence[tuple[Path, str]],
        most: int,
        ids: str,
        has_zero: bool = False,
    ) -> Vocabulary | None:
        """Return the vocabulary of the ids of columns, the keys first; None where the keys are numbers.

        With ``has_zero`` the integer 0 is an id like any other.
        """
        if ids == "as_is" or not keys:
            return None
        texts = [is_text(_field(path, self.on_disk(path, name)).type) for path, name in keys]
        if ids == "auto" and not all(texts) and (any(texts) or not (has_zero or self._most_are_beyond(keys, most))):
            return None
        ids_of = (
            entries_of(array, f"{path}: {there}")
            for path, name in dict.fromkeys(columns)
            for there in [self.on_disk(path, name)]
            if name not in self.list_columns or is_list(_field(path, there).type)  # another type is a finding
            for array in _read_intact(path, there)
        )
        return number_ids(ids_of, str(keys[0][0].parent), has_zero)

    def _zero_is_item(self, paths: Sequence[Path]) -> bool:
        """Whether an item file has features of the id 0, and histories are not padded with 0; see ``ItemTable``."""
        splits = [path for path in paths if self.columns(path, [ITEM_SEQ])]
        if not splits:
            return False
        first = min(splits, key=lambda path: ("train" not in path.name, "valid" not in path.name))
        items = [path for path in paths if path not in splits and self.columns(path, [ITEM_ID])]
        try:
            if not any(_has_features_of_zero(path, self.on_disk(path, ITEM_ID)) for path in items):
                return False
        except DataError:  # a finding of its own
            return False
        try:
            return not is_zero_padded(first, self.on_disk(first, ITEM_SEQ))
        except DataError:  # a finding of its own, and no sign of padding
            return True

    def _most_are_beyond(self, keys: Sequence[tuple[Path, str]], most: int) -> bool:
        """Whether most ids are not integers from 0 to below ``most``."""
        wrong = total = 0
        try:
            for path, name in keys:
                for _, batch in parquet.read_rows(path, [self.on_disk(path, name)]):
                    if not pa.types.is_integer(batch.column(0).type):
                        return False
                    wrong += len(beyond(batch.column(0), most))
                    total += batch.num_rows - batch.column(0).null_count
        except DataError:  # a finding of its own
            return False
        return 2 * wrong > total

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

    def columns(self, path: Path, wanted: Sequence[str]) -> list[str]:
        """Return the wanted columns that a file has, by the checks' names."""
        try:
            present = set(self.names(_schema(path).names).values())
        except (DataError, MissingFileError):  # a finding of its own
            return []
        return [name for name in wanted if name in present]

    def on_disk(self, path: Path, name: str) -> str:
        """Return the name in a file of a column with the checks' name."""
        return self.names_on_disk(_schema(path).names, [name])[0]

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


def _schema(path: Path) -> pa.Schema:
    return parquet.schema_of(parquet.part_files(path)[0])


def _field(path: Path, name: str) -> pa.Field:
    return _schema(path).field(name)


def _has_features_of_zero(path: Path, key: str) -> bool:
    """Whether the row of the id 0, if there is one, holds anything but zeros, nulls and empty texts."""
    if not pa.types.is_integer(_field(path, key).type):
        return False
    found = ((row, pc.index(ids.column(0), 0).as_py()) for row, ids in parquet.read_rows(path, [key]))
    zero = next((row + at for row, at in found if at >= 0), None)
    if zero is None:
        return False
    for row, batch in parquet.read_rows(path, [name for name in _schema(path).names if name != key]):
        if zero < row + batch.num_rows:
            (values,) = batch.slice(zero - row, 1).to_pylist()
            entries = (e for v in values.values() for e in (v if isinstance(v, list) else [v]))
            return any(e and e == e for e in entries)  # NaN is not a value
    return False


def _read_intact(path: Path, column: str) -> Iterator[pa.Array]:
    """Yield a column of a file up to where it is damaged, which is a finding of its own."""
    with suppress(DataError):
        for _, batch in parquet.read_rows(path, [column]):
            yield batch.column(0)


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
