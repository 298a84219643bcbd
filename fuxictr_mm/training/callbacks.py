"""Callbacks of the training loop: the files in the folder of a run, TensorBoard's event files."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from fuxictr_mm import __version__
from fuxictr_mm.config import as_json, config_hash
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.files import write_beside, write_json
from fuxictr_mm.runs import (
    CONFIG,
    ENVIRONMENT,
    LOG,
    METRICS,
    PREDICTIONS,
    RESULT,
    TENSORBOARD,
    VOCABULARY,
    WEIGHTS,
    Predictions,
    RunPaths,
    read_lines,
    runs_of,
    vocabulary_of_weights,
)
from fuxictr_mm.runtime import device_of
from fuxictr_mm.training import distributed
from fuxictr_mm.training.resume import newest_checkpoint
from fuxictr_mm.yaml_files import dump_yaml

if TYPE_CHECKING:
    from fuxictr_mm.training.scoring import Scored


logger = logging.getLogger(__name__)


class Callback(Protocol):
    """Receives the progress of a run without changing it; only the main process has callbacks."""

    def begin(self, step: int) -> None:
        """Start after ``step`` steps, 0 for a new run; evaluations of later steps are repeated."""

    def add_training(self, step: int, values: Mapping[str, float]) -> None:
        """Receive a value between two evaluations: ``loss``, the mean of this process since the last one."""

    def add_evaluation(
        self, epoch: int, step: int, training: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Receive an evaluation of the validation rows, in an epoch, from 1, and after ``step`` steps.

        ``training`` has ``loss``, the mean since the previous one; ``learning_rate``; ``rows_per_second``, without
        evaluations.
        Initial weights are evaluated in epoch 0, with a learning rate alone.
        """

    def close(self) -> None:
        """Write pending data, also if the run failed."""


