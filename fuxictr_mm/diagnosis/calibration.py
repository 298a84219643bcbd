"""Whether a predicted probability is met.

Shape letters: R rows, K bins.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fuxictr_mm.evaluation.significance import NORMAL_95

#: Draws of labels from the predictions, to learn what the error would be if they were true.
DRAWS = 200


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share.

    Wilson, Journal of the American Statistical Association 22, 1927, https://doi.org/10.1080/01621459.1927.10502953

    Examples
    --------
    >>> [round(bound, 3) for bound in wilson(5, 10)]
    [0.237, 0.763]
    """
    z2 = NORMAL_95**2
    share = successes / count
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return centre - half, centre + half


def equal_bins(prediction: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each row ``(R,)``: bins of equal count by rising prediction; of equals the first row first."""
    place = np.empty(len(prediction), dtype=np.int64)
    for number, rows in enumerate(np.array_split(np.argsort(prediction, kind="stable"), bins)):
        place[rows] = number
    return place


def expected_error(label: np.ndarray, prediction: np.ndarray, place: np.ndarray) -> float:
    r"""Return the expected calibration error, :math:`\sum_k \frac{n_k}{R} |\bar y_k - \bar p_k|`.

    Naeini, Cooper, Hauskrecht: Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015,
    https://ojs.aaai.org/index.php/AAAI/article/view/9602; bins of equal count rather than width.
    """
    return float(np.abs(np.bincount(place, weights=label - prediction)).sum() / len(label))


def recalibrate(label: np.ndarray, prediction: np.ndarray) -> tuple[float, float] | None:
    r"""Fit :math:`\mathrm{logit}\, P(y) = a + b \, \mathrm{logit}\, p`; None where it has no finite solution.

    Cox: Two Further Applications of a Model for Binary Regression, Biometrika 45, 1958,
    https://doi.org/10.1093/biomet/45.3-4.562

    Returns
    -------
    tuple of float
        Intercept a, 0 if right on average, and slope b, 1 if right; below 1 the model is too sure of itself.
    """
    clipped = prediction.clip(1e-7, 1 - 1e-7)
    inputs = np.stack([np.ones(len(label)), np.log(clipped / (1 - clipped))], axis=1)
    solution = np.array([0.0, 1.0])
    for _ in range(100):
        fitted = 1 / (1 + np.exp(-(inputs @ solution).clip(-500, 500)))
        hessian = (inputs * (fitted * (1 - fitted))[:, None]).T @ inputs
        if not np.isfinite(hessian).all() or np.linalg.cond(hessian) > 1e12:
            return None
        step = np.linalg.solve(hessian, inputs.T @ (label - fitted))
        solution = solution + step
        if np.abs(step).max() < 1e-10:
            return float(solution[0]), float(solution[1])
    return None


def describe(label: np.ndarray, prediction: np.ndarray, bins: int = 15, seed: int = 0) -> dict[str, Any]:
    """Return the reliability curve and what it amounts to.

    Parameters
    ----------
    label, prediction : ndarray
        ``(R,)``.
    bins : int
        K, fewer where there are fewer rows.
    seed : int
        Of the draws of labels.

    Returns
    -------
    dict
        ``curve``, a list with one entry per bin: ``rows``, ``mean_prediction``, ``rate``, its interval ``low`` to
        ``high``, and ``from``, ``to``, the predictions that it holds; ``expected_calibration_error``, and ``noise``,
        what 95 % of such rows stay below if the predictions are the true probabilities; ``mean_prediction``, ``rate``;
        ``intercept`` and ``slope`` of ``recalibrate``.
    """
    bins = min(bins, len(label))
    place = equal_bins(prediction, bins)
    curve = []
    for number in range(bins):
        rows = place == number
        low, high = wilson(int(label[rows].sum()), int(rows.sum()))
        curve.append(
            {
                "rows": int(rows.sum()),
                "from": float(prediction[rows].min()),
                "to": float(prediction[rows].max()),
                "mean_prediction": float(prediction[rows].mean()),
                "rate": float(label[rows].mean()),
                "low": low,
                "high": high,
            }
        )
    random = np.random.default_rng(seed)
    drawn = [expected_error(random.random(len(label)) < prediction, prediction, place) for _ in range(DRAWS)]
    line = recalibrate(label, prediction)
    return {
        "mean_prediction": float(prediction.mean()),
        "rate": float(label.mean()),
        "expected_calibration_error": expected_error(label, prediction, place),
        "noise": float(np.quantile(drawn, 0.95)),
        "intercept": line[0] if line else None,
        "slope": line[1] if line else None,
        "curve": curve,
    }
