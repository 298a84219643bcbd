"""Columns of labels: 0 and 1, or the numbers of a regression, and placeholders of rows that are only scored.

Shape letter: R rows.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.data.arrow_types import is_plain_text, numbers
from fuxictr_mm.data.decoding import scalars
from fuxictr_mm.errors import DataError


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
