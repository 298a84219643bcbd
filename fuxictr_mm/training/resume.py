"""Training checkpoints: the state of a run on disk, from which an interrupted run resumes to the same weights."""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fuxictr_mm.data.fingerprint import data_paths
from fuxictr_mm.errors import UserError
from fuxictr_mm.files import read_json, write_json
from fuxictr_mm.fuxictr_imports import BaseModel
from fuxictr_mm.runtime import is_main
from fuxictr_mm.tables import sharded_tables, touched_rows
from fuxictr_mm.tables.gradients import sparse_gradient
from fuxictr_mm.tables.sharded import is_distributed
from fuxictr_mm.training import distributed
from fuxictr_mm.training.tensor_files import TensorFiles, damaged, put_tensors, take_tensors

logger = logging.getLogger(__name__)

#: Of the files; raised where older ones cannot be resumed from.
FORMAT = 4
#: A checkpoint is a folder, this and the steps that are done; while it is written, it has another name.
STEP, PARTIAL = "step-", "partial"
#: All but the tensors.
CONTENT = "state.json"

#: What ``mismatch`` returns besides paths.
CONFIGURATION, MODEL_FILE = "configuration", "model file"


@dataclass
class Progress:
    """State of the training loop besides the model."""

    streams: int | None  #: The virtual streams of the training samples, see ``fuxictr_mm.data.shards``.
    global_size: int | None  #: Samples of all processes in a batch.
    epoch: int = 0  #: Current epoch, from 0.
    #: Batches of it that are done, and the samples that all processes took in them.
    batch: int = 0
    row: int = 0
    step: int = 0  #: Batches done since the beginning.
    best: float | None = None  #: Best monitored value so far.
    worse: int = 0  #: Evaluations since then.
    saved: bool = False  #: Whether this run has written its best weights.
    #: Sum of the losses since the last evaluation, of each process, and how many losses it has.
    loss: list[float] = field(default_factory=lambda: [0.0])
    losses: int = 0
    history: list[dict[str, float]] = field(default_factory=list)  #: One entry per evaluation.


@dataclass(frozen=True)
class Content:
    """All but the tensors of a checkpoint; what is None is missing in those of earlier versions."""

    config_hash: str
    progress: Progress
    state: dict[str, Any]  #: Of model, optimizer and generators, with names in place of tensors.
    model_code: str | None = None
    data: dict[str, str] | None = None  #: Hashes of the files by their paths.
    files: dict[str, str] | None = None  #: Hashes of the files of the tensors.


