"""Groups of rows, usually users, within which metrics such as gAUC are computed. A row may have no group.

Shape letters: R rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.data import arrow_types, decoding

#: The group of a row whose group is missing.
NO_GROUP = np.iinfo(np.int64).min


def decode_group(array: pa.Array, where: str, row: int) -> np.ndarray:
    """Return the group of each row, ``(R,)`` int64; of null and NaN ``NO_GROUP``.

    Texts are hashed, with the same result in every process.
    """
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), NO_GROUP)
    if arrow_types.is_bytes(kind) or arrow_types.is_plain_text(kind):
        from pandas.util import hash_array  # type: ignore[import-untyped]

        values = array.fill_null("") if arrow_types.is_plain_text(kind) else array.cast(pa.binary()).fill_null(b"")
        groups = hash_array(values.to_numpy(zero_copy_only=False)).view(np.int64)
        missing = array.is_null()
    else:
        missing = array.is_null(nan_is_null=True)
        if missing.true_count and decoding.is_number(kind):
            array = pc.if_else(missing, pa.scalar(False).cast(kind), array)
        is_large = pa.types.is_uint64(kind)  # only whether two are equal counts
        groups = arrow_types.numbers(array).view(np.int64) if is_large else decoding.scalars(array, where, row)
    return np.where(arrow_types.numbers(missing), NO_GROUP, groups) if missing.true_count else groups


def number_groups(group_id: Any) -> np.ndarray:
    """Return the groups numbered from 0 by rising id, ``(n,)`` int64, and -1 for None, NaN or ``NO_GROUP``."""
    values = np.asarray(group_id)
    if values.dtype.kind == "U" and not hasattr(group_id, "dtype"):
        values = np.array(list(group_id), dtype=object)  # NumPy makes "nan" of a NaN among texts
    if values.dtype.kind == "O":
        from pandas import factorize  # type: ignore[import-untyped]

        return factorize(values, sort=True)[0].astype(np.int64)
    missing = values == NO_GROUP if values.dtype.kind == "i" else values != values
    found = np.full(values.shape, -1, np.int64)
    found[~missing] = np.unique(values[~missing], return_inverse=True)[1]
    return found


def group_keys(group: np.ndarray) -> np.ndarray:
    """Return groups as ``(n,)`` int64, texts as their hashes, by which files of older versions hold them."""
    return group if group.dtype.kind in "iu" else decode_group(pa.array(group), "group", 0)


def partition_of(group: np.ndarray) -> np.ndarray:
    """Return the groups numbered by their first rows, ``(n,)`` int64, and ``NO_GROUP`` for none.

    Equal where the same rows are in one group, whatever its number: a vocabulary may give users other numbers
    when data of another split has changed.

    Examples
    --------
    >>> partition_of(np.array([7, 3, 7, 5])).tolist()
    [0, 1, 0, 2]
    """
    from pandas import factorize

    numbers = number_groups(group_keys(group))
    found = np.full(len(numbers), NO_GROUP)
    found[numbers >= 0] = factorize(numbers[numbers >= 0])[0]
    return found


def number_users(group: np.ndarray | None, rows: int) -> np.ndarray:
    """Return the user of each row ``(rows,)``, numbered from 0; a row without a group counts as a separate user."""
    if group is None:
        return np.arange(rows)
    user = number_groups(group)
    alone = user < 0
    user[alone] = user.max() + 1 + np.arange(alone.sum())
    return user
