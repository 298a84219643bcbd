"""Types of columns as models read them, and conversions of Arrow arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.data import decoding
from fuxictr_mm.data.arrow_types import is_bytes, is_list, is_plain_text
from fuxictr_mm.errors import DataError


@functools.cache
def is_number(kind: pa.DataType) -> bool:
    """Whether models read a column of this type as one number per row."""
    return _is_accepted(functools.partial(decoding.scalars, floating=True), kind)


@functools.cache
def is_scalar(kind: pa.DataType) -> bool:
    """Whether a column of this type holds a number, a text, bytes or a time per row."""
    return is_number(kind) or is_text(kind) or is_bytes(kind) or pa.types.is_temporal(kind)


@functools.cache
def is_number_list(kind: pa.DataType) -> bool:
    """Whether models read a column of this type as lists of numbers."""
    return is_list(kind) and _is_accepted(decoding.lists, kind)


def _is_accepted(read: Callable[[pa.Array, str, int], object], kind: pa.DataType) -> bool:
    try:
        read(pa.nulls(0, kind), "", 0)  # what training reads columns with, so that both agree
    except DataError:
        return False
    return True


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return is_plain_text(kind.value_type if pa.types.is_dictionary(kind) else kind)


def to_series(array: pa.Array) -> pl.Series:
    """Return a column as a Polars series; Boolean becomes 0 and 1, a time that of UTC."""
    if pa.types.is_timestamp(array.type):  # Polars has no time zones such as +05:30
        array = array.cast(pa.timestamp(array.type.unit))
    elif pa.types.is_float16(array.type):
        array = array.cast(pa.float32())
    elif is_list(array.type) and pa.types.is_float16(array.type.value_type):  # Polars 1.35 reads other numbers
        array = array.cast(pa.large_list(pa.float32()))
    series = pl.Series(array)
    if isinstance(series.dtype, pl.Array):
        return series.arr.to_list()
    return series.cast(pl.Int8) if series.dtype == pl.Boolean else series


def as_id(column: str) -> pl.Expr:
    """Return integers from 0 as Int64, null for everything else."""
    ids = pl.col(column).cast(pl.Int64, strict=False)
    return pl.when((ids >= 0) & (ids == pl.col(column))).then(ids)


def as_text(array: pa.Array) -> list[str]:
    """Return one text per row; bytes that are not UTF-8 become U+FFFD, null becomes empty."""
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    raw = array.cast(pa.large_binary()).to_pylist()
    return ["" if b is None else b.decode("utf-8", errors="replace") for b in raw]


def split_lists(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the entries of all lists ``(N,)`` and the offsets of each row in them ``(R + 1,)``; a null is empty."""
    if pa.types.is_fixed_size_list(array.type) and array.null_count:
        array = array.cast(pa.list_(array.type.value_type))
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return array.flatten(), np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
