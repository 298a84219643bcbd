"""Scores and metrics of any FuxiCTR ``BaseModel`` over a loader, ours or a third party's."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fuxictr_mm.errors import DataError
from fuxictr_mm.fuxictr_imports import BaseModel
from fuxictr_mm.tables import answer_lookups
from fuxictr_mm.terminal import progress_bar
from fuxictr_mm.training import distributed

logger = logging.getLogger(__name__)


class Scored(NamedTuple):
    """Samples of a loader with their predictions, in its order, of all processes, on the device."""

    prediction: Tensor  #: ``(rows,)``, or ``(rows, T)`` of T labels.
    label: Tensor | None  #: The same, NaN for one of several labels that is missing; None if not requested.
    group: Tensor | None  #: ``(rows,)``; None if not requested, or without a ``group_id``.
    tasks: Sequence[str] = ()  #: Names of several labels; empty for one.
    kinds: Sequence[str] = ()  #: The task of each of these labels.


@torch.no_grad()
def score(
    model: BaseModel, loader: Iterable[Any], what: str = "evaluation", labels: bool = True, groups: bool = True
) -> Scored:
    """Score the samples of a loader; ``what`` names the progress bar."""
    model.eval()
    names = model.feature_map.labels
    predictions, truths, users = [], [], []
    with progress_bar(loader, what, model._verbose) as bar:
        for batch in bar:
            predictions.append(of_tasks(predictions_of(model.forward(batch), names), len(names)))
            if labels:
                truths.append(of_tasks(model.get_labels(batch), len(names)))
            if groups and model.feature_map.group_id is not None:
                users.append(model.get_group_id(batch).reshape(-1))
    answer_lookups(model)
    if not distributed.total(len(predictions)):
        raise DataError(f"{what}: no rows")
    if not predictions:  # of this process
        number = next(model.parameters())
        predictions.append(number.new_zeros((0, len(names)) if len(names) > 1 else 0))
        truths += predictions * labels
        if groups and model.feature_map.group_id is not None:
            users.append(torch.zeros(0, dtype=torch.int64, device=number.device))
    joined = [distributed.gather_rows(torch.cat(parts)) if parts else None for parts in (predictions, truths, users)]
    y_pred, y_true, group = joined
    assert y_pred is not None
    if len(names) == 1:
        return Scored(y_pred, y_true, group)
    task_of = getattr(model.feature_map, "tasks", {})
    return Scored(y_pred, y_true, group, tuple(names), [task_of.get(name, "binary_classification") for name in names])


def predictions_of(output: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return what a model predicts: one tensor, or one for each label of FuxiCTR's multi-task models."""
    return output["y_pred"] if "y_pred" in output else [output[f"{name}_pred"] for name in names]


def of_tasks(values: Tensor | Sequence[Tensor], num_tasks: int) -> Tensor:
    """Return predictions or labels as ``(B,)``, or ``(B, T)`` of several."""
    if not isinstance(values, Tensor):
        values = torch.cat([value.view(-1, 1) for value in values], dim=1)
    return values.reshape(-1) if num_tasks == 1 else values


def evaluate(model: BaseModel, loader: Iterable[Any], metrics: Sequence[str]) -> dict[str, float]:
    """Return metrics over a loader, computed once over all rows."""
    return measure(score(model, loader), metrics)


def measure(scored: Scored, metrics: Sequence[str]) -> dict[str, float]:
    """Return metrics of scored rows, and log them."""
    from fuxictr_mm.metrics import evaluate_metrics, evaluate_tasks

    if scored.tasks:
        assert scored.label is not None
        result = evaluate_tasks(scored.label, scored.prediction, metrics, scored.tasks, scored.group, scored.kinds)
    else:
        result = evaluate_metrics(scored.label, scored.prediction, metrics, scored.group)
    logger.info("[Metrics] " + " - ".join(f"{name}: {value:.6f}" for name, value in result.items()))
    return dict(result)


def predict(model: BaseModel, loader: Iterable[Any]) -> Tensor:
    """Return the predictions ``(rows,)``, or ``(rows, T)`` of T labels, over a loader, on the CPU, in its order."""
    return score(model, loader, "scoring", labels=False, groups=False).prediction.cpu()
