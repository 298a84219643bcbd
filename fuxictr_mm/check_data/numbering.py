"""How the ids of a folder are numbered: as they are, or by vocabularies; see ``fuxictr_mm.data.ids``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.check_data.files import DataFile
from fuxictr_mm.check_data.translation import LABEL, USER_ID, Translation
from fuxictr_mm.config import Roles
from fuxictr_mm.data.arrow_types import is_list
from fuxictr_mm.data.decoding import MAX_IDS
from fuxictr_mm.data.ids import beyond, entries_of, number_ids
from fuxictr_mm.data.item_columns import is_zero_padded
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ
from fuxictr_mm.data.vocabulary import Vocabulary, is_text
from fuxictr_mm.errors import DataError, MissingFileError

#: A file, and one of its columns by the checks' name.
Column = tuple[DataFile, str]


def find_translation(paths: Sequence[Path], roles: Roles, ids: str = "auto", label: str = LABEL) -> Translation:
    """Return how the files of a folder are to be translated.

    Items are numbered where all their ids are texts, or most are not integers from 0 to 2**31 - 1, or 0 is an item by
    training's rule: it has features, and histories are not padded with 0. Users are numbered where all are texts or
    most are not integers from 0 to 2**63 - 1. ``ids`` is the setting of this name.

    Raises
    ------
    DataError
        Ids are of several types.
    """
    names = Translation(roles, label=label)
    files = [DataFile(path, translation=names) for path in paths]
    items = [(file, name) for file in files for name in _present(file, ITEM_ID, *names.list_columns)]
    keys = [(file, name) for file, name in items if name == ITEM_ID]
    keys = [(file, name) for file, name in keys if not _present(file, ITEM_SEQ)] or keys
    users = [(file, name) for file in files for name in _present(file, USER_ID)]
    has_zero = ids == "vocabulary" or (ids == "auto" and _zero_is_item(files))
    numbered = _number([*keys, *items], keys, MAX_IDS, ids, has_zero)
    return Translation(roles, numbered, _number(users, users, 2**63, "auto"), label=label)


def _present(file: DataFile, *wanted: str) -> list[str]:
    """Return the wanted columns that a file has; that it cannot be read is a finding of its own."""
    with suppress(DataError, MissingFileError):
        return [name for name in wanted if name in file.schema.names]
    return []


def _number(
    columns: Sequence[Column], keys: Sequence[Column], most: int, ids: str, has_zero: bool = False
) -> Vocabulary | None:
    """Return the vocabulary of the ids of columns, the keys first; None where the keys are numbers.

    With ``has_zero`` the integer 0 is an id like any other.
    """
    if ids == "as_is" or not keys:
        return None
    texts = [is_text(file.schema.field(name).type) for file, name in keys]
    if ids == "auto" and not all(texts) and (any(texts) or not (has_zero or _most_are_beyond(keys, most))):
        return None
    ids_of = (
        entries_of(array, f"{file.path}: {name}")
        for file, name in {(file.path, name): (file, name) for file, name in columns}.values()
        if name not in file.translation.list_columns or is_list(file.schema.field(name).type)  # else it is a finding
        for array in _read_intact(file, name)
    )
    return number_ids(ids_of, str(keys[0][0].path.parent), has_zero)


def _read_intact(file: DataFile, column: str) -> Iterator[pa.Array]:
    """Yield a column of a file up to where it is damaged, which is a finding of its own."""
    with suppress(DataError):
        for _, batch in file.chunks([column]):
            yield batch.column(0)


def _most_are_beyond(keys: Sequence[Column], most: int) -> bool:
    """Whether most ids are not integers from 0 to below ``most``."""
    wrong = total = 0
    for array in (array for file, name in keys for array in _read_intact(file, name)):
        if not pa.types.is_integer(array.type):
            return False
        wrong += len(beyond(array, most))
        total += len(array) - array.null_count
    return 2 * wrong > total


def _zero_is_item(files: Sequence[DataFile]) -> bool:
    """Whether an item file has features of the id 0, and histories are not padded with 0; see ``ItemTable``."""
    splits = [file for file in files if _present(file, ITEM_SEQ)]
    items = [file for file in files if file not in splits and _present(file, ITEM_ID)]
    try:
        if not splits or not any(map(_has_features_of_zero, items)):
            return False
    except DataError:  # a finding of its own
        return False
    first = min(splits, key=lambda file: ("train" not in file.file, "valid" not in file.file))
    try:
        return not is_zero_padded(first.path, first.translation.roles.history)
    except DataError:  # a finding of its own, and no sign of padding
        return True


def _has_features_of_zero(file: DataFile) -> bool:
    """Whether the row of the id 0, if there is one, holds anything but zeros, nulls and empty texts."""
    if not pa.types.is_integer(file.schema.field(ITEM_ID).type):
        return False
    found = ((row, pc.index(batch.column(0), 0).as_py()) for row, batch in file.chunks([ITEM_ID]))
    zero = next((row + at for row, at in found if at >= 0), None)
    features = [name for name in file.schema.names if name != ITEM_ID]
    if zero is None or not features:
        return False
    for row, batch in file.chunks(features):
        if zero < row + batch.num_rows:
            (values,) = batch.slice(zero - row, 1).to_pylist()
            entries = (e for v in values.values() for e in (v if isinstance(v, list) else [v]))
            return any(e and e == e for e in entries)  # NaN is not a value
    return False
