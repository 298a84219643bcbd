"""What the training loop tells those who write a run down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Observer(Protocol):
    """Is told how a run goes; changes nothing of it. Only the main process has observers."""

    def begin(self, step: int) -> None:
        """Go on after ``step`` steps, 0 for a new run; what was told of later ones will be told again."""

    def add_training(self, step: int, values: Mapping[str, float]) -> None:
        """Take what training looks like between two evaluations: ``loss``."""

    def add_evaluation(
        self, epoch: int, step: int, training: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Take an evaluation.

        Parameters
        ----------
        epoch : int
            The epoch that runs, from 1.
        step : int
            Steps done since the beginning.
        training : mapping
            ``loss``, the mean since the last evaluation; ``learning_rate``; ``rows_per_second``, of training alone.
        metrics : mapping
            The monitored metrics on the validation rows.
        """

    def close(self) -> None:
        """Write out what is left, also where the run failed."""
