r"""Checks of whole numbers: tags and levels of items, item ids, context levels.

A column holds whole numbers if it is one of integers, or of floating-point numbers (which pandas makes of integers
beside a null) of which 99 in 100 are whole.

With :math:`v_1 < \dots < v_K` its distinct values, those from :math:`v_k` on lie far beyond the others where

.. math::
    v_k - v_{k-1} > 10 \, (v_{k-1} - v_1 + 1),

at most 1 in 100 of all values (or a single one) lie there, and two distinct values and 20 in all below. A gap ten
times as wide as the range of all the rest is none that a tail leaves, and however many such values there are, and
however large, they do not move it.

Shape letters: R rows of a chunk, N entries of all rows of a chunk (one per row where the column holds no lists), K
distinct values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from fuxictr_mm.data.parquet import MAX_IDS
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.embeddings.quality.checks import WARNING
from fuxictr_mm.embeddings.quality.findings import Report
from fuxictr_mm.embeddings.quality.layout import ItemFile
from fuxictr_mm.embeddings.quality.reading import is_list, is_number, numbers, read_chunks, split_lists

#: A gap of so many times the range of the values below it, ...
FAR = 10
#: ... above which so small a share of all values lies, and below which so many.
RARE, LEAST_BELOW = 0.01, 20

FRACTIONS = "fractions in a column of whole numbers"


def first_far(values: np.ndarray, counts: np.ndarray) -> float | None:
    """Return the least of the values that lie far beyond the others, or None.

    Parameters
    ----------
    values, counts : ndarray, (K,)
        Distinct values, ascending, and how often each occurs.

    Examples
    --------
    >>> first_far(np.array([0, 5, 10, 99999]), np.array([30, 30, 30, 1]))
    99999.0
    >>> first_far(np.array([0, 5, 10, 30]), np.array([30, 30, 30, 1])) is None
    True
    """
    exact = np.asarray(values, dtype=np.float64)
    from_here = np.cumsum(counts[::-1])[::-1]
    total = int(from_here[0]) if len(exact) else 0
    gaps, ranges = np.diff(exact), exact[:-1] - exact[:1] + 1
    rare = from_here[1:] <= max(1, RARE * total)
    known = total - from_here[1:] >= LEAST_BELOW
    far = np.flatnonzero((gaps > FAR * ranges) & rare & known)
    far = far[far > 0]
    return float(exact[far[0] + 1]) if far.size else None


class Tally:
    """What a column holds: how many finite numbers, how many of them fractions, and the whole ones by value.

    Parameters
    ----------
    floating : bool
        Whether it holds floating-point numbers.
    most : int
        With more distinct values than that it is a measure: no more are counted, and none is far.
    """

    def __init__(self, floating: bool, most: int = MAX_IDS) -> None:
        self.floating, self.most = floating, most
        self.finite = self.fractions = 0
        self.values: np.ndarray = np.empty(0)
        self.counts: np.ndarray = np.empty(0, dtype=np.int64)

    def add(self, numbers: np.ndarray) -> None:
        """Count numbers ``(N,)``; NaN is none."""
        finite = numbers[np.isfinite(numbers)]
        whole = finite[finite == np.floor(finite)]
        self.finite += len(finite)
        self.fractions += len(finite) - len(whole)
        if len(self.values) > self.most:
            return
        some, counts = np.unique(whole, return_counts=True)
        self.values, place = np.unique(np.concatenate([self.values, some]), return_inverse=True)
        both = np.concatenate([self.counts, counts])
        self.counts = np.bincount(place, weights=both, minlength=len(self.values)).astype(np.int64)

    @property
    def is_whole(self) -> bool:
        """Whether this is a column of whole numbers."""
        return not self.floating or (self.finite > 0 and self.fractions <= RARE * self.finite)

    def categories(self) -> Counter[int]:
        """Return the number of rows by whole value."""
        return Counter(dict(zip(self.values.tolist(), self.counts.tolist(), strict=True)))

    def far(self, least: float = 0) -> float | None:
        """Return the first of the values far beyond the others, of those from ``least`` on."""
        if not self.is_whole or len(self.values) > self.most:
            return None
        sound = self.values >= least
        return first_far(self.values[sound], self.counts[sound])


def entries_of(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the entries ``(N,)`` of a column of numbers or lists, and the row of each."""
    if not is_list(array.type):
        return array, np.arange(len(array))
    flat, offsets = split_lists(array)
    return flat, np.repeat(np.arange(len(array)), np.diff(offsets))


