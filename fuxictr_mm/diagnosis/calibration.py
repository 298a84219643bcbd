"""Section on calibration: predicted and observed click rates.

Shape letters: R examples, K bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fuxictr_mm.diagnosis.findings import NOTE, PROBLEM, WARNING, Finding
from fuxictr_mm.evaluation.calibration import BINS, MARGIN, equal_bins, expected_error, fit
from fuxictr_mm.terminal import format_table

#: Samples of labels from the predictions, for the error of a calibrated model.
SAMPLES = 200

#: An expected calibration error above this, and above its noise, is a problem.
CALIBRATION_ERROR = 0.05

#: A slope this far from 1 means overconfident or underconfident predictions.
SLOPE_TOLERANCE = 0.2


def measure(label: np.ndarray, prediction: np.ndarray, bins: int = BINS, seed: int = 0) -> dict[str, Any]:
    """Return the reliability curve of predictions ``(R,)`` in K ``bins``, at most R, and its summary.

    ``curve`` has an entry for each bin with rows: ``rows``, ``mean_prediction``, ``rate`` with its Wilson interval
    ``low`` to ``high``, and ``from``, ``to``, the range of predictions. ``noise`` is the 95 % quantile of
    ``expected_calibration_error`` if the predictions are the true probabilities; ``intercept`` and ``slope`` are of
    ``recalibrate``.
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
        "curve": [_describe_bin(label[bin_of == k], prediction[bin_of == k]) for k in np.unique(bin_of)],
    }


def by_popularity(popularity: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the calibration of each bucket of the section ``popularity``, ``rate`` with its Wilson interval."""
    kept = ("name", "cold", "rows", "mean_prediction", "rate")
    return [{**{key: entry[key] for key in kept}, **_wilson(entry["positives"], entry["rows"])} for entry in popularity]


def _wilson(positives: int, rows: int) -> dict[str, float]:
    from scipy.stats import binomtest

    interval = binomtest(positives, rows).proportion_ci(0.95, method="wilson")
    return {"low": float(interval.low), "high": float(interval.high)}


def _describe_bin(label: np.ndarray, prediction: np.ndarray) -> dict[str, Any]:
    return {
        "rows": len(label),
        "from": float(prediction.min()),
        "to": float(prediction.max()),
        "mean_prediction": float(prediction.mean()),
        "rate": float(label.mean()),
        **_wilson(int(label.sum()), len(label)),
    }


def recalibrate(label: np.ndarray, prediction: np.ndarray) -> tuple[float, float] | None:
    r"""Fit :math:`\mathrm{logit}\, P(y) = a + b \, \mathrm{logit}\, p`; None without a finite solution.

    The intercept a is 0 for a calibrated mean; the slope b is 1 if calibrated, below 1 for overconfident predictions.
    Cox: Two Further Applications of a Model for Binary Regression, Biometrika 45, 1958,
    https://doi.org/10.1093/biomet/45.3-4.562
    """
    clipped = prediction.clip(MARGIN, 1 - MARGIN)
    clicked, others = clipped[label == 1], clipped[label == 0]
    if clicked.min() >= others.max() or clicked.max() <= others.min():
        return None  # separable
    fitted = fit("platt", label, clipped).parameters
    if fitted["a"] > 0:
        return fitted["c"], fitted["a"]
    fitted = fit("platt", label, 1 - clipped).parameters  # whose slope is never negative
    return fitted["c"], -fitted["a"]


def tables(result: Mapping[str, Any]) -> list[str]:
    """Return one line, and a table by popularity."""
    if "calibration" not in result:
        return []
    entry = result["calibration"]
    slope = "" if entry["slope"] is None else f", slope {entry['slope']:.2f}, intercept {entry['intercept']:+.2f}"
    line = (
        f"calibration: expected error {entry['expected_calibration_error']:.4f} (noise {entry['noise']:.4f}), mean "
        f"prediction {entry['mean_prediction']:.4f}, rate {entry['rate']:.4f}{slope}"
    )
    rows = [
        [
            bucket["name"],
            bucket["rows"],
            f"{bucket['mean_prediction']:.4f}",
            f"{bucket['rate']:.4f}",
            f"{bucket['low']:.3f} to {bucket['high']:.3f}",
        ]
        for bucket in entry.get("by_popularity", ())
    ]
    header = ["clicks in training", "rows", "mean prediction", "click rate", "interval"]
    return [line, format_table(header, rows)] if rows else [line]


def findings(result: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings on miscalibrated, overconfident or underconfident predictions."""
    if "calibration" not in result:
        return
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
            f"ranking is not affected; before using them as probabilities: {entry['command']}",
        )
    yield from _findings_by_popularity(entry.get("by_popularity", ()), entry["command"])
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


def _findings_by_popularity(buckets: Sequence[Mapping[str, Any]], command: str) -> Iterator[Finding]:
    """Yield cold items whose predictions are too high or too low, and of the others the worst bucket."""
    wrong = [
        bucket
        for bucket in buckets
        if not bucket["low"] <= bucket["mean_prediction"] <= bucket["high"] and _gap(bucket) > CALIBRATION_ERROR
    ]
    others = [bucket for bucket in wrong if not bucket["cold"]]
    for bucket in [*(b for b in wrong if b["cold"]), *sorted(others, key=_gap)[-1:]]:
        which = "without training examples" if bucket["cold"] else f"with {bucket['name']} clicks in training"
        yield Finding(
            WARNING if bucket["cold"] else NOTE,
            "calibration",
            "miscalibrated_on_cold_items" if bucket["cold"] else "miscalibrated_by_popularity",
            bucket["name"],
            f"on {bucket['rows']} rows of items {which} the mean prediction is {bucket['mean_prediction']:.3f}, "
            f"the click rate {bucket['rate']:.3f} ({bucket['low']:.3f} to {bucket['high']:.3f})",
            f"{command} corrects all rows in the same way; a remaining error by popularity needs more "
            "informative embeddings than ids",
        )


def _gap(bucket: Mapping[str, Any]) -> float:
    return abs(bucket["mean_prediction"] - bucket["rate"])
