"""The trained experiment that is diagnosed: its configuration, its weights and its run."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.files import StrPath

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.runs import Run, RunPaths

logger = logging.getLogger(__name__)

#: Settings of a run that this command replaces.
OWN_KEYS = frozenset({"gpu", "data_root", "model_root", "verbose"})


@dataclass(frozen=True)
class Trained:
    """A trained experiment: weights, name, evaluations and settings of their run, and the file for its diagnosis."""

    experiment: Experiment
    weights: Path
    run: str | None
    output: Path
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def find_trained(
    expid: str, *, run: str | None = None, weights: StrPath | None = None, test_data: str | None = None, **where: Any
) -> Trained:
    """Return configuration and weights of an experiment; ``where`` is as of ``Experiment.load``.

    They are those of a run by its name or folder; of the newest finished one by default, and without any the
    experiment's newest weights. Other ``weights`` without ``run`` belong to no run, and the configuration is the
    folder's.

    Raises
    ------
    ConfigError, MissingFileError
        The configuration is wrong; no such run, no such file.
    """
    from fuxictr_mm.config import PATH_KEYS
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.runs import DIAGNOSIS, weights_of

    own: dict[str, Any] = {} if test_data is None else {"test_data": test_data}
    experiment = Experiment.load(expid, **where, **own)
    found = _find_run(experiment.paths, run) if run or not weights else None
    if found is not None and found.config:
        # The configuration of the run is used; its paths are those of the folder, because files may have moved.
        settings = {k: v for k, v in found.config.items() if k not in (*PATH_KEYS, *OWN_KEYS)}
        experiment = Experiment.load(expid, **where, **{**settings, **own})
    if weights is not None:
        path, remedy = weights_of(weights, experiment.config.model_root), ""
    elif found is not None:
        path, remedy = found.weights, "the weights of this run were deleted; give others by --weights"
    else:
        path = experiment.paths.weights
        remedy = f"{expid} is not trained; give a file by --weights, or train first: {experiment.command('train')}"
    if not path.exists():
        raise MissingFileError(f"{path}: no such file, {remedy}")
    output = experiment.paths.diagnosis if found is None else found.path / DIAGNOSIS
    if found is None:
        return Trained(experiment, path, None, output)
    history = found.history() if weights is None else []
    return Trained(experiment, path, found.run, output, history, found.config)


def _find_run(paths: RunPaths, name: str | None) -> Run | None:
    """Return the run of this name, or the newest finished one, None without any."""
    from fuxictr_mm.runs import find_runs, left_out, present_first, read_run, resolve_one

    root, expid = paths.model_root, paths.expid
    is_folder = name is not None and os.sep in name and Path(name).is_dir()
    if name is not None and is_folder:
        runs = [read_run(name)]
    elif name is not None:
        runs = resolve_one(name, find_runs(root), root)
    else:
        runs = [run for run in find_runs(root, dataset=paths.dataset_id, expid=expid) if run.finished]
        if not runs:
            return None
    run = present_first(runs)[0]
    if newer := left_out(runs, run):
        logger.warning(f"{run.path} is diagnosed; {newer}")
    if name is None:
        return run
    if run.problem:
        raise ConfigError(f"--run {name}: {run.problem}")
    if run.expid != expid:
        raise ConfigError(f"--run {name}: is a run of {run.expid}, expected a run of {expid}; give --expid {run.expid}")
    return run
