"""Arrow columns to checked NumPy arrays: labels, ids, histories, positions and features.

Every error names the file, the column, the row and the value.

Shape letters: R rows, N history items of all rows, I items (padding included).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.data.arrow_types import is_list, is_plain_text, numbers
from fuxictr_mm.data.parquet import part_files, read_chunks, schema_of
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.errors import DataError

if TYPE_CHECKING:
    from fuxictr_mm.data.vocabulary import Vocabulary

#: Feature types that hold one number per row.
SCALAR_TYPES = ("categorical", "numeric")

#: Ids are stored as int32.
MAX_IDS = 2**31


def decode_target(
    array: pa.Array, where: str, row: int, known: np.ndarray, vocabulary: Vocabulary | None = None
) -> np.ndarray:
    """Return the target items, ``(R,)`` int32; ``known`` ``(I,)`` is True for numbers of items in the item files."""
    if vocabulary is not None:
        numbers_R = vocabulary.encode(array, where)
        _check_numbers(numbers_R, array, where, row, known)
        return numbers_R.astype(np.int32)
    ids = scalars(array, where, row)
    _check_items(ids, where, row, known)
    return ids.astype(np.int32)


class Positions(NamedTuple):
    """A history, and which entries of its lists it is.

    Parameters
    ----------
    items : ndarray
        ``(N,)`` int32.
    offsets : ndarray
        ``(R + 1,)`` int64, of each row in the items.
    kept : ndarray
        ``(N,)`` index of each item in the entries of all lists.
    lists : ndarray
        ``(R + 1,)`` int64, of each row in the entries of all lists.
    """

    items: np.ndarray
    offsets: np.ndarray
    kept: np.ndarray
    lists: np.ndarray


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
        _check_numbers(flat[kept], entries, where, rows, known, kept)
        return Positions(flat[kept].astype(np.int32), ends.astype(np.int64, copy=False), kept, offsets)
    ids = integers(flat[kept], where, rows)
    _check_items(ids, where, rows, known)
    return Positions(ids.astype(np.int32), ends.astype(np.int64, copy=False), kept, offsets)


def decode_along(array: pa.Array, where: str, row: int, feature: Feature, history: Positions) -> np.ndarray:
    """Return the entries of a sequence along a history, ``(N,)`` int32 ids or float32 numbers, one for each item.

    Raises
    ------
    DataError
        A row has another number of entries than the list of its history, or an entry is not a number or id.
    """
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


def decode_scalar(array: pa.Array, where: str, row: int, feature: Feature) -> np.ndarray:
    """Return a categorical or numeric column, ``(R,)`` int32 ids or float32 numbers."""
    if feature.type == "numeric":
        return decode_numbers(array, where, row, feature)
    ids = scalars(array, where, row)
    check_ids(ids, feature.vocab_size, where, row)
    return ids.astype(np.int32)


def decode_numbers(array: pa.Array, where: str, row: int, feature: Feature) -> np.ndarray:
    """Return a numeric column without missing values, ``(R,)`` float32, or float64 if it is to be scaled."""
    kind = array.type
    if feature.fill_na is not None and (is_number(kind) or pa.types.is_null(kind)):
        missing = array.is_null(nan_is_null=True)
        if missing.true_count:
            # Integers beyond 2**53 are rounded, as they are in a column without nulls.
            numbers_of_rows = array.cast(pa.float64(), safe=False)
            array = pc.if_else(missing, pa.scalar(float(feature.fill_na)), numbers_of_rows)
    elif feature.has_items and (is_number(kind) or pa.types.is_null(kind)):
        missing = array.is_null(nan_is_null=True)
        if missing.true_count:
            bad = int(np.flatnonzero(numbers(missing))[0])
            found = "NaN" if array[bad].is_valid else "null"
            raise DataError(
                f"{where}: row {row + bad} is {found}, expected a number; set fill_na, or fill or drop such rows"
            )
    return scalars(array, where, row, floating=True, dtype=np.float32 if feature.normalizer is None else np.float64)


def decode_context(
    array: pa.Array, where: str, row: int, feature: Feature, vocabulary: Vocabulary | None = None
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Return a context column: ``(R,)`` ids or numbers, ``(R, D)`` embeddings, or entries and offsets of sequences.

    With a vocabulary, null and unseen texts are 0. Numbers are not scaled yet.
    """
    if vocabulary is not None:
        return np.maximum(vocabulary.encode(array, where), 0).astype(np.int32)
    if feature.type in SCALAR_TYPES:
        return decode_scalar(array, where, row, feature)
    flat, offsets = lists(array, where, row)
    if feature.type == "embedding":
        dim = feature.pretrain_dim or max(int(np.diff(offsets).max(initial=0)), 1)
        wrong = np.flatnonzero(np.diff(offsets) != dim)
        if wrong.size:
            found = int(offsets[wrong[0] + 1] - offsets[wrong[0]])
            raise DataError(f"{where}: row {row + int(wrong[0])} has {found} numbers, expected {dim} (pretrain_dim)")
        return finite(flat.reshape(-1, dim), where, row)
    rows = row + np.repeat(np.arange(len(array)), np.diff(offsets))
    ids = integers(flat, where, rows)
    check_ids(ids, feature.vocab_size, where, rows)
    return _trim(ids.astype(np.int32), offsets, feature.max_len, feature.padding == "pre")


