"""Warnings about a trained model whose validation metrics are worse than those of a constant."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from fuxictr_mm.metrics import auc_noise, constant_logloss

logger = logging.getLogger(__name__)

#: An AUC this many standard deviations of random scores below 0.5 is significant; rows of a user are not independent.
SURE = 3

#: What lowers a logloss that is too high, as docs/choosing_settings.md measured it.
REGULARIZE = "train with more regularization, such as a larger embedding_regularizer or net_dropout, or fewer epochs"


def warn_of_baselines(
    metrics: Mapping[str, float], label: torch.Tensor, tasks: Mapping[str, str], calibrate: str
) -> None:
    """Warn if metrics of the validation rows are worse than those of a constant; missing ones are not checked.

    These are a logloss above that of predicting the positive rate for all rows, an AUC below 0.5, and of a regression
    an RMSE above the standard deviation of the labels ``(rows,)``, or ``(rows, T)`` with NaN for one that is missing.
    ``calibrate`` is the command that calibrates predictions of one label.
    """
    for (task, kind), values in zip(tasks.items(), label.view(len(label), -1).unbind(dim=1), strict=True):
        known = values[~values.isnan()]
        of = f"{task}_" if len(tasks) > 1 else ""
        if kind == "regression":
            _warn_of_mean(metrics, f"{of}RMSE", known)
            continue
        positives = int((known > 0).sum())
        if not 0 < positives < len(known):
            continue
        rate = positives / len(known)
        constant = constant_logloss(rate)
        name = next((n for n in (f"{of}logloss", f"{of}binary_crossentropy") if n in metrics), None)
        if name is not None and round(metrics[name] - constant, 4) > 0:
            fix = REGULARIZE if of else f"calibrate, which keeps the ranking: {calibrate}; or {REGULARIZE}"
            logger.warning(
                f"valid: {name} {metrics[name]:.4f} is worse than {constant:.4f}, the value of predicting "
                f"the positive rate {rate:.4f} for all rows; {fix}"
            )
        noise = auc_noise(positives, len(known) - positives)
        auc = metrics.get(f"{of}AUC", 0.5)
        if auc < 0.5 - SURE * noise:
            logger.warning(
                f"valid: {of}AUC {auc:.4f} is below 0.5 by more than noise ({noise:.4f}): positives are "
                "ranked below negatives; check with fuxictr-mm check-data that the label means the same in "
                "train and valid"
            )


def _warn_of_mean(metrics: Mapping[str, float], name: str, known: torch.Tensor) -> None:
    """Warn if an RMSE is worse than that of predicting the mean of the labels for all rows."""
    deviation = known.double().std(correction=0).item() if len(known) else 0.0
    if name in metrics and metrics[name] > deviation * (1 + 1e-4):
        logger.warning(
            f"valid: {name} {metrics[name]:.4g} is worse than {deviation:.4g}, the value of predicting the mean label "
            f"{known.double().mean().item():.4g} for all rows; train longer, or on labels "
            "of standard deviation 1"
        )
