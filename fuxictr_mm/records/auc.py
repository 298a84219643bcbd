"""How far an AUC may be trusted: DeLong's variance, and resampled users.

Letters: n rows, P positives, N negatives, K runs, U users, S samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

#: Weights of rows that are held at once.
CHUNK = 2**22


class RankedRows:
    """The validation rows as one run ranks them: sorted once, weighed as often as wanted.

    Parameters
    ----------
    label : ndarray
        ``(n,)``, 0 and 1, both there.
    score : ndarray
        ``(n,)``
    """

    def __init__(self, label: np.ndarray, score: np.ndarray) -> None:
        self.positive, self.negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
        self.score = score
        # Rows in the order of their scores; ties fall between `low` and `high` of each positive.
        self.negative = self.negative[np.argsort(score[self.negative], kind="stable")]
        self.low = np.searchsorted(score[self.negative], score[self.positive], "left")
        self.high = np.searchsorted(score[self.negative], score[self.positive], "right")

    def weighted_auc(self, weight: np.ndarray) -> np.ndarray:
        """Return the AUC of rows with weights w.

        ::

            AUC = sum_{i positive} w_i (W(< s_i) + W(<= s_i)) / 2 / (W+ W-),   W: weight of negatives with such a score

        Parameters
        ----------
        weight : ndarray
            ``(n, S)``, a column per sample.

        Returns
        -------
        ndarray
            ``(S,)``, NaN where one class has no weight.
        """
        below = np.zeros((len(self.negative) + 1, weight.shape[1]))
        np.cumsum(weight[self.negative], axis=0, out=below[1:])
        positive = weight[self.positive]
        won = np.einsum("ps,ps->s", positive, below[self.low] + below[self.high]) / 2
        pairs = positive.sum(axis=0) * below[-1]
        return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    @cached_property
    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """DeLong's structural components.

        Returns
        -------
        ndarray, ndarray
            ``(P,)``, for each positive the share of negatives below it, ties half; ``(N,)``, for each negative (in the
            order of the rows) the share of positives above it. The mean of either is the AUC.
        """
        ranked = np.sort(self.score[self.positive])
        negative = self.score[np.sort(self.negative)]
        not_above = np.searchsorted(ranked, negative, "left") + np.searchsorted(ranked, negative, "right")
        return (self.low + self.high) / 2 / len(self.negative), 1 - not_above / 2 / len(self.positive)

    @property
    def auc(self) -> float:
        """The AUC of the rows, each counted once."""
        return float(self.components[0].mean())


def delong_variance(runs: Sequence[RankedRows], others: Sequence[RankedRows] = ()) -> float:
    """Return the variance of a mean AUC, or of the difference of two means, over draws of independent rows.

    With the components V10 of positives and V01 of negatives, averaged over the runs of a side, and the second side's
    taken off::

        variance = var(V10) / P + var(V01) / N

    DeLong, DeLong and Clarke-Pearson, Biometrics 1988, https://doi.org/10.2307/2531595. The components come from sorted
    scores in O(n log n), as in Sun and Xu, IEEE Signal Processing Letters 2014,
    https://doi.org/10.1109/LSP.2014.2337313.

    Parameters
    ----------
    runs, others : sequence of RankedRows
        Of the same rows.
    """
    variance = 0.0
    for side in (0, 1):
        component = np.mean([run.components[side] for run in runs], axis=0)
        if others:
            component = component - np.mean([run.components[side] for run in others], axis=0)
        variance += component.var(ddof=1) / len(component)
    return float(variance)


def bootstrap_aucs(
    runs: Sequence[RankedRows], user: np.ndarray, samples: int, seed: int, track: Any = iter
) -> np.ndarray:
    """Return the AUC of each run in resampled validation sets.

    As many users are drawn, with replacement, as there are; each comes with all its rows. All runs see the same draws,
    so that differences between them are paired. Draws without both classes are left out.

    Parameters
    ----------
    runs : sequence of RankedRows
        K runs on the same rows.
    user : ndarray
        ``(n,)``, from 0 to U - 1 without gaps.
    samples : int
        S draws.
    seed : int
        Of the draws.
    track : callable
        Wraps the iterable of the chunks of draws, to show progress.

    Returns
    -------
    ndarray
        ``(K, S or fewer)``
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, min(samples, CHUNK // len(user)))
    found: list[np.ndarray] = []
    starts: Iterable[int] = track(range(0, samples, at_once))
    for start in starts:
        weight = draw_users(int(user.max()) + 1, min(at_once, samples - start), generator)[user]
        found.append(np.stack([run.weighted_auc(weight) for run in runs]))
    aucs = np.concatenate(found, axis=1)
    return aucs[:, ~np.isnan(aucs).any(axis=0)]


def draw_users(users: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Return how often each user is drawn, ``(U, S)``; each column sums to U."""
    drawn = generator.integers(users, size=(users, samples))
    flat = np.bincount((drawn * samples + np.arange(samples)).ravel(), minlength=users * samples)
    return flat.reshape(users, samples).astype(np.float64)
