"""The reliability curve and its error by their definitions, the slope against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fuxictr_mm.diagnosis import calibration, slices

COMMAND = "fuxictr-mm predict --expid X --calibrate platt"


def examples(count=300, seed=0):
    random = np.random.default_rng(seed)
    prediction = random.random(count).round(2)  # with ties
    return (random.random(count) < prediction).astype(np.float32), prediction


def codes(label, prediction):
    result = {"calibration": {**calibration.measure(label, prediction), "command": COMMAND}}
    return {finding.code for finding in calibration.findings(result)}


def test_the_curve_by_brute_force():
    label, prediction = examples(301)
    found = calibration.measure(label, prediction, bins=10)
    # Equal predictions are in the bin of the middle one of them.
    order = sorted(prediction)
    parts = np.array_split(range(301), 10)
    middle = [order.index(p) + (order.count(p) - 1) // 2 for p in prediction]
    error = 0.0
    for entry, part in zip(found["curve"], parts, strict=True):
        members = [row for row in range(301) if middle[row] in part]
        mean, rate = prediction[members].mean(), label[members].mean()
        assert (entry["rows"], entry["mean_prediction"]) == (len(members), pytest.approx(mean))
        assert entry["rate"] == pytest.approx(rate)
        # Wilson's bounds b solve |rate - b| = z sqrt(b (1 - b) / n).
        for bound in (entry["low"], entry["high"]):
            assert abs(rate - bound) == pytest.approx(1.959964 * np.sqrt(bound * (1 - bound) / len(members)), abs=1e-6)
        assert entry["low"] <= rate <= entry["high"]
        error += len(members) / 301 * abs(mean - rate)
    assert found["expected_calibration_error"] == pytest.approx(error)


def test_true_probabilities_are_within_the_noise_and_squared_ones_are_not():
    inside = 0
    for seed in range(20):
        label, prediction = examples(2000, seed)
        found = calibration.measure(label, prediction)
        inside += found["expected_calibration_error"] <= found["noise"]
        found = calibration.measure(label, prediction**2)
        assert found["expected_calibration_error"] > 2 * found["noise"]
        assert "miscalibrated" in codes(label, prediction**2)
    assert inside >= 17


@pytest.mark.parametrize(("factor", "expected"), [(1.0, set()), (2.0, {"overconfident"}), (0.5, {"underconfident"})])
def test_the_slope_tells_how_confident_predictions_are(factor, expected):
    label, prediction = examples(4000)
    logit = factor * np.log(prediction.clip(0.01, 0.99) / (1 - prediction.clip(0.01, 0.99)))
    assert codes(label, 1 / (1 + np.exp(-logit))) - {"miscalibrated"} == expected


def test_recalibration_is_logistic_regression():
    label, prediction = examples(2000)
    prediction = prediction.clip(0.01, 0.99)
    logit = 2 * np.log(prediction / (1 - prediction)) + 0.5
    intercept, slope = calibration.recalibrate(label, 1 / (1 + np.exp(-logit)))
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logit[:, None], label)
    assert intercept == pytest.approx(reference.intercept_[0], abs=1e-4)
    assert slope == pytest.approx(reference.coef_[0, 0], abs=1e-4)
    backwards = calibration.recalibrate(label, 1 / (1 + np.exp(logit)))
    assert backwards == pytest.approx((intercept, -slope), abs=1e-4)
    separable = np.array([0.0, 0, 1, 1])
    assert calibration.recalibrate(separable, np.array([0.1, 0.2, 0.8, 0.9])) is None
    assert calibration.recalibrate(separable, np.full(4, 0.5)) is None


def test_by_popularity():
    """Cold items are predicted too high, those with one or two clicks too low, the others right."""
    generator = np.random.default_rng(0)
    target = generator.integers(0, 30, 6000)
    shown = np.where(np.arange(30) < 10, 0, 50)
    clicked = np.where(np.arange(30) < 20, 2, 20) * (shown > 0)
    prediction = generator.uniform(0.3, 0.6, 6000)
    shift = np.select([target < 10, target < 20], [-0.2, 0.15], 0.0)
    label = (generator.random(6000) < prediction + shift).astype(np.float32)
    lengths = np.ones(6000, dtype=np.int64)
    popularity = slices.measure(label, prediction, lengths, target, slices.Popularity(shown, clicked))["popularity"]
    found = calibration.by_popularity(popularity)
    assert [(entry["name"], entry["cold"]) for entry in found] == [
        ("never shown", True),
        ("1-2", False),
        ("11-20", False),
    ]
    for entry, low, high in zip(found, (0, 10, 20), (10, 20, 30), strict=True):
        rows = (target >= low) & (target < high)
        assert entry["rows"] == rows.sum()
        assert entry["mean_prediction"] == pytest.approx(prediction[rows].mean())
        assert entry["rate"] == pytest.approx(label[rows].mean())
        assert entry["low"] < entry["rate"] < entry["high"]
    result = {"calibration": {**calibration.measure(label, prediction), "by_popularity": found, "command": COMMAND}}
    told = {finding.code: finding for finding in calibration.findings(result)}
    assert told["miscalibrated_on_cold_items"].subject == "never shown"
    assert told["miscalibrated_by_popularity"].subject == "1-2"
    assert "--calibrate" in told["miscalibrated_on_cold_items"].advice
    assert "never shown" in calibration.tables(result)[1]


def test_bins_without_rows_are_left_out():
    found = calibration.measure(np.repeat([1.0, 0.0], 50), np.repeat([0.5, 0.2], [90, 10]))
    assert [(entry["from"], entry["rows"]) for entry in found["curve"]] == [(0.2, 10), (0.5, 90)]
