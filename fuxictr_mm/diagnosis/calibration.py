"""Section on calibration: whether clicks are as frequent as predicted.

Shape letters: R examples, K bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fuxictr_mm.diagnosis.findings import NOTE, PROBLEM, Finding
from fuxictr_mm.evaluation.calibration import BINS, equal_bins, expected_error

#: Samples of labels from the predictions, for the error of a calibrated model.
SAMPLES = 200

#: An expected calibration error above this, and above its noise, is a problem.
CALIBRATION_ERROR = 0.05

#: A slope this far from 1 means overconfident or underconfident predictions.
SLOPE_TOLERANCE = 0.2


def measure(label: np.ndarray, prediction: np.ndarray, bins: int = BINS, seed: int = 0) -> dict[str, Any]:
    """Return the reliability curve and its summary.

    Parameters
    ----------
    label, prediction : ndarray
        ``(R,)``
    bins : int
        K, at most R.
    seed : int
        Of the samples of labels.

    Returns
    -------
    dict
        ``curve``, a list with one entry per bin: ``rows``, ``mean_prediction``, ``rate`` with its Wilson interval
        ``low`` to ``high``, and ``from``, ``to``, the range of predictions; ``expected_calibration_error``, and
        ``noise``, its 95 % quantile if the predictions are the true probabilities; ``mean_prediction``, ``rate``;
        ``intercept`` and ``slope`` of ``recalibrate``.
    """
    bins = min(bins, len(label))
    bin_of = equal_bins(prediction, bins)
    generator = np.random.default_rng(seed)
    errors = [expected_error(generator.random(len(label)) < prediction, prediction, bin_of) for _ in range(SAMPLES)]
    intercept, slope = recalibrate(label, prediction) or (None, None)
    return {
        "mean_prediction": float(prediction.mean()),
        "rate": float(label.mean()),
        "expected_calibration_error": expected_error(label, prediction, bin_of),
        "noise": float(np.quantile(errors, 0.95)),
        "intercept": intercept,
        "slope": slope,
        "curve": [_describe_bin(label[bin_of == k], prediction[bin_of == k]) for k in range(bins)],
    }


def _describe_bin(label: np.ndarray, prediction: np.ndarray) -> dict[str, Any]:
    from scipy.stats import binomtest

    interval = binomtest(int(label.sum()), len(label)).proportion_ci(0.95, method="wilson")
    return {
        "rows": len(label),
        "from": float(prediction.min()),
        "to": float(prediction.max()),
        "mean_prediction": float(prediction.mean()),
        "rate": float(label.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
    }


def recalibrate(label: np.ndarray, prediction: np.ndarray) -> tuple[float, float] | None:
    r"""Fit :math:`\mathrm{logit}\, P(y) = a + b \, \mathrm{logit}\, p`; None without a finite solution.

    Cox: Two Further Applications of a Model for Binary Regression, Biometrika 45, 1958,
    https://doi.org/10.1093/biomet/45.3-4.562

    Returns
    -------
    tuple of float
        Intercept a, 0 for a calibrated mean, and slope b, 1 if calibrated; below 1 for overconfident predictions.
    """
    clipped = prediction.clip(1e-7, 1 - 1e-7)
    inputs = np.stack([np.ones(len(label)), np.log(clipped / (1 - clipped))], axis=1)
    solution = np.array([0.0, 1.0])
    for _ in range(100):  # Newton's method
        fitted = 1 / (1 + np.exp(-(inputs @ solution).clip(-500, 500)))
        hessian = (inputs * (fitted * (1 - fitted))[:, None]).T @ inputs
        if not np.isfinite(hessian).all() or np.linalg.cond(hessian) > 1e12:
            return None
        step = np.linalg.solve(hessian, inputs.T @ (label - fitted))
        solution = solution + step
        if np.abs(step).max() < 1e-10:
            return float(solution[0]), float(solution[1])
    return None


def tables(result: Mapping[str, Any]) -> list[str]:
    """Return one line."""
    entry = result["calibration"]
    slope = "" if entry["slope"] is None else f", slope {entry['slope']:.2f}, intercept {entry['intercept']:+.2f}"
    return [
        f"calibration: expected error {entry['expected_calibration_error']:.4f} (noise {entry['noise']:.4f}), mean "
        f"prediction {entry['mean_prediction']:.4f}, rate {entry['rate']:.4f}{slope}"
    ]


def findings(result: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield whether predictions are miscalibrated, overconfident or underconfident."""
    entry = result["calibration"]
    error, noise, slope = entry["expected_calibration_error"], entry["noise"], entry["slope"]
    if error > max(CALIBRATION_ERROR, noise):
        yield Finding(
            PROBLEM,
            "calibration",
            "miscalibrated",
            "predictions",
            f"the expected calibration error is {error:.3f} (noise {noise:.3f}): the mean prediction is "
            f"{entry['mean_prediction']:.3f}, the click rate {entry['rate']:.3f}",
            "ranking is not affected; before using them as probabilities, fit intercept and slope on held-out rows",
        )
    if slope is not None and abs(slope - 1) > SLOPE_TOLERANCE:
        kind = "overconfident" if slope < 1 else "underconfident"
        yield Finding(
            NOTE,
            "calibration",
            kind,
            "predictions",
            f"the model is {kind}: logits fit the clicks best when multiplied by {slope:.2f}",
            "more regularization or fewer epochs" if slope < 1 else "train longer, or with less regularization",
        )
