"""Metrics of a diagnosed model: whether it ranks better than chance, and predicts better than a constant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fuxictr_mm.diagnosis.findings import MODEL_AT_CHANCE, PROBLEM, Finding
from fuxictr_mm.evaluation.intervals import with_interval
from fuxictr_mm.metric_names import ERRORS
from fuxictr_mm.metrics import constant_logloss, evaluate_metrics


def measure(label: np.ndarray, prediction: np.ndarray, metric: str = "AUC") -> dict[str, Any]:
    """Return AUC with its interval, logloss, and the number and rate of positives of examples ``(n,)``.

    Of a regression RMSE and MAE, the interval of ``metric``, and mean and standard deviation of the labels.
    """
    if metric != "AUC":
        errors = {name.lower(): float(value) for name, value in evaluate_metrics(label, prediction, ERRORS).items()}
        found = with_interval(label, prediction, metric)
        return {**errors, **found, "mean": float(label.mean()), "deviation": float(label.std(dtype=np.float64))}
    return {
        **with_interval(label, prediction, metric),
        **evaluate_metrics(label, prediction, ["logloss"]),
        "positives": int(label.sum()),
        "rate": float(label.mean()),
    }


def findings(result: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings on what the model predicts as a whole."""
    metrics, metric = result["metrics"], result.get("metric", "AUC")
    if metric != "AUC":
        if "rmse" in metrics and metrics["rmse"] > metrics["deviation"] * (1 + 1e-4):
            yield Finding(
                PROBLEM,
                "metrics",
                "worse_than_constant",
                "predictions",
                f"the RMSE is {metrics['rmse']:.4f}, and {metrics['deviation']:.4f} if the mean label "
                f"{metrics['mean']:.4g} were predicted for all rows",
                "train longer, or on labels of mean 0 and standard deviation 1",
            )
        return
    if metrics["low"] <= 0.5 <= metrics["high"]:
        yield Finding(
            PROBLEM,
            "metrics",
            MODEL_AT_CHANCE,
            "model",
            f"the model ranks at random: AUC {metrics['auc']:.4f}, and its 95 % interval ({metrics['low']:.4f} to "
            f"{metrics['high']:.4f}) contains 0.5",
            "its parts cannot be diagnosed: check whether the training loss falls, run fuxictr-mm check-data, and "
            "use more rows if the interval is wide",
        )
    if metrics["high"] < 0.5:
        yield Finding(
            PROBLEM,
            "metrics",
            "ranks_backwards",
            "model",
            f"positives are ranked below negatives: AUC {metrics['auc']:.4f}, and its 95 % interval "
            f"({metrics['low']:.4f} to {metrics['high']:.4f}) is below 0.5",
            "check with fuxictr-mm check-data that the label means the same in train and in these rows",
        )
    constant = constant_logloss(metrics["rate"])
    if round(metrics["logloss"] - constant, 4) > 0:
        yield Finding(
            PROBLEM,
            "metrics",
            "worse_than_constant",
            "predictions",
            f"the logloss is {metrics['logloss']:.4f}, and {constant:.4f} if the positive rate {metrics['rate']:.4f} "
            "were predicted for all rows",
            f"ranking is not affected: {result['calibration']['command']}; or train with more regularization, such as "
            "a larger embedding_regularizer or net_dropout, or fewer epochs",
        )
