"""Columns of rows or of a request as the arrays that the graphs read.

Shape letters: B rows, N history items of all rows, L length of a sequence, D dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.tables import UNKNOWN, Ids, Table, integers

#: Column values: a column of a file, or the values of a request.
Column: TypeAlias = Sequence[Any] | pa.Array


@dataclass(frozen=True)
class ContextField:
    """A column of the context, as ``manifest.json`` describes it."""

    name: str
    column: str
    type: str
    table: Table | None
    ids: Ids | None
    spec: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path, spec: Mapping[str, Any], ids: Ids | None) -> ContextField:
        """Return the field of an entry of the manifest."""
        table = Table(folder, spec["table"]) if spec.get("table") else None
        return cls(spec["name"], spec["column"], spec["type"], table, ids, spec)

    @property
    def is_computed(self) -> bool:
        """Whether the field is the length of the history."""
        return bool(self.spec.get("computed"))

    def encode(self, column: Column, what: str) -> np.ndarray:
        """Return what the graph reads: ``(B,)`` numbers, or embeddings ``(B, D)`` or ``(B, L, D)``.

        Raises
        ------
        ServingError
            Values that training would refuse.
        """
        if self.type == "numeric":
            return _floats(column, what)
        if self.type == "embedding":
            return self._embeddings(column, what)
        if self.type == "sequence":
            return self._rows(self._padded(column, what))
        return self._rows(self._numbers(column, what))

    def of_lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Return the field that is computed from the lengths ``(B,)`` of histories."""
        if self.type == "numeric":
            return np.log1p(lengths.astype(np.float32))
        # Bin k holds lengths from 2^(k - 1) - 1 on, as in training.
        bounds = 2 ** np.arange(1, self.spec["vocab_size"] - 1) - 1
        return self._rows(np.searchsorted(bounds, lengths, side="right") + 1)

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        assert self.table is not None
        return self.table.rows(ids)

    def _numbers(self, column: Column, what: str) -> np.ndarray:
        if self.ids is not None:
            return np.maximum(self.ids.encode(column, what), 0)
        found = integers(column, what)
        limit = self.spec["vocab_size"]
        wrong = np.flatnonzero((found < 0) | (found >= limit))
        if wrong.size:
            raise ServingError(f"{what}: holds {found[wrong[0]]}, expected 0 to {limit - 1}")
        return found

    def _padded(self, column: Column, what: str) -> np.ndarray:
        flat, offsets = _lists(column, what)
        ids, length, pre = self._numbers(flat, what), self.spec["max_len"], self.spec.get("padding") == "pre"
        padded = np.zeros((len(offsets) - 1, length), dtype=np.int64)
        for row, (start, stop) in enumerate(pairwise(offsets)):
            kept = ids[start:stop][-length:] if pre else ids[start:stop][:length]
            if kept.size:
                padded[row, length - kept.size if pre else 0 : length if pre else kept.size] = kept
        return padded

    def _embeddings(self, column: Column, what: str) -> np.ndarray:
        flat, offsets = _lists(column, what)
        dim = self.spec["pretrain_dim"]
        if (np.diff(offsets) != dim).any():
            raise ServingError(f"{what}: an embedding has not {dim} numbers")
        return _floats(flat, what).reshape(-1, dim)


@dataclass(frozen=True)
class Items:
    """The items of an export and the numbers of their ids."""

    table: Table
    known: np.ndarray
    ids: Ids | None
    max_len: int | None

    def some(self, count: int) -> list[Any]:
        """Return the first item ids."""
        numbers = np.flatnonzero(self.known)[1 : count + 1]
        return numbers.tolist() if self.ids is None else [self.ids.values[int(n) - 1].as_py() for n in numbers]

    def numbers(self, ids: Column, what: str) -> np.ndarray:
        """Return the number of each item ``(M,)``; ``UNKNOWN`` for one that the export does not hold."""
        if self.ids is not None:
            found = self.ids.encode(ids, what)
        else:
            found = integers(ids, what)
        inside = (found >= 0) & (found < len(self.known))
        return np.where(inside & self.known[np.where(inside, found, 0)], found, UNKNOWN)

    def histories(self, column: Column, what: str, *, strict: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the newest ``max_len`` items of each history ``(N,)`` without padding, and offsets ``(B + 1,)``.

        With ``strict`` an unknown item is an error, otherwise it is left out.
        """
        flat, offsets = _lists(column, what)
        numbers = self.numbers(flat, what)
        if strict and (unknown := np.flatnonzero(numbers == UNKNOWN)).size:
            value = flat[int(unknown[0])]
            value = value.as_py() if isinstance(value, pa.Scalar) else value
            raise ServingError(
                f"{what}: row {int(np.searchsorted(offsets, unknown[0], 'right')) - 1} holds the item "
                f"{value!r}, which is not in the item files"
            )
        kept = np.flatnonzero(numbers > 0)
        ends = np.searchsorted(kept, offsets)
        lengths = np.diff(ends)
        if self.max_len is not None and lengths.size and lengths.max() > self.max_len:
            from_end = np.repeat(ends[1:], lengths) - np.arange(kept.size)
            kept = kept[from_end <= self.max_len]
            lengths = np.minimum(lengths, self.max_len)
            ends = np.concatenate(([0], np.cumsum(lengths)))
        return numbers[kept], ends.astype(np.int64)


def _floats(column: Column, what: str) -> np.ndarray:
    try:
        if isinstance(column, pa.Array):
            found = column.cast(pa.float32()).to_numpy(zero_copy_only=False)
        else:
            found = np.array(column, dtype=np.float32)
    except (ValueError, TypeError, pa.ArrowException):
        raise ServingError(f"{what}: holds values that are no numbers") from None
    if not np.isfinite(found).all():
        raise ServingError(f"{what}: holds a value that is not finite")
    return found


def _lists(column: Column, what: str) -> tuple[Column, np.ndarray]:
    """Return the entries of a column of lists, and the offsets of its rows."""
    if isinstance(column, pa.Array):
        return _list_entries(column, what)
    flat: list[Any] = []
    offsets = np.zeros(len(column) + 1, dtype=np.int64)
    entries: Any
    for row, entries in enumerate(column):
        if not isinstance(entries, list | tuple | np.ndarray):
            raise ServingError(f"{what}: {entries!r} is no list")
        flat.extend(entries)
        offsets[row + 1] = len(flat)
    return flat, offsets


def _list_entries(column: pa.Array, what: str) -> tuple[pa.Array, np.ndarray]:
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise ServingError(f"{what}: holds {column.type}, expected lists")
    if column.null_count:  # the entries of a null may be there
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return column.flatten(), np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    return column.values[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0]
