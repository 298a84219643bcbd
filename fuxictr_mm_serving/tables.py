"""Embedding tables on disk, and the ids that index them.

Shape letters: I rows of a table, D dim, M requested rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm_serving.errors import ServingError

#: Number of an id that is not in a vocabulary.
UNKNOWN = -1


class Table:
    """A memory-mapped table of embeddings.

    Parameters
    ----------
    folder : Path
        The export.
    entry : mapping
        Of the manifest: ``file``, and ``scales`` for 8-bit integers.
    """

    def __init__(self, folder: Path, entry: Mapping[str, Any]) -> None:
        self.values = np.load(folder / entry["file"], mmap_mode="r", allow_pickle=False)
        self.scales = np.load(folder / entry["scales"], allow_pickle=False) if entry.get("scales") else None

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return rows ``(M, D)`` float32."""
        found = self.values[ids]
        if self.scales is not None:
            return found * self.scales[ids][..., None]
        return found.astype(np.float32, copy=False)


def quantize(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows ``(M, D)`` as int8 and the factor ``(M,)`` of each, float32.

    Examples
    --------
    >>> values, scales = quantize(np.array([[1.0, -0.5], [0.0, 0.0]], dtype=np.float32))
    >>> values.tolist(), (values * scales[:, None]).round(2).tolist()
    ([[127, -64], [0, 0]], [[1.0, -0.5], [0.0, 0.0]])
    """
    scales = np.abs(rows).max(axis=1) / 127
    divisors = np.where(scales > 0, scales, 1)
    return np.rint(rows / divisors[:, None]).astype(np.int8), scales.astype(np.float32)


class Ids:
    """The numbers of ids, by a vocabulary of a run; the id at position i has the number i + 1.

    Parameters
    ----------
    values : pyarrow.Array
        Distinct texts, bytes or integers.
    """

    def __init__(self, values: pa.Array) -> None:
        self.values = values
        self.is_integer: bool = pa.types.is_integer(values.type)

    @cached_property
    def _numbers(self) -> dict[Any, int]:
        return {value: number for number, value in enumerate(self.values.to_pylist(), start=1)}

    def encode(self, ids: Sequence[Any] | pa.Array, what: str) -> np.ndarray:
        """Return numbers ``(M,)`` int64: 0 for null, an empty text, and the integer 0 that is no id; else ``UNKNOWN``.

        Raises
        ------
        ServingError
            Texts where the ids are integers, or the reverse.
        """
        values = ids.to_pylist() if isinstance(ids, pa.Array) else ids
        get, found = self._numbers.get, np.empty(len(values), dtype=np.int64)
        for position, value in enumerate(values):
            if value is None:
                found[position] = 0
                continue
            if self.is_integer:
                value = as_integer(value, what)
            elif not isinstance(value, str | bytes):
                raise ServingError(f"{what}: {value!r} is no text, and the ids of the model are texts")
            number = get(value)
            found[position] = number if number is not None else (UNKNOWN if value else 0)
        return found


def as_integer(value: Any, what: str) -> int:
    """Return an integer id, also of a float or a text that is one.

    Raises
    ------
    ServingError
        It is none.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | str)
        or (isinstance(value, float) and not value.is_integer())
    ):
        raise ServingError(f"{what}: {value!r} is no integer, and the ids of the model are integers")
    try:
        return int(value)
    except ValueError:
        raise ServingError(f"{what}: {value!r} is no integer, and the ids of the model are integers") from None


def integers(ids: Sequence[Any] | pa.Array, what: str) -> np.ndarray:
    """Return ids ``(M,)`` int64; null is 0."""
    if isinstance(ids, pa.Array):
        if not (pa.types.is_integer(ids.type) or pa.types.is_floating(ids.type) or pa.types.is_null(ids.type)):
            raise ServingError(f"{what}: holds {ids.type}, expected integers")
        return pc.fill_null(ids.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    found = [0 if value is None else as_integer(value, what) for value in ids]
    try:
        return np.array(found, dtype=np.int64)
    except OverflowError:
        raise ServingError(f"{what}: holds an id beyond 64 bits") from None