def _trim(ids: np.ndarray, offsets: np.ndarray, max_len: int | None, pre: bool) -> tuple[np.ndarray, np.ndarray]:
    """Cut rows to ``max_len`` on one side, as FuxiCTR does, and drop their padding on that side.

    Zeros in between stay: padded again, the rows are as they were.
    """
    starts, stops, kept = offsets[:-1], offsets[1:], np.flatnonzero(ids)
    if pre:
        starts = starts if max_len is None else np.maximum(starts, stops - max_len)
        starts = np.minimum(np.append(kept, ids.size)[np.searchsorted(kept, starts)], stops)
    else:
        stops = stops if max_len is None else np.minimum(stops, starts + max_len)
        stops = np.maximum(np.append(-1, kept)[np.searchsorted(kept, stops)] + 1, starts)
    trimmed = np.concatenate(([0], np.cumsum(stops - starts)))
    index = np.arange(trimmed[-1]) + np.repeat(starts - trimmed[:-1], stops - starts)
    return ids[index], trimmed


def decode_label(array: pa.Array, where: str, row: int, binary: bool, *, missing: bool = False) -> np.ndarray:
    """Return the labels, ``(R,)`` float32; with ``missing``, a null or NaN is NaN instead of an error."""
    absent = array.is_null(nan_is_null=True).to_numpy(zero_copy_only=False) if missing else np.zeros(len(array), bool)
    if absent.all() and missing:
        return np.full(len(array), np.nan, np.float32)
    if absent.any():
        array = array.take(pa.array(np.where(absent, absent.argmin(), np.arange(len(array)))))
    if is_plain_text(array.type) and array.null_count < len(array):
        raise DataError(f"{where}: {_text_label(array, row, binary)}")
    values = scalars(array, where, row, floating=True)
    wrong = (values != 0) & (values != 1)
    if binary and wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{where}: row {row + bad} is {values[bad]:g}, expected 0 or 1")
    return np.where(absent, np.float32(np.nan), values) if absent.any() else values


def decode_weight(array: pa.Array, where: str, row: int) -> np.ndarray:
    """Return the weights of rows, ``(R,)`` float32, none of them negative."""
    weights = scalars(array, where, row, floating=True)
    if (wrong := np.flatnonzero(weights < 0)).size:
        raise DataError(f"{where}: row {row + int(wrong[0])} is {weights[wrong[0]]:g}, expected a weight of 0 or more")
    return weights


