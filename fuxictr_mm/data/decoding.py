"""Arrow columns to checked NumPy arrays: numbers, ids, lists, and features of the context.

Every error names the file, the column, the row and the value.

Shape letter: R rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.data.arrow_types import is_list, is_plain_text, numbers
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.errors import DataError

if TYPE_CHECKING:
    from fuxictr_mm.data.vocabulary import Vocabulary

#: Feature types that hold one number per row.
SCALAR_TYPES = ("categorical", "numeric")

#: Ids are stored as int32.
MAX_IDS = 2**31


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
    missing = array.is_null(nan_is_null=True) if is_number(kind) or pa.types.is_null(kind) else None
    if missing is not None and missing.true_count:
        if feature.fill_na is not None:
            # Integers beyond 2**53 are rounded, as they are in a column without nulls.
            numbers_of_rows = array.cast(pa.float64(), safe=False)
            array = pc.if_else(missing, pa.scalar(float(feature.fill_na)), numbers_of_rows)
        elif feature.has_items:
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


def scalars(array: pa.Array, where: str, row: int, *, floating: bool = False, dtype: type = np.float32) -> np.ndarray:
    """Return one number per row ``(R,)``: int64, or ``dtype`` if ``floating``; errors name ``where`` and the row."""
    if not is_number(array.type) and not (pa.types.is_null(array.type) and len(array)):
        raise DataError(f"{where}: {_no_number(array, row, floating)}")
    if array.null_count:
        bad = row + int(np.flatnonzero(numbers(array.is_null()))[0])
        raise DataError(f"{where}: row {bad} is null, expected a number; fill or drop such rows")
    values = numbers(array)
    if floating:
        return finite(values, where, row, dtype)
    return integers(values, where, row)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this type holds numbers or truth values."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


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
                f"{where}: row {row_at(row_of, bad[0])} holds {values[bad[0]]}, expected an integer; "
                "write ids as integers"
            )
    if values.dtype == np.uint64 and (bad := np.flatnonzero(values >= 2**63)).size:
        raise DataError(
            f"{where}: row {row_at(row_of, bad[0])} holds {values[bad[0]]}, expected integers below 2**63; write ids "
            "as texts, or set ids: vocabulary in dataset_config.yaml"
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
            f"{where}: row {row_at(row_of, first)} holds the id {int(ids[first])}, "
            f"expected 0 to {(limit or MAX_IDS) - 1}; {fix}"
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
            f"{where}: row {row_at(row_of, bad[0])} holds {values[tuple(bad)]}, expected finite numbers, none beyond "
            "3.4e38"
        )
    return values


def row_at(row_of: np.ndarray | int, index: int) -> int:
    """Return the row of a value; ``row_of`` is as in ``check_ids``."""
    return row_of + int(index) if isinstance(row_of, int) else int(row_of[index])
