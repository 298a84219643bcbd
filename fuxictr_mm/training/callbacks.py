"""TensorBoard event files of a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fuxictr_mm.errors import ConfigError, UserError


def is_installed() -> bool:
    """Whether TensorBoard is there."""
    return importlib.util.find_spec("tensorboard") is not None


class Events:
    """Writes scalars for ``tensorboard --logdir``; an ``Observer`` of the loop.

    Parameters
    ----------
    folder : Path
        Of this run alone.

    Raises
    ------
    ConfigError
        TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if not is_installed():
            raise ConfigError('tensorboard: True needs another package: pip install "fuxictr-mm[tensorboard]"')
        self.folder = folder
        self._writer: Any = None

    def begin(self, step: int) -> None:
        """Go on after ``step`` steps; what an earlier run wrote beyond them is hidden, for 0 deleted.

        Raises
        ------
        UserError
            The folder cannot be written.
        """
        from torch.utils.tensorboard import SummaryWriter

        try:
            if step == 0:
                for old in self.folder.glob("events.out.tfevents.*"):
                    old.unlink()
            self._writer = SummaryWriter(str(self.folder), purge_step=step + 1 if step else None)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); set tensorboard: False to do without"
            ) from error

    def add_training(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of a step, named ``train/name``."""
        self._add(step, "train", values)

    def add_evaluation(
        self, epoch: int, step: int, training: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Write an evaluation, its metrics named ``valid/name``."""
        self._add(step, "train", training)
        self._add(step, "valid", metrics)

    def _add(self, step: int, group: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Write out what is left."""
        if self._writer is not None:
            self._writer.close()


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
