"""Training, evaluation and scoring of any FuxiCTR ``BaseModel``: ours, or one written for other code.

The meaning is FuxiCTR's: epochs, ``eval_steps``, the monitor, plateau decay, early stopping, best weights at the end.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.training.progress import progress

logger = logging.getLogger(__name__)

#: Steps between two looks at the loss; each look waits for the device.
LOG_STEPS = 50
MIN_DELTA = 1e-6


def fit(
    model: BaseModel,
    train: Any,
    epochs: int = 1,
    validation: Iterable[Any] | None = None,
    max_gradient_norm: float = 10.0,
) -> list[dict[str, float]]:
    """Train a model and leave it with the best weights of this run.

    Parameters
    ----------
    model : BaseModel
        Takes a step by ``train_step(batch)``.
    train : loader
        Sized, yields what the model takes.
    epochs : int
        Most passes over ``train``.
    validation : loader, optional
        Without one, the last weights are kept.
    max_gradient_norm : float
        Gradients are scaled down to this L2 norm.

    Returns
    -------
    list of dict
        One entry per evaluation: ``epoch``, ``step``, ``loss`` and the monitored metrics.

    Raises
    ------
    UserError
        The loss or the monitored metric is not finite: nothing after that could be trusted.
    """
    if epochs < 1:
        raise ConfigError(f"epochs is {epochs}, expected 1 or more")
    model.valid_gen = validation
    model._max_gradient_norm = max_gradient_norm
    model._best_metric = math.inf if model._monitor_mode == "min" else -math.inf
    model._stopping_steps = model._total_steps = model._batch_index = model._epoch_index = 0
    model._stop_training = False
    model._steps_per_epoch = len(train)
    eval_steps = model._eval_steps or len(train)
    history: list[dict[str, float]] = []
    # Weights of an earlier run must never come back as this run's best.
    saved = False
    logger.info(f"Training: {len(train)} batches per epoch, evaluation every {eval_steps}")
    # Some models step only every few batches; gradients of an earlier use must not leak in.
    model.optimizer.zero_grad()
    for epoch in range(epochs):
        model._epoch_index = epoch
        model.train()
        started, rows = time.perf_counter(), 0
        losses = _RunningLoss()
        with progress(train, f"epoch {epoch + 1}/{epochs}", model._verbose) as bar:
            for index, batch in enumerate(bar):
                model._batch_index = index
                model._total_steps += 1
                losses.add(model.train_step(batch))
                rows += _num_rows(batch)
                if index % LOG_STEPS == LOG_STEPS - 1:
                    bar.set_postfix(loss=f"{losses.check(epoch, index):.4f}", refresh=False)
                if model._total_steps % eval_steps == 0:
                    loss = losses.check(epoch, index)
                    losses = _RunningLoss()
                    logger.info(f"epoch {epoch + 1}, step {model._total_steps}: train loss {loss:.6f}")
                    if validation is not None:
                        metrics = evaluate(model, validation, model._monitor.get_metrics())
                        history.append({"epoch": epoch + 1, "step": model._total_steps, "loss": loss, **metrics})
                        saved |= _keep_best(model, metrics)
                        model.train()
                if model._stop_training:
                    break
        losses.check(epoch, model._batch_index)
        seconds = time.perf_counter() - started
        logger.info(f"epoch {epoch + 1}: {rows} rows in {seconds:.1f} s, {rows / seconds:.0f} rows/s with evaluation")
        if model._stop_training:
            logger.info(f"Stopped early: no better for {model._early_stop_patience} evaluations")
            break
    if not saved:
        model.save_weights(model.checkpoint)
    logger.info(f"Best weights: {model.checkpoint}")
    model.load_weights(model.checkpoint)
    return history


class _RunningLoss:
    """Mean loss, summed on the device and read only when asked for."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.steps = 0

    def add(self, loss: Tensor) -> None:
        loss = loss.detach()
        self.total = loss if self.total is None else self.total + loss
        self.steps += 1

    def check(self, epoch: int, index: int) -> float:
        value = float(self.total) / self.steps if self.total is not None else 0.0
        if not math.isfinite(value):
            raise UserError(
                f"the training loss is {value} by epoch {epoch + 1}, batch {index + 1}; "
                "lower learning_rate, or look for extreme values in the features"
            )
        return value


def _num_rows(batch: Any) -> int:
    """Rows of a batch in any view."""
    if isinstance(batch, tuple):
        return batch[-1].shape[0]
    if isinstance(batch, dict):
        return next(iter(batch.values())).shape[0]
    return len(batch)


def _keep_best(model: BaseModel, metrics: dict[str, float]) -> bool:
    """Save better weights, decay and stop as FuxiCTR does; return whether weights were saved."""
    value = model._monitor.get_value(metrics)
    if not math.isfinite(value):
        raise UserError(f"the monitored value is {value} ({metrics}); it cannot choose the best weights")
    sign = 1 if model._monitor_mode == "max" else -1
    better = sign * value >= sign * model._best_metric + MIN_DELTA
    if better:
        model._best_metric = value
        model._stopping_steps = 0
        logger.info(f"Better: monitor {value:.6f}")
    else:
        model._stopping_steps += 1
        logger.info(f"No better: monitor {value:.6f}, best {model._best_metric:.6f}")
        if model._reduce_lr_on_plateau:
            logger.info(f"Learning rate lowered to {model.lr_decay():.2e}")
        model._stop_training = model._stopping_steps >= model._early_stop_patience
    save = better or not model._save_best_only
    if save:
        model.save_weights(model.checkpoint)
    return save


@torch.no_grad()
def _score(
    model: BaseModel, loader: Iterable[Any], what: str, labels: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return predictions, and labels and groups if asked for, each ``(rows,)``, on the model's device."""
    model.eval()
    predictions, truths, groups = [], [], []
    with progress(loader, what, model._verbose) as bar:
        for batch in bar:
            predictions.append(model.forward(batch)["y_pred"].reshape(-1))
            if labels:
                truths.append(model.get_labels(batch).reshape(-1))
                if model.feature_map.group_id is not None:
                    groups.append(model.get_group_id(batch).reshape(-1))
    joined = [torch.cat(parts) if parts else None for parts in (predictions, truths, groups)]
    if joined[0] is None:
        raise DataError(f"{what}: no rows")
    return joined[0], joined[1], joined[2]


def evaluate(model: BaseModel, loader: Iterable[Any], metrics: Sequence[str]) -> dict[str, float]:
    """Return metrics over a loader, computed once over all rows."""
    from fuxictr_mm.evaluation.metrics import evaluate_metrics

    y_pred, y_true, groups = _score(model, loader, "evaluation", labels=True)
    result = evaluate_metrics(y_true, y_pred, metrics, groups)
    logger.info("[Metrics] " + " - ".join(f"{name}: {value:.6f}" for name, value in result.items()))
    return dict(result)


def predict(model: BaseModel, loader: Iterable[Any]) -> Tensor:
    """Return the predictions ``(rows,)`` over a loader, on the CPU, in its order."""
    return _score(model, loader, "scoring", labels=False)[0].cpu()