@dataclass(eq=False)
class TrainingCheckpoint:
    """The training checkpoints of an experiment: weights, optimizer, random generators and progress.

    Written at each evaluation, at intervals in between, and when a signal ends the run. A run that is killed resumes
    from the newest one and repeats the same steps; on the CPU its weights are bitwise the same. Any number of processes
    can resume it.

    Parameters
    ----------
    path : path
        The folder, one per experiment. A checkpoint is a folder in it, which appears when it is complete.
    config_hash : str
        Of the experiment; a checkpoint of another configuration is refused.
    model_code : str
        Hash of the model's file; a checkpoint of another one is refused.
    every_seconds : float
        Time between two writes within an epoch.
    every_steps : int, optional
        Steps between two writes.
    keep : int
        How many are kept, the newest ones.
    in_background : bool
        Write during training, from a copy.
    data : dict of str to str
        Hashes of the files that decide the weights, by their paths; a checkpoint of others is refused.
    """

    path: Path
    config_hash: str
    model_code: str = ""
    every_seconds: float = 300.0
    data: dict[str, str] = field(default_factory=dict)
    _: KW_ONLY
    every_steps: int | None = None
    keep: int = 1
    in_background: bool = False

    def __post_init__(self) -> None:
        self._written = time.monotonic()
        self._tensors = TensorFiles()

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after a step, on the clock of this process."""
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        return by_steps or time.monotonic() - self._written >= self.every_seconds

    def save(self, model: BaseModel, progress: Progress) -> None:
        """Write the state atomically. All processes call it together.

        Raises
        ------
        UserError
            The folder cannot be written or the disk is full; older checkpoints are unchanged.
        """
        self.wait()
        self._written = time.monotonic()
        partial = self.path / PARTIAL
        if is_main():  # before the exchange of the generators, which the others wait for
            shutil.rmtree(partial, ignore_errors=True)
        generators = distributed.gather_rows(torch.get_rng_state().unsqueeze(0))
        on_gpu = model.device.type == "cuda"
        gpu_state = torch.cuda.get_rng_state(model.device) if on_gpu else torch.zeros(0, dtype=torch.uint8)
        state = {
            "model": model.state_dict(),
            "gradients": {n: _gradient_of(p) for n, p in model.named_parameters() if p.grad is not None},
            "optimizer": model.optimizer.state_dict(),
            "generators": generators,
            "gpu_generators": distributed.gather_rows(gpu_state.unsqueeze(0)),
        }
        if (average := getattr(model, "average", None)) is not None:
            state["average"] = average.state()
        tensors: dict[str, Tensor] = {}
        content = Content(self.config_hash, progress, take_tensors(state, tensors), self.model_code, self.data)
        finish = functools.partial(self._finish, partial, asdict(content))  # a copy of the progress
        with self._removing_partial():
            self._tensors.save(tensors, partial, finish, self.in_background)

    @contextmanager
    def _removing_partial(self) -> Iterator[None]:
        """Remove what could not be written."""
        try:
            yield
        except UserError:
            if is_main():
                shutil.rmtree(self.path / PARTIAL, ignore_errors=True)
            raise

    def _finish(self, partial: Path, content: Mapping[str, Any], files: Mapping[str, str]) -> None:
        """Make complete files, with their hashes, the newest checkpoint, and delete old ones."""
        write_json(partial / CONTENT, {"format": FORMAT, **content, "files": files})
        partial.rename(self.path / f"{STEP}{content['progress']['step']:012}")
        for old in sorted(self.path.glob(f"{STEP}*"))[: -self.keep]:
            shutil.rmtree(old)

    def wait(self) -> None:
        """Wait until the last checkpoint is complete; raises as ``save``."""
        with self._removing_partial():
            self._tensors.wait()

    def end(self) -> None:
        """Wait for the background write after the last step of the run. All processes call it.

        A failed write is only a warning: the run is complete and is not resumed.
        """
        try:
            self.wait()
        except UserError as error:
            logger.warning(f"{error}; training is complete, so this checkpoint is not needed")

    def check(self, model: str) -> Content | None:
        """Return all but the tensors of the newest checkpoint of the class ``model``, None if there is none.

        Raises
        ------
        UserError
            It is damaged, or of another configuration, another file of the model or other data.
        """
        folder = newest_checkpoint(self.path)
        if folder is None:
            return None
        content = read_content(folder)
        differs = mismatch(content, [self.config_hash], self.model_code, self.data)
        if differs == CONFIGURATION:
            raise UserError(
                f"{self.path}: is a training checkpoint of another configuration of this experiment; "
                "restore that configuration, with its --initial_weights and --seed, or start again without --resume"
            )
        if differs == MODEL_FILE:
            raise UserError(
                f"{self.path}: is a training checkpoint of another version of the file of the model "
                f"{model}; restore that file, or start again without --resume"
            )
        if differs is not None:
            raise UserError(
                f"{differs}: has changed since the training checkpoint {self.path} was written; restore it, or "
                "start again without --resume"
            )
        return content

    def load(self, model: BaseModel) -> Progress | None:
        """Restore model, optimizer and random generators, and return the progress; None if there is no checkpoint.

        Raises
        ------
        UserError
            A file is damaged, of another configuration or of other data, or not visible to all processes.
        """
        folder = newest_checkpoint(self.path)
        if distributed.total(folder is not None) not in (0, distributed.size()):
            raise UserError(
                f"{self.path}: is not visible to all processes; set model_root to a folder on a shared disk"
            )
        content = self.check(type(model).__name__)
        if folder is None or content is None:
            return None
        spread: dict[str, Tensor] = {}
        if sharded_tables(model):
            own: dict[str, Tensor] = {}
            take_tensors({"model": model.state_dict(), "optimizer": model.optimizer.state_dict()}, own)
            spread = {name: value for name, value in own.items() if is_distributed(value)}
        state = put_tensors(content.state, self._tensors.load(folder, spread, content.files), folder)
        model.load_state_dict(state["model"])
        model.optimizer.load_state_dict(state["optimizer"])
        for name, parameter in model.named_parameters():
            parts = state["gradients"].get(name)
            parameter.grad = None if parts is None else _gradient(parameter, parts)
        if (average := getattr(model, "average", None)) is not None:
            average.load(state["average"])
        # Where there are more processes than before, the new ones keep their initial state.
        if distributed.rank() < len(state["generators"]):
            torch.set_rng_state(state["generators"][distributed.rank()].clone())
            gpu_state = state["gpu_generators"][distributed.rank()].clone()
            if model.device.type == "cuda" and gpu_state.numel():
                torch.cuda.set_rng_state(gpu_state, model.device)
        return content.progress

    def remove(self) -> None:
        """Delete all checkpoints, if there are any."""
        self.wait()
        if is_main():
            remove_checkpoints(self.path)


def hashes_of_data(settings: Mapping[str, Any], hashes: Mapping[str, Any]) -> dict[str, Any]:
    """Return what training reads, path to hash, of the hashes of all files of the flat settings."""
    paths = dict(data_paths(settings))
    return {paths[name]: value for name, value in hashes.items() if name != "test_data"}


def mismatch(content: Content, config_hashes: Collection[str], model_code: str, data: Mapping[str, Any]) -> str | None:
    """Return in what a checkpoint differs from a run: ``CONFIGURATION``, ``MODEL_FILE`` or the path of its data.

    What a checkpoint does not contain is not compared.
    """
    if content.config_hash not in config_hashes:
        return CONFIGURATION
    if content.model_code not in (None, model_code):
        return MODEL_FILE
    theirs = data if content.data is None else content.data
    return next((path for path in data if theirs.get(path) != data[path]), None)


def newest_checkpoint(path: Path) -> Path | None:
    """Return the folder of the newest complete checkpoint of an experiment, None if there is none.

    Raises
    ------
    UserError
        A file is in its place.
    """
    if path.is_file():
        raise _of_another_version(path)
    return max(path.glob(f"{STEP}*"), default=None)


def remove_checkpoints(path: Path) -> None:
    """Delete the training checkpoints of an experiment, if there are any."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # of an earlier version


