"""Training of any FuxiCTR ``BaseModel``, ours or a third party's.

Epochs, ``eval_steps``, monitor, plateau decay, early stopping and best weights at the end are as in FuxiCTR.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fuxictr_mm.config import ModelSettings
from fuxictr_mm.data.batch import num_rows
from fuxictr_mm.errors import ConfigError, DataError, Interrupted, UserError
from fuxictr_mm.fuxictr_imports import BaseModel
from fuxictr_mm.runtime import collect_signals, is_main
from fuxictr_mm.tables import sharded_tables
from fuxictr_mm.terminal import progress_bar
from fuxictr_mm.training import distributed
from fuxictr_mm.training.callbacks import Callback
from fuxictr_mm.training.replicas import broadcast_state, distribute, synchronize_buffers
from fuxictr_mm.training.resume import Progress, TrainingCheckpoint
from fuxictr_mm.training.scoring import evaluate

logger = logging.getLogger(__name__)

#: Steps between two reads of the loss; each one waits for the device.
LOG_STEPS = 50
#: Smallest improvement of a monitored value, as in FuxiCTR.
MIN_DELTA = 1e-6
#: Evaluations until which a learning rate is lowered early.
EARLY = 3


def fit(
    model: BaseModel,
    train: Any,
    epochs: int = 1,
    validation: Iterable[Any] | None = None,
    max_gradient_norm: float | None = None,
    checkpoint: TrainingCheckpoint | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    evaluate_first: bool = False,
) -> list[dict[str, float]]:
    """Train a model and leave it with the best weights of this run.

    Parameters
    ----------
    model : BaseModel
        Takes a step by ``train_step(batch)``.
    train : loader
        Sized, yields batches in the format of the model. To resume, it must be a ``fuxictr_mm.data.loaders.Loader``.
    epochs : int
        Largest number of passes over ``train``.
    validation : loader, optional
        Without one, the last weights are kept.
    max_gradient_norm : float, optional
        Gradients are scaled down to this L2 norm; by default the model's own setting.
    checkpoint : TrainingCheckpoint, optional
        From which a killed run resumes. With it, Ctrl-C and SIGTERM end the run after the current step.
    resume : bool
        Resume from the checkpoint, if there is one.
    callbacks : sequence of Callback
        Get loss, metrics, learning rate and speed, on the main process.
    evaluate_first : bool
        Evaluate before the first step, so that weights trained before are kept unless better ones are found.

    Returns
    -------
    list of dict
        One entry per evaluation: ``epoch``, ``step``, ``loss`` (mean training loss since the previous evaluation; not
        before the first step) and the monitored metrics.

    Raises
    ------
    UserError
        The loss or the monitored metric is not finite.
    Interrupted
        Ctrl-C or SIGTERM came; a training checkpoint has been written.
    """
    if epochs < 1:
        raise ConfigError(f"epochs is {epochs}, expected 1 or more")
    fitting = _Fitting(model, train, epochs, validation, checkpoint, callbacks if is_main() else ())
    if max_gradient_norm is None:
        max_gradient_norm = getattr(model, "_max_gradient_norm", ModelSettings().max_gradient_norm)
    model._max_gradient_norm = max_gradient_norm
    distribute(model)
    signals: AbstractContextManager[list[int]] = nullcontext([]) if checkpoint is None else collect_signals()
    with fitting, signals as received:
        fitting.begin(resume)
        if evaluate_first and not fitting.progress.step:
            fitting.evaluate(-1, 0)
        while fitting.progress.epoch < epochs and not model._stop_training:
            fitting.train_epoch(received)
        if checkpoint is not None:
            checkpoint.end()
    if model._stop_training:
        logger.info(f"Stopped early: no improvement for {model._early_stop_patience} evaluations")
    if not fitting.progress.saved:
        synchronize_buffers(model)
        with _averaged(model):
            _save_weights(model)
    logger.info(f"Best weights: {model.checkpoint}")
    if sharded_tables(model):
        distributed.total(0.0)  # wait until the file is complete
        model.load_weights(model.checkpoint)
    elif is_main():
        model.load_weights(model.checkpoint)
    broadcast_state(model)
    return fitting.progress.history


@dataclass
class _Fitting:
    """One call of ``fit``: the model, its loaders, and their progress."""

    model: BaseModel
    train: Any
    epochs: int
    validation: Iterable[Any] | None
    checkpoint: TrainingCheckpoint | None
    callbacks: Sequence[Callback]

    def __post_init__(self) -> None:
        self.batches = len(self.train)
        self.eval_steps = 0
        shard = getattr(self.train, "shard", None)
        streams = None if shard is None else shard.streams
        self.progress = Progress(streams, getattr(self.train, "global_size", None))
        self.losses = _RunningLoss()
        self.speed = _Speed()
        self.must_save = False

    def __enter__(self) -> _Fitting:
        return self

    def __exit__(self, *_: object) -> None:
        for callback in self.callbacks:
            callback.close()

    def begin(self, resume: bool) -> None:
        """Set the model's counters to the start, or to those of the training checkpoint."""
        model = self.model
        # Some models update only every few batches: gradients of earlier use are cleared.
        model.optimizer.zero_grad()
        if getattr(model, "average", None) is not None:
            model.average.begin()
        streams = self.progress.streams
        if self.checkpoint is not None:
            found = self.checkpoint.load(model) if resume else None
            if found is not None:
                if found.streams != streams:
                    raise UserError(
                        f"{self.checkpoint.path}: is of a run with streams: {found.streams}, but this run "
                        f"has streams: {streams}; restore that setting, or start again without --resume"
                    )
                self.progress = found
                if found.global_size not in (None, self.train.global_size):
                    self.train.global_size = found.global_size
                    logger.info(f"{found.global_size} rows per step, as before the interruption")
                self.train.start_at(found.epoch, found.row)
                self.batches = found.batch + len(self.train.sizes(found.row))
                logger.info(f"Resumed at epoch {found.epoch + 1}, batch {found.batch} of {self.batches}")
            else:
                self.checkpoint.remove()
        self.eval_steps = model._eval_steps or len(self.train)
        progress = self.progress
        self.losses = _RunningLoss(_own_loss(progress.loss), progress.losses)
        model.valid_gen = self.validation
        worst = math.inf if model._monitor_mode == "min" else -math.inf
        model._best_metric = worst if progress.best is None else progress.best
        model._stopping_steps = progress.worse
        model._total_steps = progress.step
        model._batch_index = progress.batch
        model._epoch_index = progress.epoch
        model._stop_training = progress.worse >= model._early_stop_patience
        model._steps_per_epoch = self.batches
        model._planned_steps = self.epochs * len(self.train)
        for line in without_effect(model):
            logger.warning(line)
        for callback in self.callbacks:
            callback.begin(progress.step)
        self.speed = _Speed()
        logger.info(f"Training: {len(self.train)} batches per epoch, evaluation every {self.eval_steps}")

    def train_epoch(self, received: Sequence[int]) -> None:
        """Train to the end of the epoch, evaluating where it is due; stop when a signal was received."""
        model, progress = self.model, self.progress
        epoch, first = progress.epoch, progress.batch
        model._epoch_index = epoch
        model.train()
        started, rows = time.perf_counter(), 0
        title = f"epoch {epoch + 1}/{self.epochs}"
        with progress_bar(self.train, title, model._verbose, first, self.batches) as bar:
            for index, batch in enumerate(bar, start=first):
                model._batch_index = index
                model._total_steps += 1
                with _reported(epoch, index):
                    self.losses.add(model.train_step(batch))
                if model._total_steps == 1:  # a model that computes nan is found at once
                    self.losses.check(epoch, index)
                rows += num_rows(batch)
                self.speed.rows += num_rows(batch)
                progress.batch, progress.step = index + 1, model._total_steps
                progress.row = getattr(self.train, "row", 0)
                if index % LOG_STEPS == LOG_STEPS - 1:
                    loss = self.losses.check(epoch, index)
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                    for callback in self.callbacks:
                        callback.add_training(model._total_steps, {"loss": loss})
                evaluated = model._total_steps % self.eval_steps == 0
                if evaluated:
                    self.evaluate(epoch, index)
                self.keep_state(epoch, index, evaluated, received)
                if model._stop_training:
                    break
        self.losses.check(epoch, model._batch_index)
        seconds = time.perf_counter() - started
        rows = int(distributed.total(rows))
        if rows:  # none after a resumption from the end of an epoch
            logger.info(
                f"epoch {epoch + 1}: {rows} rows in {seconds:.1f} s, {rows / seconds:.0f} rows/s with evaluation"
            )
        progress.epoch, progress.batch, progress.row = epoch + 1, 0, 0
        self.batches = model._steps_per_epoch = len(self.train)

    def evaluate(self, epoch: int, index: int) -> None:
        """Log the loss, evaluate, and save, reduce the learning rate or stop."""
        model, progress = self.model, self.progress
        loss = distributed.total(self.losses.check(epoch, index)) / distributed.size()
        self.losses = _RunningLoss()
        losses = {"loss": loss} if model._total_steps else {}  # initial weights have none
        if losses:
            logger.info(f"epoch {epoch + 1}, step {model._total_steps}: train loss {loss:.6f}")
        else:
            logger.info("Before training, with the initial weights:")
        if self.validation is None:
            return
        training = {**losses, "learning_rate": model.optimizer.param_groups[0]["lr"]}
        if losses:
            training["rows_per_second"] = self.speed.read()
        synchronize_buffers(model)
        with _averaged(model):
            metrics = evaluate(model, self.validation, model._monitor.get_metrics())
            progress.history.append({"epoch": epoch + 1, "step": model._total_steps, **losses, **metrics})
            for callback in self.callbacks:
                callback.add_evaluation(epoch + 1, model._total_steps, training, metrics)
            progress.saved |= _keep_best(model, metrics, len(progress.history))
        progress.best, progress.worse = model._best_metric, model._stopping_steps
        model.train()
        self.speed = _Speed()

    def keep_state(self, epoch: int, index: int, evaluated: bool, received: Sequence[int]) -> None:
        """Write the training checkpoint where it is due, and stop when a process has received a signal."""
        if self.checkpoint is None:
            return
        signal, due = distributed.largest(*received[:1] or [0], self.checkpoint.is_due(self.progress.step))
        self.must_save |= bool(evaluated or signal or due)
        # Between two updates, every process has gradients of its own.
        if self.must_save and not getattr(self.model, "is_accumulating", False):
            self.must_save = False
            loss, self.progress.losses = self.losses.read()
            self.progress.loss = distributed.gather_rows(torch.tensor([loss], dtype=torch.float64)).tolist()
            synchronize_buffers(self.model)
            self.checkpoint.save(self.model, self.progress)
        if signal and not self.must_save:
            self.checkpoint.wait()
            where = f"epoch {epoch + 1}, batch {index + 1} of {self.batches}"
            raise Interrupted(f"stopped at {where}; the same command with --resume continues", int(signal))