def _text_label(array: pa.Array, row: int, binary: bool) -> str:
    """Return what is wrong with a column of labels that are texts, and what to do."""
    first = int(np.flatnonzero(numbers(array.is_valid()))[0])
    found = f"holds {array.type}, at row {row + first} {array[first].as_py()!r}, expected"
    values = array.drop_null().cast(pa.large_string())
    if not binary:
        return f"{found} numbers; cast them: pl.col(NAME).cast(pl.Float64)"
    if pc.all(pc.is_in(values, pa.array(["0", "1"], pa.large_string()))).as_py():
        return f"{found} 0 or 1; cast them: pl.col(NAME).cast(pl.Int8)"
    return f"{found} 0 or 1; compare them: (pl.col(NAME) == TEXT_OF_A_POSITIVE).cast(pl.Int8)"


def label_kinds(array: pa.Array, binary: bool) -> set[str]:
    """Return which kinds of values a label column holds: ``label``, or of placeholders ``null``, ``text``, the number.

    One number other than 0 and 1 in all rows is a placeholder of a binary label.
    """
    absent = array.is_null(nan_is_null=True)
    kinds = {"null"} if absent.true_count else set()
    values = array.filter(pc.invert(absent))
    kind = values.type
    if len(values) == 0:
        return kinds
    if is_plain_text(kind):
        texts = pc.match_substring_regex(values.cast(pa.large_string()), r"^\s*[+-]?\.?\d")
        return {*kinds, "label" if texts.true_count else "text"}
    if binary and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        low, high = (float(bound.as_py()) for bound in pc.min_max(values).values())
        if low == high and low not in (0, 1):
            return {*kinds, f"{low:g}"}
    return {*kinds, "label"}


def scalars(array: pa.Array, where: str, row: int, *, floating: bool = False, dtype: type = np.float32) -> np.ndarray:
    """Return one number per row: int64, or ``dtype`` if ``floating``.

    Parameters
    ----------
    array : pyarrow.Array
        ``(R,)``.
    where : str
        File and column, for errors.
    row : int
        Index of the first row, for errors.
    """
    if not is_number(array.type) and not (pa.types.is_null(array.type) and len(array)):
        raise DataError(f"{where}: {_no_number(array, row, floating)}")
    if array.null_count:
        raise DataError(f"{where}: row {_first_null(array, row)} is null, expected a number; fill or drop such rows")
    values = numbers(array)
    if floating:
        return finite(values, where, row, dtype)
    return integers(values, where, row)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type holds numbers or truth values."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _first_null(array: pa.Array, row: int) -> int:
    return row + int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])


def _no_number(array: pa.Array, row: int, floating: bool) -> str:
    """Return what is wrong with a column that holds no numbers, and what to do."""
    kind = array.type
    if pa.types.is_temporal(kind):
        fix = (
            "write seconds, pl.col(NAME).dt.epoch('s'), and set normalizer: StandardScaler"
            if floating
            else "write repeating values as integers, such as pl.col(NAME).dt.hour() or .dt.weekday(), or "
            "seconds as type: "
            "numeric"
        )
        return f"holds {kind}, expected {'numbers' if floating else 'ids'}; {fix}"
    if not (floating and is_plain_text(kind)):
        return f"holds {kind}, expected numbers; encode the column as integers first"
    texts = array.cast(pa.large_string())
    number = pc.match_substring_regex(texts, _NUMBER)
    bad = np.flatnonzero(~numbers(number.fill_null(True)))
    if not bad.size:
        return f"holds {kind}, numbers as text, expected numbers; cast them: pl.col(NAME).cast(pl.Float64)"
    first = texts[int(bad[0])].as_py()
    if pc.all(pc.match_substring_regex(pc.replace_substring(texts, ",", "."), _NUMBER)).as_py():
        fix = "cast them: pl.col(NAME).str.replace(',', '.').cast(pl.Float64)"
    else:
        fix = "write numbers, or name another column"
    return f"holds {kind}, at row {row + int(bad[0])} {first!r}, expected numbers; {fix}"