def read_content(folder: Path) -> Content:
    """Return all but the tensors of a checkpoint.

    Raises
    ------
    UserError
        It is damaged, or of another version.
    """
    try:
        found = read_json(folder / CONTENT)
    except UserError as error:
        raise damaged(folder, str(error)) from error
    if found.get("format") != FORMAT:
        raise _of_another_version(folder)
    progress = found.get("progress")
    missing = [key for key in ("config_hash", "progress", "state") if key not in found]
    missing += [f.name for f in fields(Progress) if isinstance(progress, dict) and f.name not in progress]
    if missing or not isinstance(progress, dict):
        raise damaged(folder, f"{CONTENT} has no {', '.join(missing) or 'progress'}")
    progress = Progress(**{f.name: progress[f.name] for f in fields(Progress)})
    if not isinstance(progress.loss, list):  # of a version that wrote that of the main process alone
        progress.loss = [progress.loss]
    optional = {name: found.get(name) for name in ("model_code", "data", "files")}
    return Content(found["config_hash"], progress, found["state"], **optional)


def streams_of(folder: Path) -> int | None:
    """Return the number of virtual streams of a checkpoint, None if it has none."""
    return read_content(folder).progress.streams


def _gradient_of(parameter: nn.Parameter) -> Tensor | list[Tensor]:
    """Return a gradient, of a sparse one rows and values."""
    assert parameter.grad is not None
    return list(touched_rows(parameter)) if parameter.grad.is_sparse else parameter.grad


def _gradient(parameter: nn.Parameter, parts: Any) -> Tensor:
    if isinstance(parts, Tensor):
        return parts.to(parameter.device)
    return sparse_gradient(parameter, *(part.to(parameter.device) for part in parts))


def _of_another_version(path: Path) -> UserError:
    return UserError(
        f"{path}: is not a training checkpoint of this version; delete it and start again without --resume"
    )
