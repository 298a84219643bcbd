"""Conversion of Arrow columns to the few types that the package supports."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def numbers(array: pa.Array) -> np.ndarray:
    """Return numbers or truth values without nulls; ``Array.to_numpy`` would import pandas, which takes 0.3 s."""
    if pa.types.is_boolean(array.type):  # stored as bits
        return np.from_dlpack(array.cast(pa.int8())).astype(bool)
    return np.from_dlpack(array)


def from_numbers(values: np.ndarray) -> pa.Array:
    """Return numbers ``(R,)`` as an Arrow array, without importing pandas as ``pyarrow.array`` would."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a column is read as.

    Extension types are their storage, dictionaries their values, list views lists; texts and bytes as Polars hands
    them over (views, for which pyarrow has few functions) are large ones, decimals int64 or, with decimal places,
    float64, all also in lists.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_decimal(kind):
        return pa.int64() if kind.scale <= 0 else pa.float64()
    if _is_view(kind):
        return pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary()
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(plain_type(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        entries = kind.value_type
        if pa.types.is_decimal(entries) or _is_view(entries):
            return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(plain_type(entries))
    return kind


def plain_array(array: pa.Array) -> pa.Array:
    """Return a column as its ``plain_type``."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
        # A cast gives a list without its last offset (pyarrow 26).
        lengths = numbers(array.value_lengths().fill_null(0))
        offsets = from_numbers(np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))
        array = pa.LargeListArray.from_arrays(offsets, array.flatten(), mask=array.is_null())
    kind = plain_type(array.type)
    if kind == array.type:
        return array
    entries = array.type.value_type if is_list(array.type) else array.type
    if pa.types.is_decimal(entries) and entries.bit_width < 128:  # pyarrow 26 finds integers of these out of bounds
        wide = pa.decimal128(entries.precision, entries.scale)
        array = array.cast(pa.large_list(wide) if is_list(array.type) else wide)
    return array.cast(kind)


def is_plain_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes."""
    of_any_length = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    return of_any_length or pa.types.is_fixed_size_binary(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_view(kind: pa.DataType) -> bool:
    return pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
