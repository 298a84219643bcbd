"""Large vocabularies as arrays, which an export holds beside each other and processes share.

A dictionary of Python objects takes more than ten times their memory, in each process.

Shape letters: V values, M values that are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np

#: Values from which on a vocabulary is arrays: a dictionary of a smaller one is faster to look up in.
LARGE = 2**14


class Integers(Sequence[Any]):
    """Distinct integers of 64 bits.

    Parameters
    ----------
    values : ndarray
        ``(V,)`` in the order of their numbers.
    ordered, order : ndarray
        ``(V,)`` the integers in their order, and where each is in ``values``.

    Raises
    ------
    ValueError
        They do not fit each other.
    """

    def __init__(self, values: np.ndarray, ordered: np.ndarray, order: np.ndarray) -> None:
        if not values.ndim == 1 or not values.shape == ordered.shape == order.shape or values.dtype.kind not in "iu":
            raise ValueError("the arrays do not fit each other")
        self.arrays = {"values": values, "ordered": ordered, "order": order}
        self._values, self._sorted, self._order = values, ordered, order

    @classmethod
    def of(cls, values: Sequence[int]) -> Integers:
        """Return integers as arrays."""
        array = np.array(values, np.int64 if max(values) < 2**63 else np.uint64)
        order = np.argsort(array).astype(_type_of(len(values)))
        return cls(array, array[order], order)

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
    """Distinct texts, or bytes; they are found by a checksum.

    Parameters
    ----------
    content : ndarray
        All texts in UTF-8, one after another in the order of their numbers.
    bounds : ndarray
        ``(V + 1,)`` where each begins, and the last ends.
    sums, order : ndarray
        ``(V,)`` their checksums in order, and of which text each is.
    is_text : bool
        Whether they are texts, not bytes.

    Raises
    ------
    ValueError
        The arrays do not fit each other.
    """

    def __init__(
        self, content: np.ndarray, bounds: np.ndarray, sums: np.ndarray, order: np.ndarray, is_text: bool
    ) -> None:
        self.arrays = {"content": content, "bounds": bounds, "sums": sums, "order": order}
        if (content.ndim, bounds.ndim, sums.shape) != (1, 1, order.shape) or order.shape != (len(bounds) - 1,):
            raise ValueError("the arrays do not fit each other")
        if content.dtype != np.uint8 or bounds[-1] != len(content):
            raise ValueError("the arrays do not fit each other")
        self._content, self._bounds, self._sums, self._order = content, bounds, sums, order
        self._type = str if is_text else bytes

    @classmethod
    def of(cls, values: Sequence[Any]) -> Texts:
        """Return texts or bytes as arrays."""
        encoded = [_encoded(value) for value in values]
        content = np.frombuffer(b"".join(encoded), np.uint8)
        return cls.of_content(content, np.cumsum([0, *map(len, encoded)]), isinstance(values[0], str))

    @classmethod
    def of_content(cls, content: np.ndarray, bounds: np.ndarray, is_text: bool = True) -> Texts:
        """Return texts or bytes whose content and bounds are arrays already."""
        view = content.data
        found = (crc32(view[start:end]) for start, end in pairwise(bounds.data))
        sums = np.fromiter(found, np.uint32, len(bounds) - 1)
        order = np.argsort(sums, kind="stable").astype(_type_of(len(sums)))
        return cls(content, bounds.astype(_type_of(len(content))), sums[order], order, is_text)

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
        nexts, found = np.searchsorted(self._sums, sums), np.zeros(len(encoded), np.int64)
        left = np.flatnonzero(is_type)
        while left.size:
            left = left[nexts[left] < len(self)]
            left = left[self._sums[nexts[left]] == sums[left]]
            places = self._order[nexts[left]].astype(np.int64)
            own, sizes = self._bounds[places].astype(np.int64), lengths[left]
            is_same = self._bounds[places + 1] - own == sizes
            compared, places, own, sizes = left[is_same], places[is_same], own[is_same], sizes[is_same]
            rows = np.repeat(np.arange(len(compared)), sizes)
            steps = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            differs = self._content[own[rows] + steps] != content[starts[compared][rows] + steps]
            is_equal = np.bincount(rows, differs, len(compared)) == 0
            found[compared[is_equal]] = places[is_equal] + 1
            nexts[left] += 1  # others may have the same checksum
            left = left[found[left] == 0]
        return found


def _type_of(count: int) -> type[np.unsignedinteger[Any]]:
    return np.uint32 if count < 2**32 else np.uint64


def _encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
