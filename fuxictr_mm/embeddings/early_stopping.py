"""Training of a module until its metric on held-out data is best."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from fuxictr_mm.errors import UserError
from fuxictr_mm.terminal import progress_bar


class Schedule(Protocol):
    """The settings of ``train_until_best``."""

    @property
    def steps(self) -> int:
        """Maximum number of steps."""

    @property
    def evaluate_every(self) -> int:
        """Steps between evaluations."""

    @property
    def patience(self) -> int:
        """Evaluations without a better metric before training stops."""


@dataclass
class TrainingResult:
    """The result of training a head."""

    before: float  #: Metric of the held-out data at the start.
    after: float  #: The same, of the weights that are kept.
    steps: int  #: Step of the weights that are kept.
    history: list[float] = field(default_factory=list)  #: The metric of each evaluation.


def train_until_best(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    evaluate: Callable[[], float],
    schedule: Schedule,
    what: str,
    metric: str,
    verbose: int = 1,
) -> TrainingResult:
    """Train a module in place, and leave it with the weights of the best metric.

    ``loss`` gives the loss of a new batch, ``evaluate`` the metric, larger is better, NaN if training has diverged.
    """
    before = evaluate()
    result = TrainingResult(before, before, 0, [before])
    best = copy.deepcopy(module.state_dict())
    waited = 0
    with progress_bar(range(1, schedule.steps + 1), what, verbose) as bar:
        for step in bar:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            if step % schedule.evaluate_every and step < schedule.steps:
                continue
            found = evaluate()
            if math.isnan(found):
                raise UserError(
                    f"{what}: embeddings are not finite at step {step}; reduce --learning-rate or --weight-decay"
                )
            result.history.append(found)
            bar.set_postfix({metric: f"{found:.4f}"}, refresh=False)
            if found > result.after:
                result.after, result.steps, waited = found, step, 0
                best = copy.deepcopy(module.state_dict())
            else:
                waited += 1
                if waited == schedule.patience:
                    break
    module.load_state_dict(best)
    return result
