"""Schedule of the learning rate."""

from __future__ import annotations

import math

import torch

from fuxictr_mm.tables import Optimizers


class Schedule:
    r"""Learning rate by the number of batches done: a linear warmup, then linear or cosine decay to zero.

    .. math:: \eta_s = \eta \min(1, s / w) f(x), \quad x = \frac{s - 1 - w}{S - w}, \quad
        f_{linear} = 1 - x, \quad f_{cosine} = \frac{1 + \cos \pi x}{2}

    at batch s of S, with w batches of warmup. It has no state but the base learning rate, which the optimizer's state
    holds, so that a resumed run takes the same steps.

    ``plateau``, ``constant`` and None leave the learning rates of the optimizer as they are after the warmup.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | Optimizers, kind: str | None, warmup_steps: int) -> None:
        self.optimizer = optimizer
        self.kind = kind
        self.warmup_steps = warmup_steps
        self.is_constant = kind not in ("linear", "cosine") and warmup_steps == 0
        if not self.is_constant:
            for group in optimizer.param_groups:
                group["base_lr"] = group["lr"]

    def factor(self, step: int, total: int) -> float:
        """Return what the base learning rate is multiplied by at batch ``step``, from 1, of ``total``."""
        warmup = self.warmup_steps
        rise = min(1.0, step / warmup) if warmup else 1.0
        done = min(max((step - 1 - warmup) / max(total - warmup, 1), 0.0), 1.0)
        return rise * {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}.get(str(self.kind), 1.0)

    def set_rates(self, step: int, total: int) -> None:
        """Set the learning rates of batch ``step``, from 1, of ``total``."""
        if not self.is_constant:
            factor = self.factor(step, total)
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

    def decay(self, factor: float, least: float) -> float:
        """Multiply the learning rates by ``factor``, down to ``least``, and return the last one, as FuxiCTR does.

        A learning rate below ``least`` is not changed; FuxiCTR would increase it.
        """
        for group in self.optimizer.param_groups:
            for key in {"lr", "base_lr"} & group.keys():
                group[key] = max(group[key] * factor, min(least, group[key]))
        return float(self.optimizer.param_groups[-1]["lr"])
