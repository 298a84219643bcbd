"""Rows by a whole number: the length of the history, the clicks of an item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

#: First number of each bucket; the last one is open.
LENGTHS = (0, 1, 3, 6, 11, 21, 51, 101)
CLICKS = (0, 1, 3, 6, 11, 21, 51, 101, 201, 501, 1001)


def by_bucket(
    numbers: np.ndarray,
    counted: np.ndarray,
    describe: Callable[[np.ndarray], dict[str, Any]],
    first: tuple[int, ...] = LENGTHS,
) -> list[dict[str, Any]]:
    """Describe the rows of each bucket that has any.

    Parameters
    ----------
    numbers : ndarray
        ``(rows,)``, 0 or more.
    counted : ndarray
        ``(rows,)`` bool, which rows to look at.
    describe : callable
        Takes numbers of rows.
    first : tuple of int
        First number of each bucket.

    Returns
    -------
    list of dict
        ``name``, ``from``, ``to`` (None: open), ``rows``, and what ``describe`` returns.

    Examples
    --------
    >>> by_bucket(np.array([0, 2, 1]), np.array([True, True, True]), lambda rows: {"sum": int(rows.sum())})[1]
    {'name': '1-2', 'from': 1, 'to': 2, 'rows': 2, 'sum': 3}
    """
    place = np.searchsorted(np.array(first), numbers, side="right") - 1
    entries = []
    for bucket, low in enumerate(first):
        rows = np.flatnonzero((place == bucket) & counted)
        if not len(rows):
            continue
        high = first[bucket + 1] - 1 if bucket + 1 < len(first) else None
        name = f"{low}+" if high is None else str(low) if low == high else f"{low}-{high}"
        entries.append({"name": name, "from": low, "to": high, "rows": len(rows), **describe(rows)})
    return entries