def without_effect(model: BaseModel) -> list[str]:
    """Return a line for each training setting that has no effect within the planned steps."""
    if not isinstance(settings := getattr(model, "model_settings", None), ModelSettings):
        return []
    steps, found = model._planned_steps, []
    if settings.eval_steps is not None and settings.eval_steps > steps:
        found.append(
            f"eval_steps is {settings.eval_steps}, but training has {steps} steps: there is no evaluation "
            "during training, and the last weights are kept"
        )
    if settings.warmup_steps >= steps:
        found.append(
            f"warmup_steps is {settings.warmup_steps}, but training has {steps} steps: the learning rate only increases"
        )
    if settings.swa_start is not None and settings.swa_start >= (updates := steps // settings.accumulation_steps):
        found.append(f"swa_start is {settings.swa_start}, but training has {updates} updates: no weights are averaged")
    if 1 < settings.plateau_patience >= settings.early_stop_patience:
        found.append(
            f"plateau_patience is {settings.plateau_patience}, but training stops after early_stop_patience: "
            f"{settings.early_stop_patience} evaluations without improvement: the learning rate is never reduced"
        )
    if not settings.sync_batch_norm and not any(isinstance(module, _BatchNorm) for module in model.modules()):
        found.append("sync_batch_norm is False, but the model has no batch norm")
    return found


@contextmanager
def _reported(epoch: int, index: int) -> Iterator[None]:
    """Turn what batch norm raises of a single sample into an error of one line."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            f"epoch {epoch + 1}, batch {index + 1}: batch norm has one value per channel (one row, or one "
            "item in all histories), whose variance is undefined; set a larger batch_size, or another "
            "activation than Dice"
        ) from error


def _own_loss(losses: Sequence[float]) -> float:
    """Return the loss of this process, of those of a checkpoint; their mean if another number of processes wrote it."""
    return losses[distributed.rank()] if len(losses) == distributed.size() else sum(losses) / len(losses)


class _RunningLoss:
    """Mean loss since the last evaluation, summed on the device and read only on demand."""

    def __init__(self, total: float = 0.0, steps: int = 0) -> None:
        self.total: Tensor | float = total
        self.steps = steps

    def add(self, loss: Tensor) -> None:
        self.total = self.total + loss.detach()
        self.steps += 1

    def read(self) -> tuple[float, int]:
        return float(self.total), self.steps

    def check(self, epoch: int, index: int) -> float:
        value = float(self.total) / self.steps if self.steps else 0.0
        if not math.isfinite(value):
            advice = "check the model and" if epoch == index == 0 else "lower learning_rate, or check"
            raise UserError(
                f"the training loss is {value} by epoch {epoch + 1}, batch {index + 1}; "
                f"{advice} the features for extreme values"
            )
        return value


class _Speed:
    """Samples of this process per second since its creation."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.rows = 0

    def read(self) -> float:
        """Return the samples of all processes per second."""
        return distributed.total(self.rows) / (time.perf_counter() - self.started)


def _averaged(model: BaseModel) -> AbstractContextManager[None]:
    """Give a model the average of its weights for the duration of a block, if it keeps one (``ema``)."""
    average = getattr(model, "average", None)
    return nullcontext() if average is None else average.applied()


def _keep_best(model: BaseModel, metrics: dict[str, float], num_evaluations: int) -> bool:
    """Save better weights, lower the learning rate and stop as FuxiCTR does; return whether weights were saved.

    ``num_evaluations`` is their number so far, this one included.
    """
    missing = [name for name in model._monitor.get_metrics() if name not in metrics]
    if missing:  # counts as 0 for FuxiCTR, and the first weights would stay the best
        raise UserError(f"monitor: {missing[0]} is not among the validation metrics ({metrics}); set another monitor")
    value = model._monitor.get_value(metrics)
    if not math.isfinite(value):
        raise UserError(
            f"the monitored value is {value} ({metrics}); expected a finite number, to select the best weights"
        )
    if type(model).checkpoint_and_earlystop is not BaseModel.checkpoint_and_earlystop:
        # A FuxiCTR model with a method of its own, for example to reduce the learning rate by another factor.
        before = model._best_metric
        model.checkpoint_and_earlystop(metrics)
        return model._best_metric != before or not model._save_best_only
    sign = 1 if model._monitor_mode == "max" else -1
    better = sign * value >= sign * model._best_metric + MIN_DELTA
    if better:
        model._best_metric = value
        model._stopping_steps = 0
        logger.info(f"Better: monitor {value:.6f}")
    else:
        model._stopping_steps += 1
        logger.info(f"No better: monitor {value:.6f}, best {model._best_metric:.6f}")
        if model._reduce_lr_on_plateau and model._stopping_steps % getattr(model, "plateau_patience", 1) == 0:
            is_early = num_evaluations <= EARLY and getattr(model, "plateau_patience", None) == 1
            hint = "; plateau_patience: 2 with early_stop_patience: 3 waits longer" if is_early else ""
            logger.info(f"Learning rate reduced to {model.lr_decay():.2e}{hint}")
        model._stop_training = model._stopping_steps >= model._early_stop_patience
    save = better or not model._save_best_only
    if save:
        _save_weights(model)
    return save


def _save_weights(model: BaseModel) -> None:
    """Write the weights on the main process; the others send their part of sharded tables."""
    if is_main() or sharded_tables(model):
        model.save_weights(model.checkpoint)
