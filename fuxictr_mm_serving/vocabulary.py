"""Large vocabularies as arrays: a dictionary of Python objects takes ten times the memory, in each process.

Shape letters: V values, M values that are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np


class Integers(Sequence[Any]):
    """Distinct integers of 64 bits.

    Parameters
    ----------
    values : sequence of int
        In the order of their numbers.
    """

    def __init__(self, values: Sequence[int]) -> None:
        self._values = np.array(values, np.int64 if max(values) < 2**63 else np.uint64)
        self._order = np.argsort(self._values).astype(_type_of(len(values)))
        self._sorted = self._values[self._order]

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index].tolist()

    def find(self, values: Sequence[Any]) -> np.ndarray:
        """Return the number of each value ``(M,)``, from 1; 0 for one that is none of them."""
        bounds = np.iinfo(self._values.dtype)
        is_inside = [value is not None and bounds.min <= value <= bounds.max for value in values]
        given = np.array([v if inside else 0 for v, inside in zip(values, is_inside, strict=True)], self._values.dtype)
        places = np.minimum(np.searchsorted(self._sorted, given), len(self) - 1)
        is_found = (self._sorted[places] == given) & np.array(is_inside, bool)
        return np.where(is_found, self._order[places].astype(np.int64) + 1, 0)


class Texts(Sequence[Any]):
    """Distinct texts, or bytes, one after another; they are found by a checksum.

    Parameters
    ----------
    values : sequence of str or bytes
        In the order of their numbers.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._type = type(values[0])
        encoded = [_encoded(value) for value in values]
        self._content = np.frombuffer(b"".join(encoded), np.uint8)
        bounds = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        self._bounds = np.concatenate(([0], bounds)).astype(_type_of(len(self._content)))
        sums = np.fromiter(map(crc32, encoded), np.uint32, len(encoded))
        self._order = np.argsort(sums, kind="stable").astype(_type_of(len(encoded)))
        self._sums = sums[self._order]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        content = self._content[self._bounds[place] : self._bounds[place + 1]].tobytes()
        return content if self._type is bytes else content.decode(errors="surrogatepass")

    def find(self, values: Sequence[Any]) -> np.ndarray:
        """Return the number of each value ``(M,)``, from 1; 0 for one that is none of them, such as of another type."""
        is_type = np.array([type(value) is self._type for value in values], bool)
        encoded = [_encoded(v) if of_type else b"" for v, of_type in zip(values, is_type.tolist(), strict=True)]
        sums = np.fromiter(map(crc32, encoded), np.uint32, len(encoded))
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        content, starts = np.frombuffer(b"".join(encoded), np.uint8), np.cumsum(lengths) - lengths
        nexts, ends = (np.searchsorted(self._sums, sums, side) for side in ("left", "right"))
        found = np.zeros(len(encoded), np.int64)
        while (left := np.flatnonzero(is_type & (found == 0) & (nexts < ends))).size:  # others may have the same sum
            places = self._order[nexts[left]].astype(np.int64)
            own, sizes = self._bounds[places].astype(np.int64), lengths[left]
            is_same = self._bounds[places + 1] - own == sizes
            compared, places, own, sizes = left[is_same], places[is_same], own[is_same], sizes[is_same]
            rows = np.repeat(np.arange(len(compared)), sizes)
            steps = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            differs = self._content[own[rows] + steps] != content[starts[compared][rows] + steps]
            is_equal = np.bincount(rows, differs, len(compared)) == 0
            found[compared[is_equal]] = places[is_equal] + 1
            nexts[left] += 1
        return found


def _type_of(count: int) -> type[np.unsignedinteger[Any]]:
    return np.uint32 if count < 2**32 else np.uint64


def _encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
