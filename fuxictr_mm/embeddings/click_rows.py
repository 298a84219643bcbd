"""The clicks in the rows of a training split: histories, and the targets whose label is 1.

Shapes: R rows of a chunk, N history items of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.data import decoding, parquet
from fuxictr_mm.data.ids import Numbering
from fuxictr_mm.errors import DataError, nearest
from fuxictr_mm.files import StrPath

Integers = NDArray[np.int64]

#: A click is stored as one integer: the user id in the bits above those of the item id.
ITEM_BITS = 31
MAX_USERS = 2**32


class ClickRows(NamedTuple):
    """The clicks of a chunk of rows."""

    users: Integers  #: ``(R,)``
    clicked: Integers  #: ``(R,)``, the target where its label is 1, otherwise 0.
    history: Integers  #: ``(N,)``, the items of all histories, oldest first, without padding.
    row_of: Integers  #: ``(N,)``, the row of each.


def read_click_rows(path: StrPath, label: str, numbering: Numbering) -> Iterator[ClickRows]:
    """Yield the clicks of each chunk; raises DataError or MissingFileError for columns that are missing or wrong."""
    names, user_ids = numbering.roles, numbering.users
    columns = [names.user, names.target, names.history, label]
    for file in parquet.part_files(path):
        if label not in (present := parquet.schema_of(file).names):
            raise DataError(
                f"{file}: no column '{label}' of labels{nearest(label, present)} (columns: {', '.join(present)}); "
                "give the name of the label by --label NAME"
            )
        for row, batch in parquet.read_chunks(file, columns):
            if user_ids is None:
                users = decoding.scalars(batch.column(names.user), f"{file}: {names.user}", row)
            else:
                users = user_ids.encode(batch.column(names.user), f"{file}: {names.user}")
            wrong = np.flatnonzero((users < 0) | (users >= MAX_USERS))
            if len(wrong):
                raise DataError(
                    f"{file}: {names.user}: row {row + wrong[0]} holds the id {users[wrong[0]]}, expected 0 to "
                    f"{MAX_USERS - 1}; renumber the users"
                )
            targets = numbering.numbers(batch.column(names.target), f"{file}: {names.target}", row)
            labels = decoding.scalars(batch.column(label), f"{file}: {label}", row, floating=True)
            where = f"{file}: {names.history}"
            flat, offsets = numbering.lists(batch.column(names.history), where, row)
            row_of = np.repeat(np.arange(len(users)), np.diff(offsets))[flat != 0]  # 0 is padding
            history = decoding.integers(flat[flat != 0], where, row + row_of)
            decoding.check_ids(history, None, where, row + row_of)
            yield ClickRows(users, np.where(labels > 0, targets, 0), history, row_of)


def pack(users: NDArray[Any], items: NDArray[Any]) -> Integers:
    """Return clicks ``(N,)`` as one integer each."""
    return (users.astype(np.int64) << ITEM_BITS) | items.astype(np.int64)
