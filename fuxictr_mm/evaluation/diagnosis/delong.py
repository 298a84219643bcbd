"""The AUC of some rows with its interval, and of two rankings the variance of the difference.

Shape letters: R rows.
"""

from __future__ import annotations

import math

import numpy as np

from fuxictr_mm.records.auc import RankedRows, delong_variance

#: Of the standard normal distribution: 95 % lie within this many standard deviations.
NORMAL_95 = 1.959964


def auc_with_interval(label: np.ndarray, score: np.ndarray) -> dict[str, float | None]:
    """Return ``auc`` and its 95 % interval ``low`` to ``high`` by DeLong's variance.

    All are None where there is one class only; with one row of a class the interval is all there is, 0 to 1.

    Parameters
    ----------
    label, score : ndarray
        ``(R,)``; a label of 1 is a click.

    Examples
    --------
    >>> auc_with_interval(np.array([1, 0, 1, 0]), np.array([0.9, 0.1, 0.4, 0.4]))
    {'auc': 0.875, 'low': 0.52..., 'high': 1.0}
    >>> auc_with_interval(np.array([1, 1]), np.array([0.9, 0.1]))
    {'auc': None, 'low': None, 'high': None}
    """
    rarer = min(int((label == 1).sum()), int((label == 0).sum()))
    if rarer == 0:
        return {"auc": None, "low": None, "high": None}
    ranked = RankedRows(label, score)
    half = NORMAL_95 * math.sqrt(delong_variance([ranked])) if rarer > 1 else 1.0
    return {"auc": ranked.auc, "low": max(ranked.auc - half, 0.0), "high": min(ranked.auc + half, 1.0)}


def difference_variance(first: RankedRows, second: RankedRows) -> float:
    """Return DeLong's variance of the difference of two AUC on the same rows; 0 for the same ranking."""
    return delong_variance([first], [second])
