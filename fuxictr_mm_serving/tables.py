"""Embedding tables on disk, and the ids that index them.

Shape letters: I rows of a table, D dim, M requested rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.manifest import Files, TableEntry
from fuxictr_mm_serving.vocabulary import Integers, Texts

#: Number of an id that is not in a vocabulary.
UNKNOWN = -1

#: Integers beyond it are not exact as floating-point numbers.
LARGEST_EXACT = 2**53


class Table:
    """A memory-mapped table of embeddings, of ``least`` rows or more."""

    def __init__(self, files: Files, entry: TableEntry, least: int = 0) -> None:
        self.values = files.array(entry.file, mapped=True)
        self.scales: np.ndarray | None = None
        check_shape(files, entry.file, self.values, 2, least)
        if entry.scales is not None:
            scales = files.array(entry.scales)
            self.scales = scales.reshape(len(scales), -1)  # an earlier version had one of each row
            self._dims = entry.dims or [self.values.shape[1]]
            check_shape(files, entry.scales, self.scales, 2, len(self.values))
            shape = (self.scales.shape[1], self.values.shape[1])
            if min(self._dims) < 0 or (len(self._dims), sum(self._dims)) != shape:
                raise ServingError(f"{files.folder / entry.scales}: does not fit its table; export again")

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return rows ``(M, D)`` float32."""
        found = self.values[ids]
        if self.scales is not None:
            return found * np.repeat(self.scales[ids], self._dims, axis=-1)
        return found.astype(np.float32, copy=False)


def check_shape(files: Files, name: str, array: np.ndarray, dims: int, least: int) -> None:
    """Refuse an array of another number of dims, or with fewer rows."""
    if array.ndim != dims or len(array) < least:
        raise ServingError(
            f"{files.folder / name}: has the shape {array.shape}, expected {dims} dims and {least} rows or more; "
            "export again"
        )


def quantize(rows: np.ndarray, dims: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows ``(M, D)`` as int8, and the factors ``(M, F)`` of the F fields of each row, float32.

    Examples
    --------
    >>> values, scales = quantize(np.array([[1.0, -0.5, 0.5], [0.0, 0.0, 3.0]], dtype=np.float32), [2, 1])
    >>> values.tolist(), (values * np.repeat(scales, [2, 1], axis=1)).round(2).tolist()
    ([[127, -64, 127], [0, 0, 127]], [[1.0, -0.5, 0.5], [0.0, 0.0, 3.0]])
    """
    parts = np.split(np.abs(rows), np.cumsum(dims)[:-1], axis=1)
    scales = np.stack([part.max(axis=1, initial=0) for part in parts], axis=1) / 127
    divisors = np.where(scales > 0, scales, 1)
    return np.rint(rows / np.repeat(divisors, dims, axis=1)).astype(np.int8), scales.astype(np.float32)


class Ids:
    """The numbers of ids, by a vocabulary of a run; the id at position i has the number i + 1.

    Parameters
    ----------
    values : sequence
        Distinct texts, bytes or integers.
    is_integer : bool
        Whether they are integers.
    takes_numbers : bool
        Whether numbers and truth values are taken as the texts that ``fuxictr-mm prepare`` makes of them, and texts
        without spaces around them.
    """

    def __init__(self, values: Sequence[Any], is_integer: bool, takes_numbers: bool = False) -> None:
        self.values, self.is_integer, self.takes_numbers = values, is_integer, takes_numbers
        self._large: Integers | Texts | None = values if isinstance(values, Integers | Texts) else None

    @cached_property
    def _numbers(self) -> dict[Any, int]:
        return {value: number for number, value in enumerate(self.values, start=1)}

    def _find(self, values: Sequence[Any]) -> np.ndarray:
        """Return the number of each value ``(M,)``, 0 for a value that is not an id."""
        if self._large is not None:
            return self._large.find(values)
        get = self._numbers.get
        return np.fromiter((get(value, 0) for value in values), np.int64, len(values))

    def value(self, number: int) -> Any:
        """Return the id of a number; None for 0 and for what is beyond."""
        return self.values[number - 1] if 0 < number <= len(self.values) else None

    def encode(self, ids: Sequence[Any] | np.ndarray, what: str) -> np.ndarray:
        """Return numbers ``(M,)`` int64: 0 for null, an empty text, and 0 if it is not an id; else ``UNKNOWN``."""
        values = ids.tolist() if isinstance(ids, np.ndarray) else ids
        keys = []
        for value in values:
            if value is None:
                pass
            elif self.is_integer:
                value = value if type(value) is int else as_integer(value, what)
            elif self.takes_numbers and isinstance(value, int | float):
                value = self._text(value)
            elif not isinstance(value, str | bytes):
                raise ServingError(f"{what}: {value!r} is not a text, but its ids are texts")
            keys.append(value)
        found = self._find(keys)
        for position in np.flatnonzero(found == 0).tolist():
            value = keys[position]
            if self.is_integer and value is not None and not -(2**63) <= value < 2**64:
                raise ServingError(f"{what}: holds an id beyond 64 bits")
            if self.takes_numbers and isinstance(value, str) and value != value.strip():
                value = value.strip()  # as prepare writes it
                found[position] = self._find([value])[0]
            if not found[position]:
                found[position] = UNKNOWN if value else 0
        return found

    def _text(self, value: float) -> str:
        """Return a number as the text of a vocabulary: 3 may be 3.0 there, and true be True, as its file had them."""
        if value != value:
            return ""
        if isinstance(value, bool):
            texts = [str(value).lower(), str(value), str(value).upper()]
        elif isinstance(value, int):  # JavaScript writes 3.0 as 3
            texts = [str(value), f"{value}.0"]
        else:  # a column of integers with missing values may hold 3.0
            texts = [str(value), *([str(int(value))] if value.is_integer() else [])]
        return next((text for text in texts if self._find([text])[0]), texts[0])


def as_integer(value: Any, what: str) -> int:
    """Return an integer id, also of a float or a text that is one."""
    if isinstance(value, np.generic):
        value = value.item()
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | str)
        or (isinstance(value, float) and (not value.is_integer() or abs(value) > LARGEST_EXACT))
    ):
        raise ServingError(f"{what}: {value!r} is not an exact integer, but its ids are integers")
    try:
        if isinstance(value, str) and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
            raise ValueError  # int() takes "1_0" and other digits
        return int(value)
    except ValueError:
        raise ServingError(f"{what}: {value!r} is not an integer, but its ids are integers") from None


def integers(ids: Sequence[Any] | np.ndarray, what: str) -> np.ndarray:
    """Return ids ``(M,)`` int64; null is 0."""
    if isinstance(ids, np.ndarray):
        with np.errstate(invalid="ignore"):
            exact = ids.astype(np.int64)
        if (wrong := np.flatnonzero(exact != ids)).size:
            raise ServingError(f"{what}: {ids[wrong[0]]} is not an integer of 64 bits, but its ids are integers")
        return exact
    if not all(type(value) is int for value in ids):
        ids = [0 if value is None else as_integer(value, what) for value in ids]
    try:
        return np.array(ids, dtype=np.int64)
    except OverflowError:
        raise ServingError(f"{what}: holds an id beyond 64 bits") from None
