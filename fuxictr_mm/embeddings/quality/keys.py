"""64-bit keys of pairs and rows, by mixing of integers: equal things have equal keys, others differ but by 1 in 2**64.

Shape letters: B rows, N history items of all rows.
"""

from __future__ import annotations

import numpy as np


def mix(values: np.ndarray) -> np.ndarray:
    """Return a well-spread uint64 for each integer (the finalizer of SplitMix64; Steele et al., OOPSLA 2014)."""
    key = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def pair_keys(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return a key for each ordered pair of integers."""
    return mix(mix(left) + right.astype(np.uint64))


def history_keys(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return a key for each list ``values[ends[b] : ends[b + 1]]``, ``(B,)``; the order counts."""
    place = np.arange(len(values)) - np.repeat(ends[:-1], np.diff(ends))
    total = np.concatenate(([np.uint64(0)], np.cumsum(pair_keys(place, values), dtype=np.uint64)))
    return mix(total[ends[1:]] - total[ends[:-1]])
