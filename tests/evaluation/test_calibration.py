"""Calibration on valid: planted distortions are undone, and what is saved is plain JSON."""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest

from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.evaluation.calibration import (
    METHODS,
    calibrate_run,
    fit,
    folds,
    measure,
)
from fuxictr_mm.runs import find_runs
from tests.errors import raises_naming


def world(rows=20_000, seed=0):
    """Return true probabilities and labels drawn from them."""
    generator = np.random.default_rng(seed)
    truth = 1 / (1 + np.exp(-generator.normal(-1, 1.2, size=rows)))
    return truth, (generator.random(rows) < truth).astype(np.int8)


def logit(p):
    return np.log(p / (1 - p))


@pytest.mark.parametrize("method", METHODS)
def test_an_overconfident_model_is_calibrated(method):
    truth, label = world()
    prediction = 1 / (1 + np.exp(-(2 * logit(truth) + 0.5)))
    unseen, of_unseen = world(seed=1)
    distorted = 1 / (1 + np.exp(-(2 * logit(unseen) + 0.5)))
    calibrated = fit(method, label, prediction)(distorted)
    assert np.abs(calibrated - unseen).mean() < 0.02 < np.abs(distorted - unseen).mean()
    before, after = measure(of_unseen, distorted), measure(of_unseen, calibrated)
    assert after.logloss < before.logloss - 0.02
    assert after.expected_calibration_error < 0.03 < before.expected_calibration_error
    order = np.argsort(distorted)
    assert (np.diff(calibrated[order]) >= -1e-12).all()


def test_platt_is_the_logistic_regression_of_the_logit():
    truth, label = world()
    found = fit("platt", label, 1 / (1 + np.exp(-(2 * logit(truth) + 0.5))))
    assert found.parameters == pytest.approx({"a": 0.5, "c": -0.25}, abs=0.05)
    inputs = np.stack([np.log(truth / (1 - truth)) * 2 + 0.5, np.ones(len(truth))])
    fitted = 1 / (1 + np.exp(-(found.parameters["a"] * inputs[0] + found.parameters["c"])))
    np.testing.assert_allclose(inputs @ (label - fitted), 0, atol=1)  # the gradient of the likelihood


def test_beta_is_monotone_also_where_a_coefficient_would_be_negative():
    generator = np.random.default_rng(0)
    prediction = generator.uniform(0.01, 0.99, 5000)
    label = (generator.random(5000) < 0.9 - 0.8 * (prediction < 0.5) * (prediction > 0.1)).astype(np.int8)
    for labels in (label, 1 - label):
        found = fit("beta", labels, prediction)
        assert min(found.parameters["a"], found.parameters["b"]) >= 0
        assert (np.diff(found(np.sort(prediction))) >= 0).all()
        assert found(prediction).mean() == pytest.approx(labels.mean(), abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_predictions_that_rank_backwards_become_the_click_rate(method):
    truth, label = world()
    found = fit(method, label, 1 - truth)
    np.testing.assert_allclose(found(np.linspace(0, 1, 5)), label.mean(), atol=1e-6)
    assert found.is_constant
    assert not fit(method, label, truth).is_constant


@pytest.fixture
def run(runs_root, tmp_path):
    """A run, safe to change."""
    found = find_runs(runs_root, expid="DIN_MM_none_tiny")[0]
    shutil.copytree(found.path, tmp_path / "tiny_mm" / found.expid / found.run)
    return find_runs(tmp_path)[0]


def test_saved_with_the_run_and_measured_on_users_not_fitted_to(run):
    found = calibrate_run(run)
    assert json.loads((run.path / "calibration.json").read_text()) == asdict(found)
    assert (found.rows, found.cross_fitted_by, list(found.methods)) == (3000, "users", list(METHODS))
    label, prediction, group = run.predictions()
    fold = folds(label, group)
    unseen = np.empty(3000)
    for number in range(5):
        held = fold == number
        unseen[held] = fit("platt", label[~held], prediction[~held])(prediction[held])
    assert found.methods["platt"].logloss == pytest.approx(measure(label, unseen).logloss)
    assert found.uncalibrated.logloss == pytest.approx(run.valid["logloss"], abs=1e-6)
    for method in METHODS:
        expected = fit(method, label, prediction)(prediction)
        np.testing.assert_allclose(found.calibrator(method)(prediction), expected, atol=1e-12)
        assert found.describe(method).startswith(f"calibrated by {method}: valid logloss")


def test_what_cannot_be_calibrated_is_refused():
    label = np.array([0, 1])
    with raises_naming(ConfigError, "'temperature'"):
        fit("temperature", label, np.array([0.1, 0.2]))
    with raises_naming(DataError, "probabilities"):
        fit("platt", label, np.array([0.1, 1.2]))
    with raises_naming(DataError, "classes"):
        fit("platt", np.array([1, 1]), np.array([0.1, 0.2]))
    label = np.array([1, 1, 0, 0, 0, 0])
    with raises_naming(DataError, "of 5", "all other users", "classes"):  # all positives are of one user
        folds(label, np.array([0, 0, 1, 2, 3, 4]))
    with raises_naming(DataError, "6 validation rows", "one user"):
        folds(label, np.zeros(6, int))
    for group in (None, np.zeros(6, int), np.arange(6)):
        with raises_naming(DataError, "all 6 validation rows are 1", "both classes"):
            folds(np.ones(6), group)


def test_the_error_does_not_depend_on_the_order_of_rows():
    """A file is often sorted by user, and so by label to some degree; an isotonic fit has many equal predictions."""
    label = np.repeat([1, 0], 500)
    assert measure(label, np.full(1000, 0.5)).expected_calibration_error == 0
    truth, label = world(4000)
    prediction = fit("isotonic", label, truth)(truth)
    error = measure(label, prediction).expected_calibration_error
    for order in (np.argsort(label, kind="stable"), np.argsort(-label, kind="stable")):
        assert measure(label[order], prediction[order]).expected_calibration_error == pytest.approx(error, abs=1e-12)
    assert error < 1e-6  # within each run of equal predictions, they are the rate of the labels
