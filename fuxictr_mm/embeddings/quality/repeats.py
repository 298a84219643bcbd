r"""Rows that stand twice, within a split and across splits.

A user may be shown an item twice, so some equal rows are natural. If users, with what they had seen by then, met items
independently, the expected number of equal pairs of rows would be

.. math::
    E = \#\{\text{pairs of rows with the same user and history}\} \cdot \sum_i p_i q_i

with p_i and q_i the share of item i among the targets of the two splits (the same split for pairs within one). With r
the share of positives, 2 r (1 - r) of the pairs within a split contradict. Repeats are warnings where as many are
unlikely (Poisson, below 1 in 1000), else infos.

Shape letters: B rows of a split.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.embeddings.quality.findings import Report
from fuxictr_mm.embeddings.quality.interactions import LABEL, USER_ID, Split

UNLIKELY = 1e-3


def check_repeats(splits: Mapping[str, Split], report: Report) -> None:
    """Look for equal rows in each split and in each two of them (earlier first)."""
    names = list(splits)
    for name in names:
        if report.wants("contradictory-row", "duplicate-row"):
            _check_within(splits[name], report)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            if report.wants("shared-row"):
                _check_across(splits[name], splits[other], report)


def _check_within(split: Split, report: Report) -> None:
    keys, first, place, counts = np.unique(split.row_keys, return_index=True, return_inverse=True, return_counts=True)
    if len(keys) == len(place):
        return
    same = np.unique(split.history_keys, return_counts=True)[1].astype(np.float64)
    expected = float((same * (same - 1) / 2).sum()) * _meeting(split, split)
    zeros, ones = (np.bincount(place, split.labels == value) for value in (0, 1))
    share = ones.sum() / max(zeros.sum() + ones.sum(), 1)
    differing = 2 * share * (1 - share)
    contradictory = (zeros > 0) & (ones > 0)
    earlier = first[place]
    repeated = counts[place] > 1
    pairs = counts * (counts - 1) / 2
    other_label = np.where(split.labels == 1, _first(split, place, 0), _first(split, place, 1))
    for check, column, rows, partners, found, chance in (
        (
            "contradictory-row",
            LABEL,
            np.flatnonzero(contradictory[place]),
            other_label,
            (zeros * ones).sum(),
            expected * differing,
        ),
        (
            "duplicate-row",
            ITEM_ID,
            np.flatnonzero(repeated & ~contradictory[place] & (earlier != np.arange(len(place)))),
            earlier,
            pairs[~contradictory].sum(),
            expected * (1 - differing),
        ),
    ):
        both = zip(split.labels[rows], split.labels[partners[rows]], strict=True)
        labels = [f", label {here} and {there}" if check == "contradictory-row" else "" for here, there in both]
        report.add(
            check,
            split.name,
            column,
            rows,
            split.users[rows],
            [f"equals row {partners[r]} (item {split.targets[r]}{t})" for r, t in zip(rows, labels, strict=True)],
            severity=_severity(float(found), chance),
            expected=f"at most some {chance:.1f} pairs by chance",
            id_name=USER_ID,
        )


def _first(split: Split, place: np.ndarray, label: int) -> np.ndarray:
    """Return for each row the first equal one with a label, -1 without any; ``place`` says which rows are equal."""
    rows = np.flatnonzero(split.labels == label)[::-1]
    first = np.full(int(place.max(initial=0)) + 1, -1)
    first[place[rows]] = rows
    return first[place]


def _check_across(split: Split, later: Split, report: Report) -> None:
    rows = np.flatnonzero(np.isin(split.row_keys, later.row_keys))
    if not rows.size:
        return
    keys, counts = np.unique(split.history_keys, return_counts=True)
    later_keys, later_counts = np.unique(later.history_keys, return_counts=True)
    _, here, there = np.intersect1d(keys, later_keys, assume_unique=True, return_indices=True)
    expected = float(counts[here].astype(np.float64) @ later_counts[there]) * _meeting(split, later)
    order = np.argsort(later.row_keys, kind="stable")
    place = order[np.searchsorted(later.row_keys[order], split.row_keys[rows])]
    report.add(
        "shared-row",
        split.name,
        ITEM_ID,
        rows,
        split.users[rows],
        [f"equals row {p} of {later.name} (item {split.targets[r]})" for r, p in zip(rows, place, strict=True)],
        severity=_severity(len(rows), expected),
        expected=f"at most some {expected:.1f} rows shared with {later.name} by chance",
        id_name=USER_ID,
    )


def _meeting(split: Split, other: Split) -> float:
    """Return the chance that a row of each shows the same item."""
    items, counts = np.unique(split.targets, return_counts=True)
    other_items, other_counts = np.unique(other.targets, return_counts=True)
    _, here, there = np.intersect1d(items, other_items, assume_unique=True, return_indices=True)
    pairs = float(counts[here].astype(np.float64) @ other_counts[there])
    return pairs / max(len(split.targets) * len(other.targets), 1)


def _severity(found: float, expected: float) -> str:
    from scipy.stats import poisson

    # Half more than expected, and a little: items are not met quite independently.
    return "warning" if poisson.sf(found - 1, 1.5 * expected + 0.05) < UNLIKELY else "info"
