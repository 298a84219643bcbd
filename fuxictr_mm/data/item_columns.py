"""Columns of items in the interactions: targets, histories, and sequences along a history.

Every error names the file, the column, the row and the value.

Shape letters: R rows, N history items of all rows, I items (padding included).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from fuxictr_mm.data.arrow_types import numbers
from fuxictr_mm.data.decoding import check_ids, finite, integers, list_entries, lists, row_at, scalars
from fuxictr_mm.data.parquet import part_files, read_chunks, schema_of
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.errors import DataError
from fuxictr_mm.files import StrPath

if TYPE_CHECKING:
    from fuxictr_mm.data.vocabulary import Vocabulary

#: Unknown ids of histories that are probably padding, in lower case and without ``<``, ``[``, ``_``.
PADDING_TEXTS = {"0", "-1", "pad", "padding", "mask", "none", "null", "nan", "n/a", "na"}


def decode_target(
    array: pa.Array, where: str, row: int, known: np.ndarray, vocabulary: Vocabulary | None = None
) -> np.ndarray:
    """Return the target items, ``(R,)`` int32; ``known`` ``(I,)`` is True for numbers of items in the item files."""
    if vocabulary is not None:
        numbers_R = vocabulary.encode(array, where)
        _check_items(numbers_R, where, row, known, lambda index: array[index].as_py())
        return numbers_R.astype(np.int32)
    ids = scalars(array, where, row)
    _check_items(ids, where, row, known)
    return ids.astype(np.int32)


class Positions(NamedTuple):
    """A history, and which entries of its lists it is."""

    items: np.ndarray  #: ``(N,)`` int32.
    offsets: np.ndarray  #: ``(R + 1,)`` int64, of each row in the items.
    kept: np.ndarray  #: ``(N,)`` index of each item in the entries of all lists.
    lists: np.ndarray  #: ``(R + 1,)`` int64, of each row in the entries of all lists.


def decode_positions(
    array: pa.Array,
    where: str,
    row: int,
    known: np.ndarray,
    max_len: int | None,
    vocabulary: Vocabulary | None = None,
    zero_ends: int = 1,
) -> Positions:
    """Return a history without padding, with the positions that sequences along it are read at.

    ``known`` is that of ``decode_target``. With a vocabulary, null, an empty text and 0 (unless an item) are padding;
    ``zero_ends`` is that of ``Conversion``.
    """
    if vocabulary is None:
        flat, offsets = lists(array, where, row)
    else:
        entries, offsets = list_entries(array, where)
        if vocabulary.has_zero:
            _check_zero_padding(entries, offsets, where, row, zero_ends)
        flat = vocabulary.encode(entries, where)
    # Padding is 0, on either side or in between; max_len counts the remaining items from the end of the row.
    kept = np.flatnonzero(flat)
    ends = np.searchsorted(kept, offsets)
    lengths = np.diff(ends)
    if max_len is not None and lengths.size and lengths.max() > max_len:
        from_end = np.repeat(ends[1:], lengths) - np.arange(kept.size)
        kept = kept[from_end <= max_len]
        lengths = np.minimum(lengths, max_len)
        ends = np.concatenate(([0], np.cumsum(lengths)))
    rows = row + np.repeat(np.arange(lengths.size), lengths)
    if vocabulary is not None:
        _check_items(flat[kept], where, rows, known, lambda index: entries[int(kept[index])].as_py())
        return Positions(flat[kept].astype(np.int32), ends.astype(np.int64, copy=False), kept, offsets)
    ids = integers(flat[kept], where, rows)
    _check_items(ids, where, rows, known)
    return Positions(ids.astype(np.int32), ends.astype(np.int64, copy=False), kept, offsets)


def decode_along(array: pa.Array, where: str, row: int, feature: Feature, history: Positions) -> np.ndarray:
    """Return the entries of a sequence along a history, ``(N,)`` int32 ids or float32 numbers, one for each item."""
    flat, offsets = lists(array, where, row)
    wrong = np.flatnonzero(np.diff(offsets) != np.diff(history.lists))
    if wrong.size:
        bad = int(wrong[0])
        found, expected = (int(ends[bad + 1] - ends[bad]) for ends in (offsets, history.lists))
        raise DataError(
            f"{where}: row {row + bad} has {found} entries, expected {expected}, one for each entry of "
            f"{feature.history}, padding included"
        )
    entries = flat[history.kept]
    rows = row + np.repeat(np.arange(len(array)), np.diff(history.offsets))
    if feature.is_number:
        return finite(entries, where, rows)
    ids = integers(entries, where, rows)
    check_ids(ids, feature.vocab_size, where, rows)
    return ids.astype(np.int32)


def _check_items(
    items: np.ndarray,
    where: str,
    row_of: np.ndarray | int,
    known: np.ndarray,
    id_at: Callable[[int], object] | None = None,
) -> None:
    """Raise a DataError for padding, or an item that is in no item file; ``row_of`` is as in ``check_ids``.

    ``id_at`` returns the id at an index of the items; by default these are the ids.
    """
    good = (items > 0) & (items < known.size)
    good[good] = known[items[good]]
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    found = int(items[first]) if id_at is None else id_at(first)
    holds = f"{where}: row {row_at(row_of, first)} holds"
    if id_at is None and items[first] <= 0:
        raise DataError(
            f"{holds} the item id {found}, expected 1 or more; only 0 is padding: pad histories with 0, or set ids: "
            "vocabulary in dataset_config.yaml if it is an item"
        )
    if items[first] == 0:
        raise DataError(f"{holds} {found!r}, which is padding, expected an item; fill or drop such rows")
    fix = "no entry of these rows is an item: set the column of items in roles, or the item files in item_info"
    fix = "add the items or drop the rows" if good.any() else fix
    if id_at is not None and not isinstance(row_of, int) and str(found).strip("<[_]>").lower() in PADDING_TEXTS:
        fix = "if it is padding, leave it out or write null in its place"
    count = f"{np.unique(items[~good]).size} such ids" if id_at is None else f"{int((~good).sum())} such entries"
    up_to = f" up to {known.size - 1}" if id_at is None else ""
    raise DataError(
        f"{holds} the item id {found!r}, which no item file has ({count} in these rows; the item files have "
        f"{int(known.sum()) - 1} ids{up_to}); {fix}"
    )


def is_zero_padded(path: StrPath, column: str) -> bool:
    """Whether the first lists of integers of a dataset all have the same length, and some have a 0 at an end.

    Empty lists and nulls do not count: padded files have them where a history is missing.
    """
    for file in part_files(path):
        if column not in schema_of(file).names:
            return False
        for _, batch in read_chunks(file, [column], max_rows=1000):
            entries, offsets = list_entries(batch.column(0), f"{file}: {column}")
            return pa.types.is_integer(entries.type) and bool(_zero_padded(entries, np.unique(offsets), 1).any())
    return False


def _zero_padded(entries: pa.Array, offsets: np.ndarray, zero_ends: int) -> np.ndarray:
    """Return which lists ``(R,)`` seem to be padded by ``zero_ends`` zeros; none where lengths differ."""
    lengths = np.diff(offsets)
    if lengths.size < 2 or lengths.min() != lengths.max() or lengths[0] < max(2, zero_ends):
        return np.zeros(lengths.size, dtype=bool)
    zero = numbers(entries.cast(pa.float64(), safe=False).fill_null(1)).reshape(lengths.size, -1) == 0
    return zero[:, :zero_ends].all(axis=1) | zero[:, -zero_ends:].all(axis=1)


def _check_zero_padding(entries: pa.Array, offsets: np.ndarray, where: str, row: int, zero_ends: int) -> None:
    """Refuse histories that 0 pads, it seems, where 0 is an item: all of one length, and zeros at an end.

    Lists that differ in length have no padding. ``zero_ends`` is how many zeros at an end make it padding.
    """
    lengths = np.diff(offsets)
    padded = _zero_padded(entries, offsets, zero_ends)
    if padded.any():
        fix = "write the histories without padding"
        if zero_ends == 1:
            fix += ", or set ids: vocabulary in dataset_config.yaml if they have none, ids: as_is if 0 is not an item"
        raise DataError(
            f"{where}: all {lengths.size} lists have {lengths[0]} entries, and that of row "
            f"{row + int(np.flatnonzero(padded)[0])} has a 0 at an end, which may be padding or the item 0 "
            f"of the item files; {fix}"
        )
