"""Columns of interactions, from Arrow to checked NumPy arrays, with errors that name file, column and row.

Shape letters: R rows, N history items of all rows, I items (padding included).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from fuxictr_mm.data import parquet
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.errors import DataError

#: Types of which a row holds one number.
SCALAR_TYPES = ("categorical", "numeric")


def decode_target(array: pa.Array, where: str, row: int, known: np.ndarray) -> np.ndarray:
    """Return the items shown, ``(R,)`` int32; ``known`` ``(I,)`` says which items there are."""
    ids = parquet.scalars(array, where, row)
    _check_items(ids, where, row, known)
    return ids.astype(np.int32)


def decode_history(
    array: pa.Array, where: str, row: int, known: np.ndarray, max_len: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the history without padding, ``(N,)`` int32, and where each row's begins and ends, ``(R + 1,)`` int64."""
    flat, offsets = parquet.lists(array, where, row)
    # Padding is zero, on either side or in between; what is left counts from the end of its row.
    kept = np.flatnonzero(flat)
    ends = np.searchsorted(kept, offsets)
    lengths = np.diff(ends)
    if max_len is not None and lengths.size and lengths.max() > max_len:
        from_end = np.repeat(ends[1:], lengths) - np.arange(kept.size)
        kept = kept[from_end <= max_len]
        lengths = np.minimum(lengths, max_len)
        ends = np.concatenate(([0], np.cumsum(lengths)))
    rows = row + np.repeat(np.arange(lengths.size), lengths)
    ids = parquet.whole(flat[kept], where, rows)
    _check_items(ids, where, rows, known)
    return ids.astype(np.int32), ends.astype(np.int64, copy=False)


def decode_scalar(array: pa.Array, where: str, row: int, feature: Feature) -> np.ndarray:
    """Return a categorical or numeric column, ``(R,)`` int32 ids or float32 numbers."""
    if feature.type == "numeric":
        return parquet.scalars(array, where, row, floating=True)
    ids = parquet.scalars(array, where, row)
    parquet.check_ids(ids, feature.vocab_size, where, row)
    return ids.astype(np.int32)


def decode_context(array: pa.Array, where: str, row: int, feature: Feature) -> np.ndarray:
    """Return a context column, which is categorical or numeric."""
    if feature.type in SCALAR_TYPES:
        return decode_scalar(array, where, row, feature)
    raise DataError(
        f"{where}: a {feature.type} column of the interactions, expected categorical or numeric; "
        "sequences and vectors are read from item files (source: item)"
    )


def decode_label(array: pa.Array, where: str, row: int, binary: bool) -> np.ndarray:
    """Return the labels, ``(R,)`` float32."""
    values = parquet.scalars(array, where, row, floating=True)
    wrong = (values != 0) & (values != 1)
    if binary and wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{where}: row {row + bad} is {values[bad]:g}, expected 0 or 1")
    return values


def _check_items(ids: np.ndarray, where: str, row_of: np.ndarray | int, known: np.ndarray) -> None:
    """Raise for padding or an id that no item file has; ``row_of`` is the first row or the row of every id."""
    good = (ids > 0) & (ids < known.size)
    good[good] = known[ids[good]]
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    row = row_of + first if isinstance(row_of, int) else int(row_of[first])
    unknown = np.unique(ids[~good])
    reason = "0, which is padding" if ids[first] == 0 else f"{ids[first]}, which no item file has"
    raise DataError(
        f"{where}: row {row} holds the item id {reason} ({unknown.size} such ids in these rows; the item files have "
        f"{int(known.sum()) - 1} ids up to {known.size - 1}); add the items or drop the rows"
    )
