"""AUC, RMSE or MAE of one run, and its uncertainty for independent examples.

Shape letters: n examples, P positives, N negatives, S sets of weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np

from fuxictr_mm.metric_names import ERRORS

#: 0.975 quantile of the standard normal distribution.
NORMAL_95 = 1.959964


class Errors:
    """The errors of one run in a regression: RMSE or MAE under any weights.

    Parameters
    ----------
    label, prediction : ndarray
        ``(n,)``
    metric : {"RMSE", "MAE"}
        Which of them.
    """

    def __init__(self, label: np.ndarray, prediction: np.ndarray, metric: str) -> None:
        self.metric = metric
        error = prediction.astype(np.float64) - label
        self.error = error**2 if metric == "RMSE" else np.abs(error)

    def weighted(self, weight: np.ndarray) -> np.ndarray:
        """Return the metric ``(S,)`` for S sets of weights ``(n, S)``."""
        mean = self.error @ weight / weight.sum(axis=0)
        return np.sqrt(mean) if self.metric == "RMSE" else mean

    @property
    def value(self) -> float:
        """The metric, each example counted once."""
        mean = self.error.mean()
        return float(np.sqrt(mean) if self.metric == "RMSE" else mean)

    @cached_property
    def components(self) -> tuple[np.ndarray]:
        """What an example adds to the metric, to first order ``(n,)``: the square root has the slope 1 / (2 RMSE)."""
        return (self.error / (2 * max(self.value, np.finfo(float).tiny)) if self.metric == "RMSE" else self.error,)


class Ranking:
    """Examples ranked by the scores of one run: sorted once, for the AUC under any weights.

    Parameters
    ----------
    label : ndarray
        ``(n,)``, 0 and 1, both present.
    score : ndarray
        ``(n,)``
    """

    metric = "AUC"

    def __init__(self, label: np.ndarray, score: np.ndarray) -> None:
        self.score = score
        self.positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
        self.negative = negative[np.argsort(score[negative], kind="stable")]
        # For each positive: negatives with a lower score, and those with a lower or equal one.
        self.low = np.searchsorted(score[self.negative], score[self.positive], "left")
        self.high = np.searchsorted(score[self.negative], score[self.positive], "right")

    def weighted(self, weight: np.ndarray) -> np.ndarray:
        """Return the AUC of weighted examples, for S sets of weights w.

        ::

            AUC = sum_{i positive} w_i (W(< s_i) + W(<= s_i)) / 2 / (W+ W-),   W: weight of negatives with such a score

        Parameters
        ----------
        weight : ndarray
            ``(n, S)``

        Returns
        -------
        ndarray
            ``(S,)``, NaN where a class has no weight.
        """
        below = np.zeros((len(self.negative) + 1, weight.shape[1]))
        np.cumsum(weight[self.negative], axis=0, out=below[1:])
        positive = weight[self.positive]
        won = np.einsum("ps,ps->s", positive, below[self.low] + below[self.high]) / 2
        pairs = positive.sum(axis=0) * below[-1]
        return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    @cached_property
    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """DeLong's structural components V10 ``(P,)`` and V01 ``(N,)``; the mean of either is the AUC.

        V10 is, for each positive, the fraction of negatives below it, V01, for each negative, the fraction of positives
        above it; ties count half. Both are in the order of the examples.
        """
        positive, negative = np.sort(self.score[self.positive]), self.score[np.sort(self.negative)]
        not_above = np.searchsorted(positive, negative, "left") + np.searchsorted(positive, negative, "right")
        return (self.low + self.high) / 2 / len(negative), 1 - not_above / 2 / len(positive)

    @property
    def value(self) -> float:
        """AUC, each example counted once."""
        return float(self.components[0].mean())


#: A metric of the predictions of one run for n examples, under any weights of the examples.
Measured: TypeAlias = Ranking | Errors


def metric_of(is_regression: bool, metrics: Iterable[str]) -> str:
    """Return what models are judged by: AUC, or in a regression the first of RMSE and MAE among their metrics."""
    return next((name for name in metrics if name in ERRORS), "RMSE") if is_regression else "AUC"


def measured(label: np.ndarray, prediction: np.ndarray, metric: str) -> Measured:
    """Return a metric of ``metric_of`` of predictions ``(n,)``."""
    return Ranking(label, prediction) if metric == "AUC" else Errors(label, prediction, metric)


def sampling_variance(runs: Sequence[Measured], others: Sequence[Measured] = ()) -> float:
    """Return the variance of a mean metric, or of the difference of two means, for independent examples.

    That of the AUC is DeLong's, with V10 and V01 averaged over the runs and those of ``others`` subtracted::

        variance = var(V10) / P + var(V01) / N

    DeLong, DeLong and Clarke-Pearson, Biometrics 1988, https://doi.org/10.2307/2531595. The components come from sorted
    scores in O(n log n), as in Sun and Xu, IEEE Signal Processing Letters 2014,
    https://doi.org/10.1109/LSP.2014.2337313. Errors have one component, of all examples: the variance of a mean.

    Parameters
    ----------
    runs, others : sequence of Measured
        Of the same examples.
    """
    variance = 0.0
    for part in range(len(runs[0].components)):
        component = np.mean([run.components[part] for run in runs], axis=0)
        if others:
            component = component - np.mean([run.components[part] for run in others], axis=0)
        variance += component.var(ddof=1) / len(component)
    return float(variance)


def sampling_error(runs: Sequence[Measured], others: Sequence[Measured] = ()) -> float | None:
    """Return the root of ``sampling_variance``, None where a class has a single example."""
    alone = min(map(len, runs[0].components)) < 2
    return None if alone else math.sqrt(sampling_variance(runs, others))


def with_interval(label: np.ndarray, prediction: np.ndarray, metric: str) -> dict[str, float | None]:
    """Return a metric by its name in lower case, and its 95 % interval ``low`` to ``high``, for independent examples.

    Of the AUC ``auc_with_interval``; of RMSE and MAE from the standard error, which one example does not have.
    """
    if metric == "AUC":
        return auc_with_interval(label, prediction)
    found = Errors(label, prediction, metric)
    if len(label) < 2:
        return {metric.lower(): found.value, "low": None, "high": None}
    half = NORMAL_95 * math.sqrt(sampling_variance([found]))
    return {metric.lower(): found.value, "low": max(found.value - half, 0.0), "high": found.value + half}


def auc_with_interval(label: np.ndarray, score: np.ndarray) -> dict[str, float | None]:
    """Return ``auc`` and its 95 % interval ``low`` to ``high``; all are None where there is one class only.

    The interval is DeLong's, after one example of each class is added below all scores and one above: of few examples
    alone, which may be ranked without an error, the variance is 0 or far too small. Agresti and Coull, The American
    Statistician 1998, https://doi.org/10.1080/00031305.1998.10480550, add two successes and two failures to a
    proportion for the same reason.

    Parameters
    ----------
    label, score : ndarray
        ``(n,)``

    Examples
    --------
    >>> auc_with_interval(np.array([1, 0, 1, 0]), np.array([0.9, 0.1, 0.4, 0.4]))
    {'auc': 0.875, 'low': 0.13..., 'high': 1.0}
    >>> auc_with_interval(np.array([1, 1]), np.array([0.9, 0.1]))
    {'auc': None, 'low': None, 'high': None}
    """
    if not ((label == 1).any() and (label == 0).any()):
        return {"auc": None, "low": None, "high": None}
    added = Ranking(np.append(label, [0, 1, 0, 1]), np.append(score, [-np.inf, -np.inf, np.inf, np.inf]))
    half = NORMAL_95 * math.sqrt(sampling_variance([added]))
    return {
        "auc": Ranking(label, score).value,
        "low": max(added.value - half, 0.0),
        "high": min(added.value + half, 1.0),
    }
