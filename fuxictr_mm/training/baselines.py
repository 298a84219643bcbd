"""Warnings about a trained model whose validation metrics are worse than those of a constant."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch

from fuxictr_mm.metrics import auc_noise, constant_logloss

logger = logging.getLogger(__name__)

#: An AUC this many standard deviations of random scores below 0.5 is significant; rows of a user are not independent.
SURE = 3

#: What lowers a logloss that is too high, as docs/choosing_settings.md measured it.
REGULARIZE = "train with more regularization, such as a larger embedding_regularizer or net_dropout, or fewer epochs"


def warn_of_baselines(metrics: Mapping[str, float], label: torch.Tensor, tasks: Sequence[str], calibrate: str) -> None:
    """Warn if the logloss is above that of predicting the positive rate for all rows, or the AUC below 0.5.

    Parameters
    ----------
    metrics : mapping
        Metrics of the validation rows; missing ones are not checked.
    label : Tensor
        ``(rows,)`` labels 0 and 1, or ``(rows, T)`` of T labels, NaN for one that is missing.
    tasks : sequence of str
        Names of several labels; empty for one.
    calibrate : str
        Command that calibrates predictions of one label.
    """
    for task, values in zip(tasks or [""], label.view(len(label), -1).unbind(dim=1), strict=True):
        known = values[~values.isnan()]
        of = f"{task}_" if task else ""
        positives = int((known > 0).sum())
        if not 0 < positives < len(known):
            continue
        rate = positives / len(known)
        constant = constant_logloss(rate)
        name = next((n for n in (f"{of}logloss", f"{of}binary_crossentropy") if n in metrics), None)
        if name is not None and round(metrics[name] - constant, 4) > 0:
            fix = REGULARIZE if task else f"calibrate, which keeps the ranking: {calibrate}; or {REGULARIZE}"
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