def check_values(item: ItemFile, report: Report) -> None:
    """Check the item ids of a file and its columns of numbers and of lists of ids, a column at a time."""
    name = item.path.name
    if report.wants("far-item-id"):
        far = first_far(*np.unique(item.ids[item.ids > 0], return_counts=True))
        rows = np.flatnonzero(item.ids >= far) if far is not None else np.empty(0, np.int64)
        report.add("far-item-id", name, ITEM_ID, rows, item.ids[rows])
    for field in item.schema:
        if field.name == ITEM_ID or pa.types.is_boolean(field.type):
            continue
        if is_number(field.type) or (is_list(field.type) and field.name in item.id_lists):
            _check_column(item, field, report)


def _check_column(item: ItemFile, field: pa.Field, report: Report) -> None:
    in_lists = is_list(field.type)
    floating = pa.types.is_floating(field.type.value_type if in_lists else field.type)
    tally, broken = Tally(floating), 0
    for _, _, entries in _entries(item, field.name):
        values = numbers(entries)
        tally.add(values)
        broken += len(values) - int(np.isfinite(values).sum())
    far = tally.far(1 if in_lists else 0)  # 0 is padding in a list
    most = MAX_IDS if in_lists else np.inf
    if not (broken or tally.fractions or far is not None or _outside(tally.values, most).any()):
        return
    name = item.path.name
    for start, owner, entries in _entries(item, field.name):
        values = numbers(entries)
        bad, fraction, beyond = ~np.isfinite(values), np.zeros(len(values), bool), np.zeros(len(values), bool)
        if tally.is_whole:
            bad |= _outside(values, most)
            fraction = ~bad & (values != np.floor(values))
            beyond = ~bad & ~fraction & (values >= (np.inf if far is None else far))
        for check, places, found in (
            ("bad-item-value", bad, ""),
            ("bad-item-value", fraction, FRACTIONS),
            ("item-value-outlier", beyond, ""),
        ):
            hits = np.flatnonzero(places)
            rows = start + owner[hits]
            report.add(
                check,
                name,
                field.name,
                rows,
                item.ids[rows],
                entries.take(pa.array(hits)).to_pylist(),
                found=found,
                severity=WARNING if found else "",
            )


def _outside(values: np.ndarray, most: float) -> np.ndarray:
    return (values < 0) | (values >= most)


def _entries(item: ItemFile, column: str) -> Iterator[tuple[int, np.ndarray, pa.Array]]:
    """Yield the first row of a chunk, the row in it of each entry ``(N,)``, and the entries; padding is left out."""
    for start, columns in read_chunks(item.path, [column]):
        entries, owner = entries_of(columns[column])
        real = np.flatnonzero(item.ids[start + owner] != 0)
        yield start, owner[real], entries.take(pa.array(real))


def check_context(path: Path, column: str, tally: Tally, users: np.ndarray, report: Report) -> None:
    """Look for the fractions and the far values of a context column, where its tally says that there are some.

    Parameters
    ----------
    path, column
        Where it stands.
    tally : Tally
        Of all its rows.
    users : ndarray of int64
        User ids of all rows.
    report : Report
        Takes the findings.
    """
    far = tally.far()
    if not tally.is_whole or (not tally.fractions and far is None):
        return
    for start, columns in read_chunks(path, [column]):
        values = numbers(columns[column])
        sound = np.isfinite(values) & (values >= 0)
        fraction = sound & (values != np.floor(values))
        beyond = sound & ~fraction & (values >= (np.inf if far is None else far))
        for check, places, found in (("bad-context", fraction, FRACTIONS), ("context-outlier", beyond, "")):
            hits = np.flatnonzero(places)
            kept = columns[column].take(pa.array(hits)).to_pylist()
            severity = WARNING if found else ""
            rows = start + hits
            report.add(
                check, path.name, column, rows, users[rows], kept, found=found, severity=severity, id_name="user_id"
            )