#: A number in a text.
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def integers(values: np.ndarray, where: str, row_of: np.ndarray | int) -> np.ndarray:
    """Return numbers as int64; ``row_of`` is as in ``check_ids``."""
    if values.dtype.kind == "f":
        bad = np.flatnonzero(~((np.abs(values) < 2.0**63) & (values == np.floor(values))))
        if bad.size:
            raise DataError(
                f"{where}: row {_row(row_of, bad[0])} holds {values[bad[0]]}, expected an integer; "
                "write ids as integers"
            )
    if values.dtype == np.uint64 and (bad := np.flatnonzero(values >= 2**63)).size:
        raise DataError(
            f"{where}: row {_row(row_of, bad[0])} holds {values[bad[0]]}, expected integers below 2**63; write ids as "
            "texts, or set ids: vocabulary in dataset_config.yaml"
        )
    return values.astype(np.int64)


def lists(array: pa.Array, where: str, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries of all lists ``(entries,)`` and the offsets ``(R + 1,)`` of each row in them.

    Lists, large lists and fixed-size lists are accepted; a null list is empty, as are all rows of a column of nulls.
    """
    entries, offsets = list_entries(array, where)
    return _entries(entries, offsets, where, row), offsets


def list_entries(array: pa.Array, where: str) -> tuple[pa.Array, np.ndarray]:
    """Return the entries of all lists as an Arrow array of any type, and the offsets as ``lists`` does."""
    kind = array.type
    if pa.types.is_null(kind) or (not is_list(kind) and len(array) > 0 and _all_missing(array)):
        array = pa.nulls(len(array), pa.list_(pa.int64()))
    elif pa.types.is_list(kind) and pa.types.is_null(kind.value_type):
        array = array.cast(pa.list_(pa.int64()))
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        if array.null_count:
            array = array.cast(pa.list_(kind.value_type))
        else:
            return array.flatten(), np.arange(len(array) + 1, dtype=np.int64) * kind.list_size
    if not is_list(array.type):
        of_texts = is_plain_text(array.type)
        split = "split the texts: frame.with_columns(pl.col(NAME).str.split(SEPARATOR))" if of_texts else "write lists"
        raise DataError(f"{where}: holds {array.type}, expected a list per row; {split}, or name a column of lists")
    lengths = numbers(array.value_lengths().fill_null(0))
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return array.flatten(), offsets


#: Unknown ids of histories that are probably padding, in lower case and without ``<``, ``[``, ``_``.
PADDING_TEXTS = {"0", "-1", "pad", "padding", "mask", "none", "null", "nan", "n/a", "na"}


def _all_missing(array: pa.Array) -> bool:
    """Whether a column holds no value: writers choose its type, and NaN or an empty text for what is missing."""
    if is_plain_text(array.type):
        return not pc.any(pc.greater(pc.binary_length(array), 0)).as_py()
    return pc.all(array.is_null(nan_is_null=True)).as_py()


def check_ids(ids: np.ndarray, limit: int | None, where: str, row_of: np.ndarray | int) -> None:
    """Raise a DataError for an id that is negative or not below ``limit``.

    ``row_of`` is the index of the first row (one id per row), or the row of every id.
    """
    if ids.size == 0:
        return
    bad = (ids < 0) | (ids >= (limit or MAX_IDS))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        fix = (
            "number the ids from 1 on"
            if limit is None
            else "write 0 for an id that training does not have, raise vocab_size, or correct the file"
        )
        raise DataError(
            f"{where}: row {_row(row_of, first)} holds the id {int(ids[first])}, "
            f"expected 0 to {(limit or MAX_IDS) - 1}; {fix}"
        )


def _check_items(ids: np.ndarray, where: str, row_of: np.ndarray | int, known: np.ndarray) -> None:
    """Raise a DataError for padding or an id that is in no item file; ``row_of`` is as in ``check_ids``."""
    good = _are_items(ids, known)
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    unknown = np.unique(ids[~good])
    row = _row(row_of, first)
    if ids[first] <= 0:
        raise DataError(
            f"{where}: row {row} holds the item id {ids[first]}, expected 1 or more; only 0 is padding: pad histories "
            "with 0, or set ids: vocabulary in dataset_config.yaml if it is an item"
        )
    raise DataError(
        f"{where}: row {row} holds the item id {ids[first]}, which no item file has ({unknown.size} such ids in these "
        f"rows; the item files have {int(known.sum()) - 1} ids up to {known.size - 1}); {_fix_of_unknown(good)}"
    )


def _are_items(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return which of some ids the item files have; 0 is padding."""
    good = (ids > 0) & (ids < known.size)
    good[good] = known[ids[good]]
    return good


def _fix_of_unknown(good: np.ndarray) -> str:
    """Return what to do about unknown items; of a column without a known one, it is probably another column."""
    if good.any():
        return "add the items or drop the rows"
    return "no entry of these rows is an item: set the column of items in roles, or the item files in item_info"


def _check_numbers(
    found: np.ndarray,
    values: pa.Array,
    where: str,
    row_of: np.ndarray | int,
    known: np.ndarray,
    places: np.ndarray | None = None,
) -> None:
    """Raise a DataError for an id without a number, or of an item that is in no item file.

    ``values`` are the ids, those at ``places`` or all; ``row_of`` is as in ``check_ids``.
    """
    good = _are_items(found, known)
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    value = values[first if places is None else int(places[first])].as_py()
    row = _row(row_of, first)
    if found[first] == 0:
        raise DataError(
            f"{where}: row {row} holds {value!r}, which is padding, expected an item; fill or drop such rows"
        )
    fix = _fix_of_unknown(good)
    if not isinstance(row_of, int) and str(value).strip("<[_]>").lower() in PADDING_TEXTS:
        fix = "if it is padding, leave it out or write null in its place"
    raise DataError(
        f"{where}: row {row} holds the item id {value!r}, which no item file has ({int((~good).sum())} such entries in "
        f"these rows; the item files have {int(known.sum()) - 1} ids); {fix}"
    )


def is_zero_padded(path: str | os.PathLike[str], column: str) -> bool:
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


def _entries(flat: pa.Array, offsets: np.ndarray, where: str, row: int) -> np.ndarray:
    if not len(flat) and len(offsets) > 1:  # only empty lists, of any type
        return np.zeros(0, np.int64)
    if flat.null_count:
        first = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0])
        bad = row + int(np.searchsorted(offsets, first, side="right")) - 1
        raise DataError(f"{where}: the list of row {bad} holds a null, expected numbers only; write 0 for padding")
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)):
        raise DataError(
            f"{where}: lists of {flat.type}, expected lists of numbers; name another column, or write ids as one type "
            "in all files"
        )
    return numbers(flat)


def finite(values: np.ndarray, where: str, row_of: np.ndarray | int, dtype: type = np.float32) -> np.ndarray:
    """Return numbers as ``dtype``, or raise a DataError for one that is not finite."""
    with np.errstate(over="ignore"):  # too large for float32: becomes infinite
        values = values.astype(dtype)
    is_finite = np.isfinite(values)
    if not is_finite.all():
        bad = np.argwhere(~is_finite)[0]
        raise DataError(
            f"{where}: row {_row(row_of, bad[0])} holds {values[tuple(bad)]}, expected finite numbers, none beyond "
            "3.4e38"
        )
    return values


def _row(row_of: np.ndarray | int, index: int) -> int:
    return row_of + int(index) if isinstance(row_of, int) else int(row_of[index])
