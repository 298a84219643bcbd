"""Who clicked what, from the interactions of a training split.

Shapes: U users, N clicks (each pair of a user and an item once), R rows of a chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.data import parquet
from fuxictr_mm.errors import DataError

#: A click is one number: the user's id in the bits above the item's.
ITEM_BITS = 31
MAX_USERS = 2**32

#: Clicks gathered before they are merged into those known: bounds the memory of repeated ones.
MERGE_CLICKS = 8_000_000


@dataclass(frozen=True)
class Clicks:
    """The distinct items of each user, users in the order of their ids.

    Two users, of whom the second clicked one item::

        user 3: {5, 9}
        user 8: {2}       ->   users = [3, 8], items = [5, 9, 2], offsets = [0, 2, 3]

    Parameters
    ----------
    users : ndarray of int64, (U,)
        Their ids, ascending.
    items : ndarray of int32, (N,)
        Item ids, user after user, ascending within each.
    offsets : ndarray of int64, (U + 1,)
        User number u clicked items[offsets[u] : offsets[u + 1]].
    """

    users: NDArray[np.int64]
    items: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many items each user clicked, (U,)."""
        return np.diff(self.offsets)

    @classmethod
    def from_pairs(cls, users: NDArray, items: NDArray) -> Clicks:
        """Gather pairs, ``users`` (N',) and ``items`` (N',), in any order and with repetitions.

        Examples
        --------
        >>> clicks = Clicks.from_pairs(np.array([8, 3, 3, 8]), np.array([2, 9, 5, 2]))
        >>> clicks.users.tolist(), clicks.items.tolist(), clicks.offsets.tolist()
        ([3, 8], [5, 9, 2], [0, 2, 3])
        """
        return cls._from_keys(_distinct(_keys(users, items)))

    @classmethod
    def _from_keys(cls, keys: NDArray[np.int64]) -> Clicks:
        user_of_click = keys >> ITEM_BITS
        starts = _group_starts(user_of_click)
        users = user_of_click[starts]
        items = (keys & ((1 << ITEM_BITS) - 1)).astype(np.int32)
        return cls(users, items, np.append(starts, len(keys)))

    @classmethod
    def read(cls, path: str | os.PathLike[str], label: str = "label") -> Clicks:
        """Read the clicks of a training split: the histories of a user's rows and the targets whose label is 1.

        Histories are earlier clicks of the user. An item counts once per user, in however many rows it stands. Give it
        the training split and nothing else: what is learned from valid or test clicks cannot be measured on them.

        Parameters
        ----------
        path : path
            ``X.parquet``, ``X`` or a folder of part files, with ``user_id``, ``item_id``, ``item_seq`` and the label.
        label : str
            Label column.

        Raises
        ------
        DataError, MissingFileError
            A column is missing or holds something else than ids, or nobody clicked anything.
        """
        known: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        fresh: list[NDArray[np.int64]] = []
        for keys in _chunk_keys(path, label):
            fresh.append(keys)
            if sum(map(len, fresh)) >= MERGE_CLICKS:
                known, fresh = _distinct(np.concatenate([known, *fresh])), []
        known = _distinct(np.concatenate([known, *fresh]))
        if not len(known):
            raise DataError(f"{path}: no click in it (no item_seq with an item, no {label} of 1), expected some")
        return cls._from_keys(known)


def _chunk_keys(path: str | os.PathLike[str], label: str) -> Iterator[NDArray[np.int64]]:
    for file in parquet.part_files(path):
        for row, batch in parquet.read_chunks(file, ["user_id", "item_id", "item_seq", label]):
            users = parquet.scalars(batch.column("user_id"), f"{file}: user_id", row)
            wrong = (users < 0) | (users >= MAX_USERS)
            if wrong.any():
                bad = int(np.flatnonzero(wrong)[0])
                raise DataError(
                    f"{file}: user_id: row {row + bad} holds the id {users[bad]}, expected 0 to {MAX_USERS - 1}; "
                    "number the ids anew"
                )
            targets = parquet.scalars(batch.column("item_id"), f"{file}: item_id", row)
            parquet.check_ids(targets, None, f"{file}: item_id", row)
            labels = parquet.scalars(batch.column(label), f"{file}: {label}", row, floating=True)
            flat, offsets = parquet.lists(batch.column("item_seq"), f"{file}: item_seq", row)
            real = np.flatnonzero(flat)
            row_of = np.repeat(np.arange(len(users)), np.diff(np.searchsorted(real, offsets)))
            history = parquet.whole(flat[real], f"{file}: item_seq", row + row_of)
            parquet.check_ids(history, None, f"{file}: item_seq", row + row_of)
            positive = (labels > 0) & (targets > 0)
            pairs = [_keys(users[row_of], history), _keys(users[positive], targets[positive])]
            yield _distinct(np.concatenate(pairs))


def _keys(users: NDArray, items: NDArray) -> NDArray[np.int64]:
    return (users.astype(np.int64) << ITEM_BITS) | items.astype(np.int64)


def _distinct(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    keys = np.sort(keys)
    return keys[_group_starts(keys)]


def _group_starts(values: NDArray) -> NDArray[np.int64]:
    """Where each run of equal values begins."""
    if not len(values):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
