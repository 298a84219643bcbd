"""A grid of experiments: written to a configuration folder, and run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fuxictr_mm.config import checkpoint_hash, config_hash, list_experiments
from fuxictr_mm.data.fingerprint import data_hashes
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.files import try_lock
from fuxictr_mm.training.resume import hashes_of_data, mismatch, newest_checkpoint, read_content
from fuxictr_mm.tuning.runner import run_trials
from fuxictr_mm.tuning.source import AS_CONFIGURED, Source
from fuxictr_mm.tuning.trial import Trial, TrialResult, Trials, load_each, warn_of_changed_data
from fuxictr_mm.tuning.tuner_file import read_tuner
from fuxictr_mm.yaml_files import write_entries


def enumerate_trials(tuner_yaml: Path, model_zoo: Path | None = None) -> Path:
    """Write the experiments of a grid as a configuration folder named after the tuner YAML, and return it.

    Its experiments are ``BASE_001_<hash>`` ...; in ``tuner_space`` lists span the grid, a scalar replaces one value.

    Raises
    ------
    ConfigError, MissingFileError
        The file is wrong, or asks for another search.
    """
    tuner = read_tuner(tuner_yaml, model_zoo)
    if tuner.search != "grid":
        raise ConfigError(f"{tuner_yaml}: search is {tuner.search}, expected grid; only a grid can be enumerated")
    space = {key: values for key, values in tuner.space.items() if isinstance(values, list)}
    in_dataset = tuner.dataset_keys

    datasets = {}
    for combination in _combinations(tuner.dataset, {key: space[key] for key in space if key in in_dataset}):
        datasets[f"{tuner.dataset_id}_{config_hash(combination)[:8]}"] = combination
    if len(datasets) == 1:
        datasets = {tuner.dataset_id: next(iter(datasets.values()))}
    models = _combinations(tuner.model, {key: space[key] for key in space if key not in in_dataset})
    experiments = {}
    for number, (settings, (used_id, data)) in enumerate(itertools.product(models, datasets.items()), start=1):
        entry = {**settings, "dataset_id": used_id}
        experiments[f"{tuner.name}_{number:03d}_{config_hash({**entry, **data})[:8]}"] = entry

    write_entries(tuner.folder / "dataset_config.yaml", datasets, tuner.path)
    write_entries(tuner.folder / "model_config.yaml", experiments, tuner.path)
    return tuner.folder


def _combinations(base: Mapping[str, Any], space: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    grid = {**{key: [value] for key, value in base.items()}, **space}
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def run_grid(
    config_dir: Path,
    gpus: Sequence[int],
    tag: str | None,
    script: Path | None,
    source: Source = AS_CONFIGURED,
    quiet: bool = False,
) -> list[TrialResult]:
    """Run the experiments of a folder that have not finished yet, and return the results in the order of the folder.

    Ctrl-C and SIGTERM end the running trials; when the grid is run again, finished ones are skipped and interrupted
    ones resume. Several processes on one folder divide the trials among them. The output of trial X goes to
    ``logs/X.out``; ``tag`` keeps the experiment ids that contain it; ``gpus`` and others are as of ``run_trials``.

    Raises
    ------
    ConfigError, MissingFileError
        The tag matches nothing, a trial's configuration is wrong, or a device or the script does not exist; before any
        trial runs.
    """
    trials = _Grid(config_dir, tag, source)
    if not quiet:
        experiments = [trial.experiment for trial in trials.waiting if trial.experiment is not None]
        warn_of_changed_data((one.finished.outdated() for one in experiments), "trial")
    run_trials(trials, gpus, script, source.arguments, quiet)
    return trials.results()


class _Grid(Trials):
    """The experiments of a configuration folder."""

    def __init__(self, config_dir: Path, tag: str | None, source: Source) -> None:
        names = list(list_experiments(config_dir))
        kept = [name for name in names if tag is None or tag in name]
        if not kept:
            listing = ", ".join(names)
            raise ConfigError(f"{config_dir}: no experiment id contains the tag '{tag}' (there are: {listing})")
        load = partial(source.load, config=config_dir)
        trials = [Trial(each.config.expid, each, Path(config_dir)) for each in load_each(kept, load, str(config_dir))]
        self.total = len(trials)
        self._locks = Path(config_dir) / "locks"
        self._results = {trial.expid: trial.result(skipped=True) for trial in trials}
        self.waiting = [trial for trial in trials if self._results[trial.expid] is None]

    @property
    def done(self) -> bool:
        return not self.waiting

    def take(self) -> Trial | None:
        for trial in list(self.waiting):
            lock = try_lock(self._locks / f"{trial.expid}.lock")
            if lock is None:
                continue  # another process runs it
            self.waiting.remove(trial)
            self._results[trial.expid] = trial.result(skipped=True)
            if self._results[trial.expid] is None:
                return replace(trial, lock=lock, arguments=("--resume",) if _is_interrupted(trial) else ())
            lock.release()
        return None

    def finish(self, trial: Trial, error: str) -> None:
        self._results[trial.expid] = trial.result() or TrialResult(trial.expid, trial.params, error=error)

    def results(self) -> list[TrialResult]:
        return [result for result in self._results.values() if result is not None]


def _is_interrupted(trial: Trial) -> bool:
    """Whether a trial has a training checkpoint of these very settings, model file and data."""
    assert trial.experiment is not None
    try:
        newest = newest_checkpoint(trial.paths.checkpoint)
        if newest is None:
            return False  # without a look at the data, which takes long
        found = read_content(newest)
    except UserError:  # damaged, or of another version
        return False
    data = hashes_of_data(trial.params, data_hashes(trial.params))
    hashes = [checkpoint_hash(trial.params, in_memory) for in_memory in (True, False)]
    return mismatch(found, hashes, trial.experiment.model_code, data) is None