class RunWriter:
    """Writes the folder of a run; a ``Callback`` of the training loop that ``open`` makes.

    ``started`` is the start of this process's part of the run, by ``time.perf_counter()``.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], started: float) -> None:
        self.path = path
        self.settings = settings
        self.log = path / LOG
        self.tensorboard = path / TENSORBOARD
        self._started = started
        self._seconds_before = 0.0
        self._metrics: TextIO | None = None

    @classmethod
    def open(
        cls,
        paths: RunPaths,
        settings: Mapping[str, Any],
        started: float,
        resume: bool = False,
        sources: Mapping[str, Any] | None = None,
    ) -> RunWriter:
        """Create a folder for a run, or return that of the interrupted run with the same configuration and sources.

        ``sources`` are the hashes of the model's file and of the data, by ``MODEL_CODE`` and ``DATA``.

        Raises
        ------
        ConfigError
            The folder cannot be written.
        UserError
            The disk is full.
        """
        if resume and (interrupted := _newest_interrupted(paths, settings, sources or {})):
            return cls(interrupted, settings, started)
        return cls(new_folder(paths, settings, sources or {}), settings, started)

    @property
    def seconds(self) -> float:
        """Wall time of the run; for a killed run, the time after its last evaluation does not count."""
        return self._seconds_before + time.perf_counter() - self._started

    def begin(self, step: int) -> None:
        """Start after ``step`` steps: remove later evaluations, of a new start also that of initial weights."""
        path = self.path / METRICS
        kept = [line for line in read_lines(path) if line["step"] <= step] if step and path.exists() else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        (self.path / RESULT).unlink(missing_ok=True)
        write_beside(path, lambda stream: stream.write(text.encode()))
        self._seconds_before = kept[-1].get("seconds", 0.0) if kept else 0.0
        self._metrics = path.open("a", encoding="utf-8")

    def add_training(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing: metrics.jsonl holds evaluations."""

    def add_evaluation(
        self, epoch: int, step: int, training: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Append a line to metrics.jsonl, without buffering.

        Raises
        ------
        UserError
            The disk is full.
        """
        assert self._metrics is not None
        line = {"epoch": epoch, "step": step, "seconds": round(self.seconds, 3), **training, **metrics}
        try:
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        except OSError as error:
            raise UserError(f"{self.path / METRICS}: could not be written ({error.strerror})") from error

    def close(self) -> None:
        """Close metrics.jsonl; a line that could not be written has been reported."""
        if self._metrics is not None:
            with suppress(OSError):  # of a full disk, again
                self._metrics.close()

    def finish(
        self,
        result: Mapping[str, Any],
        model: Any,
        scored: Scored,
        test: Scored | None = None,
        groups: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the files of a finished run; result.json comes last.

        The best weights of the model are at ``model.checkpoint``. ``scored`` and ``test`` have hashes of the ``groups``
        of each split that are texts.
        """
        for split, rows in (("valid", scored), ("test", test)):
            if rows is not None:
                _predictions_of(rows, (groups or {}).get(split)).write(self.path / PREDICTIONS[split], rows.tasks)
        vocabulary = vocabulary_of_weights(Path(model.checkpoint))
        if vocabulary.exists():
            _link(vocabulary, self.path / VOCABULARY)
        _link(Path(model.checkpoint), self.path / WEIGHTS)
        content = {
            **result,
            "finished_at": datetime.now().isoformat(timespec="seconds"),
            "run": self.path.name,
            "model": self.settings["model"],
            "dataset_id": self.settings["dataset_id"],
            "seed": self.settings["seed"],
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "valid_rows": len(scored.prediction),
            "description": self.settings.get("description"),
        }
        write_json(self.path / RESULT, content)


def new_folder(paths: RunPaths, settings: Mapping[str, Any], sources: Mapping[str, Any]) -> Path:
    """Create the folder of a new run with its configuration and environment; see ``RunWriter.open``."""
    started_at = datetime.now()
    path = paths.new_run(settings["seed"] or 0, started_at)
    text = dump_yaml(dict(sorted(as_json(settings).items())))
    try:
        write_beside(path / CONFIG, lambda stream: stream.write(text.encode()))
        write_json(path / ENVIRONMENT, {**environment(settings.get("gpu", -1), started_at), **sources})
    except UserError:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path


def _newest_interrupted(paths: RunPaths, settings: Mapping[str, Any], sources: Mapping[str, Any]) -> Path | None:
    wanted = config_hash(as_json(settings))
    # The newest one has its result but still a training checkpoint where it ended between the two.
    ended_late = newest_checkpoint(paths.checkpoint) is not None
    for run in runs_of(paths):
        is_same = all(run.environment.get(key, value) == value for key, value in sources.items())
        if run.config and is_same and config_hash(run.config) == wanted:
            if ended_late or not (run.path / RESULT).exists():
                return run.path
            ended_late = False
    return None


def _predictions_of(scored: Scored, texts: Any) -> Predictions:
    """Return scored rows as arrays, with groups that are texts in place of their hashes."""
    columns = (scored.label, scored.prediction.float(), scored.group)
    label, prediction, group = (None if column is None else column.cpu().numpy() for column in columns)
    assert prediction is not None
    has_texts = group is not None and texts is not None and len(texts) == len(prediction)
    return Predictions(label, prediction, texts if has_texts else group)


def _link(source: Path, target: Path) -> None:
    """Make a hard link, so that weights take their space once; a copy if the disk has no links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as weights:
            write_beside(target, lambda stream: shutil.copyfileobj(weights, stream))


def environment(gpu: int, started_at: datetime) -> dict[str, Any]:
    """Return versions, device, commit of the working directory and command of this process."""
    import numpy
    import torch

    device = device_of(gpu)
    return {
        "fuxictr_mm": __version__,
        "fuxictr": _version("fuxictr"),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        **commit(),
        "command": sys.argv,
        "started_at": started_at.isoformat(timespec="seconds"),
    }


def commit() -> dict[str, Any]:
    """Return the git commit of the working directory, and whether files differ from it; None without git."""
    head = _git("rev-parse", "HEAD")
    status = None if head is None else _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": head, "dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no repository, or one that is too large
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_installed() -> bool:
    """Whether TensorBoard is installed."""
    return importlib.util.find_spec("tensorboard") is not None


class TensorBoardLogger:
    """Writes scalars for ``tensorboard --logdir`` to the folder of a run; a ``Callback`` of the training loop.

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
        """Start after ``step`` steps; later entries of an earlier run are hidden, for 0 deleted.

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
            raise self._unwritable(error) from error

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
        try:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Write pending data; where that fails, no result is lost, and a warning says so."""
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                logger.warning(self._unwritable(error))

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.folder}: cannot be written ({error.strerror}); make it writable, or set tensorboard: False"
        )
