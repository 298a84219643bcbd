"""How a head is trained; known without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fuxictr_mm.errors import ConfigError

#: The head that sees all modalities.
JOINT = "joint"


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a head is trained.

    Parameters
    ----------
    temperature : float
        Tau; the smaller, the more the nearest negatives count.
    batch_size : int
        Pairs of a step.
    steps : int
        The most there are.
    evaluate_every : int
        Steps from one evaluation to the next.
    patience : int
        Evaluations without a better recall until it stops.
    learning_rate, weight_decay : float
        Of AdamW.
    held_out : float
        Share of items whose pairs, with whatever item, are kept for evaluation.
    recall_at : int
        How many nearest items an evaluation looks at.
    seed : int
        Of weights, held-out items and pairs.
    """

    temperature: float = 0.3
    batch_size: int = 512
    steps: int = 2000
    evaluate_every: int = 50
    patience: int = 5
    learning_rate: float = 1e-3
    weight_decay: float = 3.0
    held_out: float = 0.1
    recall_at: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "evaluate_every", "patience", "recall_at", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"align: {name} is {getattr(self, name)}, expected at least 1")
        for name in ("temperature", "learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"align: {name} is {value}, expected a number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"align: weight_decay is {self.weight_decay}, expected 0 or more")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"align: held_out is {self.held_out}, expected a share between 0 and 1")
