"""Columns of rows or of a request as the arrays that the graphs read.

Shape letters: B rows, N history items of all rows, L length of a sequence, D dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from fuxictr_mm_serving.errors import ServingError, UnknownItemError
from fuxictr_mm_serving.manifest import FieldEntry, Files
from fuxictr_mm_serving.tables import UNKNOWN, Ids, Table, integers

#: Values of a file, or of a request.
Flat: TypeAlias = Sequence[Any] | np.ndarray


@dataclass(frozen=True)
class Lists:
    """A column of lists: the entries of all rows, and the offsets of each row ``(B + 1,)``."""

    entries: Flat
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Flat:
        return self.entries[self.offsets[row] : self.offsets[row + 1]]


Column: TypeAlias = Flat | Lists


@dataclass(frozen=True)
class ContextField:
    """A column of the context, as ``manifest.json`` describes it."""

    name: str
    column: str
    type: str
    table: Table | None
    ids: Ids | None
    spec: FieldEntry

    def of_numbers(self) -> ContextField:
        """Return the field as ``fuxictr-mm prepare`` wrote its column: with numbers for ids, and scaled."""
        if (prepared := self.spec.prepared) is None:
            return self
        spec = self.spec.model_copy(update=dict(prepared))
        return replace(self, column=prepared.column, ids=None, spec=spec)

    def source_of(self, value: Any) -> Any:
        """Return the owner's value of one of ``of_numbers``; None for the number 0."""
        prepared = self.spec.prepared
        if prepared is None or value is None:
            return value
        if self.ids is not None:
            return [self.ids.value(number) for number in value] if self.is_list else self.ids.value(value)
        if self.type != "numeric":
            return value
        return self.spec.shift + self.spec.scale * ((value - prepared.shift) / prepared.scale)

    @classmethod
    def of(cls, files: Files, spec: FieldEntry, ids: Ids | None) -> ContextField:
        """Return the field of an entry of the manifest."""
        table = None
        if spec.table is not None:
            table = Table(files, spec.table, max(spec.vocab_size, len(ids.values) + 1 if ids else 1))
        return cls(spec.name, spec.column, spec.type, table, ids, spec)

    @property
    def is_computed(self) -> bool:
        """Whether the field is the length of the history."""
        return bool(self.spec.computed)

    @property
    def is_list(self) -> bool:
        """Whether a row has a list."""
        return self.type in ("sequence", "embedding")

    def check_null(self, value: Any, what: str) -> None:
        """Refuse the null of a request where training refuses it; a list that is null is empty."""
        takes_null = self.is_computed or self.ids is not None or self.spec.fill_na is not None
        entries = value if isinstance(value, list | tuple) else () if self.is_list else (value,)
        if not takes_null and any(entry is None for entry in entries):
            raise ServingError(f"{what}: holds null, expected a number, as in training")

    def encode(self, column: Column, what: str) -> np.ndarray:
        """Return what the graph reads: ``(B,)`` numbers, or embeddings ``(B, D)`` or ``(B, L, D)``.

        Without a table, they are ids ``(B,)`` or ``(B, L)``.
        """
        if self.type == "numeric":
            return self._scaled(column, what)
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
        bounds = 2 ** np.arange(1, self.spec.vocab_size - 1) - 1
        return self._rows(np.searchsorted(bounds, lengths, side="right") + 1)

    def _scaled(self, column: Column, what: str) -> np.ndarray:
        fill, shift, scale = self.spec.fill_na, self.spec.shift, self.spec.scale
        if fill is None and (shift, scale) == (0, 1):
            return _floats(column, what)
        found = _numbers(column, what, np.float64)  # as in training, which casts after it has scaled
        if fill is not None:
            found[np.isnan(found)] = fill
        with np.errstate(over="ignore"):
            found = (found - shift) / scale
        return _finite(found, what)

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        return ids if self.table is None else self.table.rows(ids)

    def _numbers(self, column: Column, what: str) -> np.ndarray:
        if self.ids is not None:
            return np.maximum(self.ids.encode(_flat(column, what), what), 0)
        found = integers(_flat(column, what), what)
        limit = self.spec.vocab_size
        wrong = np.flatnonzero((found < 0) | (found >= limit))
        if wrong.size:
            raise ServingError(f"{what}: holds {found[wrong[0]]}, expected 0 to {limit - 1}")
        return found

    def _padded(self, column: Column, what: str) -> np.ndarray:
        flat, offsets = _lists(column, what)
        ids, length, pre = self._numbers(flat, what), self.spec.max_len, self.spec.padding == "pre"
        padded = np.zeros((len(offsets) - 1, length), dtype=np.int64)
        for row, (start, stop) in enumerate(pairwise(offsets)):
            kept = ids[start:stop][-length:] if pre else ids[start:stop][:length]
            if kept.size:
                padded[row, length - kept.size if pre else 0 : length if pre else kept.size] = kept
        return padded

    def _embeddings(self, column: Column, what: str) -> np.ndarray:
        flat, offsets = _lists(column, what)
        dim = self.spec.pretrain_dim
        if (np.diff(offsets) != dim).any():
            raise ServingError(f"{what}: an embedding does not have {dim} numbers")
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
        known = (number for number in range(1, len(self.known)) if self.known[number])
        return self.ids_of(np.fromiter(islice(known, count), np.int64))

    def ids_of(self, numbers: np.ndarray) -> list[Any]:
        """Return the ids of items by their numbers."""
        return numbers.tolist() if self.ids is None else [self.ids.values[int(n) - 1] for n in numbers]

    def source_of(self, numbers: Sequence[int]) -> list[Any]:
        """Return the owner's ids of numbers of ``fuxictr-mm prepare``; those of no item are left out."""
        return self.ids_of(np.array([n for n in numbers if 0 < n < len(self.known) and self.known[n]], dtype=np.int64))

    def numbers(self, ids: Column, what: str) -> np.ndarray:
        """Return the number of each item ``(M,)``; ``UNKNOWN`` for one that the export does not hold."""
        flat = _flat(ids, what)
        found = integers(flat, what) if self.ids is None else self.ids.encode(flat, what)
        inside = (found >= 0) & (found < len(self.known))
        return np.where(inside & self.known[np.where(inside, found, 0)], found, UNKNOWN)

    def histories(self, column: Column, what: str, *, strict: bool, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the newest ``max_len`` items of each history ``(N,)`` without padding, and offsets ``(B + 1,)``.

        With ``strict`` an unknown item is an error, which counts rows from ``first`` on; otherwise it is left out.
        """
        flat, offsets = _lists(column, what)
        numbers = self.numbers(flat, what)
        if strict and (unknown := np.flatnonzero(numbers == UNKNOWN)).size:
            raise UnknownItemError(
                f"{what}: row {first + int(np.searchsorted(offsets, unknown[0], 'right')) - 1} holds the item "
                f"{flat[int(unknown[0])]}, which is not in the item files"
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


def check_types(
    column: Column, ids: Ids | None, what: str, *, is_list: bool, takes_null: bool = False, first: int = 0
) -> None:
    """Refuse values of types that training refuses; requests may hold texts of integers, and nulls.

    Errors count rows from ``first`` on.
    """
    flat, offsets = _lists(column, what) if is_list else (_flat(column, what), None)
    if isinstance(flat, np.ndarray):  # of numbers
        return
    kind: type[Any] = Real if ids is None or ids.is_integer else type(next(iter(ids.values), ""))
    kinds = {*map(type, flat)}
    allowed: set[type[Any]] = {type(None)} if ids is not None or takes_null else set()
    if ids is not None and ids.takes_numbers:
        allowed |= {bool, int, float}
    wrong = {k for k in kinds if not issubclass(k, kind) or k is bool} - allowed
    if wrong:
        place = next(i for i, value in enumerate(flat) if type(value) in wrong)
        row = place if offsets is None else int(np.searchsorted(offsets, place, "right")) - 1
        expected = "a number" if kind is Real else "bytes" if kind is bytes else "a text"
        found = "null" if flat[place] is None else repr(flat[place])
        raise ServingError(f"{what}: row {first + row} holds {found}, expected {expected}, as in training")


def _flat(column: Column, what: str) -> Flat:
    if isinstance(column, Lists):
        raise ServingError(f"{what}: holds lists, expected one value in each row")
    return column


def _floats(column: Column, what: str) -> np.ndarray:
    return _finite(_numbers(column, what, np.float32), what)


def _numbers(column: Column, what: str, dtype: type) -> np.ndarray:
    try:
        found: np.ndarray = np.array(_flat(column, what), dtype=dtype)
    except (ValueError, TypeError, OverflowError):
        raise ServingError(f"{what}: holds values that are not numbers") from None
    if found.ndim != 1:
        raise ServingError(f"{what}: holds lists, expected one value in each row")
    return found


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = values.astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise ServingError(f"{what}: holds a value that is not finite")
    return found


def _lists(column: Column, what: str) -> tuple[Flat, np.ndarray]:
    """Return the entries of a column of lists, and the offsets of its rows; what is missing is an empty list."""
    if isinstance(column, Lists):
        return column.entries, column.offsets
    flat: list[Any] = []
    offsets = np.zeros(len(column) + 1, dtype=np.int64)
    entries: Any
    for row, entries in enumerate(column):
        if entries is None or (isinstance(entries, float | str) and (entries == "" or entries != entries)):
            entries = []
        if not isinstance(entries, list | tuple | np.ndarray):
            raise ServingError(f"{what}: {entries!r} is not a list")
        flat.extend(entries.tolist() if isinstance(entries, np.ndarray) else entries)
        offsets[row + 1] = len(flat)
    return flat, offsets
