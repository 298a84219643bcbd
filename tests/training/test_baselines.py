"""Warnings of metrics that are worse than those of a constant."""

import logging

import numpy as np
import pytest
import torch

from fuxictr_mm.metrics import auc_noise, constant_logloss, evaluate_metrics, evaluate_tasks
from fuxictr_mm.training.baselines import warn_of_baselines

RANDOM = np.random.default_rng(5)
LABEL = torch.tensor(RANDOM.permutation(np.repeat([1.0, 0.0], [100, 300])), dtype=torch.float32)
METRICS = ["AUC", "logloss"]
CLASSES = "binary_classification"
ONE = {"label": CLASSES}


def warnings_of(metrics, caplog, label=LABEL, tasks=ONE):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_baselines(metrics, label, tasks, "predict --calibrate platt")
    return [record.getMessage() for record in caplog.records]


def test_a_constant_and_what_is_better_are_not_warned_of(caplog):
    better = 0.25 + 0.1 * (LABEL.double() - 0.25)
    assert not warnings_of(evaluate_metrics(LABEL, better, METRICS), caplog)
    constant = evaluate_metrics(LABEL, torch.full((400,), 0.25, dtype=torch.float64), METRICS)
    assert constant["logloss"] == pytest.approx(constant_logloss(0.25))
    assert not warnings_of(constant, caplog)
    assert not warnings_of({"gAUC": 0.1}, caplog)


def test_a_logloss_above_that_of_the_rate_names_both_and_the_command(caplog):
    good_ranking = 0.9 + 0.05 * LABEL.double()
    found = evaluate_metrics(LABEL, good_ranking, METRICS)
    (line,) = warnings_of(found, caplog)
    for part in (f"{found['logloss']:.4f}", f"{constant_logloss(0.25):.4f}", "0.2500", "predict --calibrate platt"):
        assert part in line
    assert len(warnings_of({"binary_crossentropy": 0.8}, caplog)) == 1


@pytest.mark.parametrize(("deviations", "count"), [(-2.0, 0), (-4.0, 1), (4.0, 0)])
def test_an_auc_below_a_half_by_more_than_noise(deviations, count, caplog):
    auc = 0.5 + deviations * auc_noise(100, 300)
    lines = warnings_of({"AUC": auc}, caplog)
    assert [f"{auc:.4f}" in line for line in lines] == [True] * count


def test_the_noise_is_that_of_random_scores():
    aucs = [evaluate_metrics(LABEL, RANDOM.random(400), ["AUC"])["AUC"] for _ in range(200)]
    assert np.std(aucs) == pytest.approx(auc_noise(100, 300), rel=0.2)


def test_each_of_several_labels_on_its_rows(caplog):
    other = torch.where(torch.arange(400) < 200, LABEL, torch.nan)
    both = torch.stack([LABEL, other], dim=1)
    prediction = torch.stack([0.25 + 0.1 * LABEL, torch.full((400,), 0.9)], dim=1).double()
    metrics = evaluate_tasks(both, prediction, METRICS, ["click", "like"])
    (line,) = warnings_of(metrics, caplog, both, {"click": CLASSES, "like": CLASSES})
    assert "like_logloss" in line
    assert "--calibrate" not in line


def test_a_regression_that_is_worse_than_the_mean(caplog):
    seconds = torch.from_numpy(RANDOM.normal(30, 5, 400))
    both = torch.stack([LABEL.double(), seconds], dim=1)
    tasks = {"click": CLASSES, "watch": "regression"}
    deviation = seconds.std(correction=0).item()
    assert not warnings_of({"click_AUC": 0.7, "watch_RMSE": deviation}, caplog, both, tasks)
    (line,) = warnings_of({"click_AUC": 0.7, "watch_RMSE": deviation * 1.01}, caplog, both, tasks)
    assert "watch_RMSE" in line
    assert f"{deviation:.4g}" in line
