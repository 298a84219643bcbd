"""The training checkpoint: the state of a run on disk, from which a killed run resumes to the same weights."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel

from fuxictr_mm.errors import UserError
from fuxictr_mm.files import write_beside
from fuxictr_mm.runtime import is_main
from fuxictr_mm.tables import gathered_state, sharded_tables
from fuxictr_mm.training import distributed
from fuxictr_mm.training.checkpoints import read_tensors

#: Of the file; raised where an older one cannot be resumed from.
FORMAT = 3


@dataclass
class Progress:
    """State of the training loop besides the model.

    Parameters
    ----------
    epoch : int
        Current epoch, from 0.
    batch, row : int
        Batches of it that are done, and the samples that all processes took in them.
    streams : int or None
        The virtual streams that these samples came from, see ``fuxictr_mm.data.shards``.
    step : int
        Batches done since the beginning.
    best : float or None
        Best monitored value so far.
    worse : int
        Evaluations since then.
    saved : bool
        Whether this run has written its best weights.
    loss, losses : float, int
        Sum of the losses since the last evaluation, and how many.
    history : list of dict
        One entry per evaluation.
    """

    epoch: int = 0
    batch: int = 0
    row: int = 0
    streams: int | None = None
    step: int = 0
    best: float | None = None
    worse: int = 0
    saved: bool = False
    loss: float = 0.0
    losses: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class TrainingCheckpoint:
    """The training checkpoint of an experiment: weights, optimizer, random generators and progress.

    Written at each evaluation, every few minutes in between, and when a signal ends the run. A run that is killed
    resumes from the last one and repeats the same steps; on the CPU its weights are bitwise the same.

    Parameters
    ----------
    path : path
        The file, one per experiment.
    config_hash : str
        Of the experiment; a checkpoint of another configuration is refused.
    model_code : str
        Hash of the model's file; a checkpoint of another one is refused.
    every_seconds : float
        Time between two writes within an epoch.
    data : mapping of str to str
        Hashes of the files that decide the weights, by their paths; a checkpoint of others is refused.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config_hash: str,
        model_code: str = "",
        every_seconds: float = 300.0,
        data: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.config_hash = config_hash
        self.model_code = model_code
        self.every_seconds = every_seconds
        self.data = dict(data or {})
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last write was longer ago than ``every_seconds``."""
        return time.monotonic() - self._written >= self.every_seconds

    def save(self, model: BaseModel, progress: Progress) -> None:
        """Write the state atomically. All processes call it together."""
        generators = distributed.gather_rows(torch.get_rng_state().unsqueeze(0))
        on_gpu = model.device.type == "cuda"
        gpu_state = torch.cuda.get_rng_state(model.device) if on_gpu else torch.zeros(0, dtype=torch.uint8)
        gpu_generators = distributed.gather_rows(gpu_state.unsqueeze(0))
        self._written = time.monotonic()
        weights, optimizer = gathered_state(model), model.optimizer.state_dict()
        if not is_main():
            return
        state = {
            "format": FORMAT,
            "config_hash": self.config_hash,
            "model_code": self.model_code,
            "data": self.data,
            "model": weights,
            "gradients": {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
            "optimizer": optimizer,
            "generators": generators,
            "gpu_generators": gpu_generators,
            "progress": asdict(progress),
        }
        if (average := getattr(model, "average", None)) is not None:
            state["average"] = average.state()
        write_beside(self.path, lambda stream: torch.save(state, stream))

    def load(self, model: BaseModel) -> Progress | None:
        """Restore model, optimizer and random generators, and return the progress; None if there is no checkpoint.

        Raises
        ------
        UserError
            The file is damaged, of another configuration or of other data, or not visible to all processes.
        """
        found = self.path.is_file()
        if distributed.total(found) not in (0, distributed.size()):
            raise UserError(f"{self.path}: not there for all processes; model_root must be on a disk that they share")
        if not found:
            return None
        state = read_tensors(self.path, mmap=bool(sharded_tables(model)))
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise UserError(
                f"{self.path}: no training checkpoint of this version; delete it and start again without --resume"
            )
        if state["config_hash"] != self.config_hash:
            raise UserError(
                f"{self.path}: is a training checkpoint of another configuration of this experiment; "
                "restore that configuration, or start again without --resume"
            )
        if state.get("model_code", self.model_code) != self.model_code:
            raise UserError(
                f"{self.path}: is a training checkpoint of another file of the model {type(model).__name__}, or of one "
                "that has changed since; restore that file, or start again without --resume"
            )
        theirs = state.get("data", self.data)
        if changed := [path for path in self.data if theirs.get(path) != self.data[path]]:
            raise UserError(
                f"{changed[0]}: has changed since the training checkpoint {self.path} was written; restore it, or "
                "start again without --resume"
            )
        model.load_state_dict(state["model"])
        model.optimizer.load_state_dict(state["optimizer"])
        for name, parameter in model.named_parameters():
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        if (average := getattr(model, "average", None)) is not None:
            average.load(state["average"])
        # Where there are more processes than before, the new ones keep their initial state.
        if distributed.rank() < len(state["generators"]):
            torch.set_rng_state(state["generators"][distributed.rank()].clone())
            gpu_state = state["gpu_generators"][distributed.rank()].clone()
            if model.device.type == "cuda" and gpu_state.numel():
                torch.cuda.set_rng_state(gpu_state, model.device)
        return _progress(state["progress"])

    def remove(self) -> None:
        """Delete the file, if there is one."""
        if is_main():
            self.path.unlink(missing_ok=True)


def streams_of(path: Path) -> int | None:
    """Return the number of virtual streams of a training checkpoint, None if it has none or is none."""
    state = read_tensors(path, mmap=True)
    return state["progress"].get("streams") if isinstance(state, dict) and "progress" in state else None


def _progress(values: dict[str, Any]) -> Progress:
    return Progress(**{f.name: values[f.name] for f in fields(Progress)})
