"""A study: trials that Optuna samples, shared by processes and machines through a database."""

from __future__ import annotations

import copy
import math
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from fuxictr_mm.checking import SettingsError
from fuxictr_mm.config import config_hash
from fuxictr_mm.data.fingerprint import data_hashes
from fuxictr_mm.errors import ConfigError, UserError, first_line
from fuxictr_mm.files import try_lock, write_beside
from fuxictr_mm.runs import monitored, newest_evaluations, read_evaluations
from fuxictr_mm.training.resume import newest_checkpoint
from fuxictr_mm.tuning.database import open_storage, open_study, shown_url
from fuxictr_mm.tuning.runner import run_trials
from fuxictr_mm.tuning.sampler import Sampler
from fuxictr_mm.tuning.source import AS_CONFIGURED, Source
from fuxictr_mm.tuning.space import Point, check_points, number_of_points
from fuxictr_mm.tuning.trial import Trial, TrialResult, load_each
from fuxictr_mm.tuning.tuner_file import Tuner
from fuxictr_mm.yaml_files import write_entries

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


BEAT_SECONDS = 20.0
STALE_SECONDS = 180.0
LOOK_SECONDS = 1.0  # between reads of the database for a trial to take, and of the evaluations of a running one
IMPORTANCE_TRIALS = 10  # finished trials before the importance of the settings is estimated


def run_study(
    tuner: Tuner,
    gpus: Sequence[int],
    script: Path | None,
    source: Source = AS_CONFIGURED,
    quiet: bool = False,
    *,
    until: float = math.inf,
) -> tuple[list[TrialResult], dict[str, float]]:
    """Run a study until it has all its trials, one at a time on each entry of ``gpus``.

    Parameters
    ----------
    tuner : Tuner
        With ``search: random`` or ``tpe``. Its folder receives each trial's configuration and, in ``logs``, its output.
    gpus : sequence of int
        Device of each worker, -1 for the CPU; repeat an entry for several workers on one device.
    script : Path
        The script that trains an experiment, such as run_expid.py; None for ``fuxictr-mm train``.
    source : Source
        Folders that replace those of the configuration; passed on to each trial.
    quiet : bool
        No progress bar.
    until : float
        No trial begins after this time, by ``time.monotonic()``.

    Returns
    -------
    results : list of TrialResult
        One for each trial of the study, of all processes.
    importance : dict of str to float
        Fraction of the variance of the monitored metric by setting (fANOVA), largest first; empty with few trials.

    Raises
    ------
    ConfigError, MissingFileError
        The configuration, the script, a device or the database is wrong; before any trial runs.
    UserError
        The database failed later.
    """
    try:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise ConfigError(
            f'{tuner.path}: search: {tuner.search} needs Optuna; pip install "fuxictr-mm[tuning]"'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    data = _check_settings(tuner, source)
    try:
        trials = _StudyTrials(tuner, source, data, until)
        if trials.total < tuner.trials and not quiet:
            print(
                f"{tuner.path}: trials is {tuner.trials}, but the space has only {trials.total} points", file=sys.stderr
            )
        extra_args = ["--resume", *source.arguments]
        run_trials(trials, tuner.folder, gpus, script, extra_args, quiet)
        return trials.results(), trials.importance()
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = first_line(getattr(error, "orig", None) or error.__cause__ or error)
        raise UserError(
            f"{shown_url(tuner)}: the study's database failed ({reason}); results of finished trials are "
            "kept; run the same command again"
        ) from error


def _check_settings(tuner: Tuner, source: Source) -> dict[str, str]:
    """Return hashes of the data; refuse, before anything is written, a value of the space that would fail later."""
    if (tuner.folder / "model_config.yaml").exists():
        raise ConfigError(
            f"{tuner.folder}: holds model_config.yaml, perhaps of a grid; give the study another name, study: NAME"
        )
    found: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for row, point in enumerate(check_points(tuner.space)):
            names.append(f"{tuner.name}_{tuner.search}_check{row}")
            _write_experiment(Path(folder), tuner, names[-1], point)
        load = partial(source.load, config=Path(folder))
        try:
            experiments = load_each(names, load, folder)
        except UserError as error:
            kind = ConfigError if isinstance(error, SettingsError) else type(error)
            raise kind(str(error).replace(folder, str(tuner.path))) from error
        for experiment in experiments:
            for name, value in data_hashes(experiment.config.to_dict()).items():
                found.setdefault(name, set()).add(value)
    return {f"data of {name}": " ".join(sorted(values)) for name, values in found.items()}


def _write_experiment(folder: Path, tuner: Tuner, expid: str, point: Point) -> None:
    """Write the file of an experiment, and that of its dataset, which several experiments may share."""
    dataset_id, data = _dataset(tuner, point)
    entry = {**tuner.model, **{k: v for k, v in point.items() if k not in tuner.dataset_keys}, "dataset_id": dataset_id}
    write_entries(folder / "dataset_config" / f"{dataset_id}.yaml", {dataset_id: data}, tuner.path)
    write_entries(folder / "model_config" / f"{expid}.yaml", {expid: entry}, tuner.path)


def _dataset(tuner: Tuner, point: Point) -> tuple[str, dict[str, Any]]:
    keys = tuner.dataset_keys
    data = {**tuner.dataset, **{key: value for key, value in point.items() if key in keys}}
    return (f"{tuner.dataset_id}_{config_hash(data)[:8]}" if keys else tuner.dataset_id), data


@dataclass
class _Watch:
    """A trial that this process runs; ``before``: the evaluations of an earlier try, until there are others."""

    reported: int
    beaten: float
    looked: float = 0.0
    beats: int = 0
    pruned: bool = False
    before: tuple[Path, int] | None = None


class _StudyTrials:
    """The trials of a study: source and receiver of results."""

    def __init__(self, tuner: Tuner, source: Source, data: Mapping[str, str], until: float = math.inf) -> None:
        from optuna.pruners import MedianPruner

        self._tuner = tuner
        self._source = source
        self._folder = tuner.folder
        self._locks = self._folder / "locks"
        self.total = int(min(tuner.trials, number_of_points(tuner.space)))
        self._sampler = Sampler(tuner.space, tuner.search, tuner.seed)
        warmup = tuner.warmup
        self._pruner = None if warmup is None else MedianPruner(n_startup_trials=5, n_warmup_steps=warmup + 1)
        with self._alone():
            self._storage = open_storage(tuner)
            self._study = open_study(tuner, self._storage, source.model_zoo, data)
            self._study_id = self._storage.get_study_id_from_name(tuner.study)
            self._here = self._machine()
        self._ids: dict[int, int] = {}
        self._us = {"place": self._here, "process": uuid.uuid4().hex}
        # Trials that had failed before are repeated once; those that fail from now on, at the next start.
        self._retried = {trial.number: _error(trial) for trial in self._trials()}
        self._ran: set[int] = set()
        self._watches: dict[int, _Watch] = {}
        self._seen_beats: dict[int, tuple[Any, float]] = {}
        self._look_again = 0.0
        self._until = until
        self.done = False

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._locks.mkdir(parents=True, exist_ok=True)
        with FileLock(self._locks / "study.lock"):
            yield

    def _machine(self) -> str:
        """Return a name of this machine and folder; processes that share it see each other's locks."""
        path = self._locks / "place"
        if not path.exists():
            name = uuid.uuid4().hex
            write_beside(path, lambda stream: stream.write(name.encode()))
        return f"{socket.gethostname()} {path.read_text(encoding='utf-8')}"

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)[: self.total]

    def _trial(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._id(number))

    def _id(self, number: int) -> int:
        if number not in self._ids:
            self._ids[number] = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        return self._ids[number]

    def _note(self, number: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def _given_up(self, trial: FrozenTrial) -> bool:
        error = _error(trial)
        return error is not None and error != self._retried.get(trial.number)

    def take(self) -> Trial | None:
        if time.monotonic() > self._until:
            self.done = True
        if self.done or time.monotonic() < self._look_again:
            return None
        while (claimed := self._claim()) is not None:
            if (trial := self._prepare(*claimed)) is not None:
                return trial
        self._look_again = time.monotonic() + LOOK_SECONDS
        return None

    def _claim(self) -> tuple[int, Any] | None:
        """Take the first free trial with its lock, and sample its point if it has none."""
        with self._alone():
            trials = self._trials()
            for trial in trials:
                if trial.state.is_finished() or trial.number in self._watches or self._given_up(trial):
                    continue
                lock = try_lock(self._locks / f"{trial.number:04d}.lock")
                if lock is None:
                    continue  # another process runs it
                if self._make_ours(trial.number):
                    return trial.number, lock
                lock.release()
            if len(trials) == self.total:
                self.done = all(trial.state.is_finished() or self._given_up(trial) for trial in trials)
                return None
            self._study.enqueue_trial({})
        return self._claim()

    def _make_ours(self, number: int) -> bool:
        """Start a trial whose lock is held, unless it runs or has finished elsewhere."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        trial, trial_id = self._trial(number), self._id(number)
        if trial.state.is_finished() or self._given_up(trial):
            return False
        if trial.state == TrialState.RUNNING and not self._is_abandoned(trial):
            return False
        try:
            if trial.state == TrialState.RUNNING:
                self._storage.set_trial_state_values(trial_id, TrialState.WAITING)
            if not self._storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return False
        except UpdateFinishedTrialError:
            return False
        self._note(number, "owner", self._us)
        if "error" in trial.user_attrs:
            self._note(number, "error", None)
        self._sample(number)
        return True

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get("owner")
        if self._tuner.storage is None or (owner is not None and owner["place"] == self._here):
            return True  # its lock was free
        beat = (owner, trial.user_attrs.get("beat"))
        seen, since = self._seen_beats.get(trial.number, (None, 0.0))
        if seen != beat:
            self._seen_beats[trial.number] = beat, time.monotonic()
            return False
        return time.monotonic() - since > STALE_SECONDS

    def _sample(self, number: int) -> None:
        import optuna

        trial = self._trial(number)
        point = trial.user_attrs.get("point")
        if point is None:
            # Loaded again: a study caches its trials for the samplers.
            study = optuna.load_study(study_name=self._tuner.study, storage=self._storage)
            others = [t.user_attrs["point"] for t in study.get_trials(deepcopy=False) if "point" in t.user_attrs]
            first = self._tuner.first if number == 0 else None
            point = first or self._sampler.sample(study, trial, others)
            # In one transaction, so that a killed trial has a complete point or none.
            self._note(number, "point", point)
        for key, choice in self._sampler.dimensions.sampled(point).items():
            if key not in trial.params:
                distribution = self._sampler.dimensions.distributions[key]
                internal = distribution.to_internal_repr(choice)
                self._storage.set_trial_param(self._id(number), key, internal, distribution)

    def _prepare(self, number: int, lock: Any) -> Trial | None:
        """Write the experiment of a trial; None if it fails already."""
        found = self._trial(number)
        point = found.user_attrs["point"]
        dataset_id, data = _dataset(self._tuner, point)
        settings = {**self._tuner.model, **data, **point, "dataset_id": dataset_id, "study": self._tuner.study}
        expid = f"{self._tuner.name}_{self._tuner.search}_{number:04d}_{config_hash(settings)[:8]}"
        if "expid" not in found.user_attrs:
            self._note(number, "expid", expid)
        watch = self._watches[number] = _Watch(0, time.monotonic())
        self._ran.add(number)
        trial = Trial(expid, lock=lock, number=number)
        error = ""
        try:
            _write_experiment(self._folder, self._tuner, expid, point)
            experiment = self._source.load(expid, self._folder)
            trial = Trial(expid, experiment, lock, number)
            is_done = trial.result() is not None
            if not is_done and newest_checkpoint(experiment.paths.checkpoint) is None:
                watch.before = newest_evaluations(experiment.paths.runs)  # of a failed try, which begins again
                return trial
            seen = read_evaluations(experiment.paths.runs)[: len(found.intermediate_values)]
            for evaluation in seen:
                self._store(trial, watch, evaluation)
            if not is_done and not (seen and self._should_prune(trial, seen[-1])):
                return trial
        except UserError as failure:
            error = " ".join(str(failure).split())
        self.finish(trial, error)
        trial.release()
        return None

    def _should_prune(self, trial: Trial, evaluation: Mapping[str, Any]) -> bool:
        """Whether the trial should end at this evaluation, the last one reported."""
        watch, warm = self._watches[trial.number], self._tuner.warm_epochs
        if warm is None:
            warm = math.ceil(trial.params["epochs"] / 3)  # those that learn slowly at first get time to
        if self._pruner is not None and evaluation.get("epoch", math.inf) > warm:
            frozen = copy.copy(self._trial(trial.number))
            frozen.intermediate_values = {k: v for k, v in frozen.intermediate_values.items() if k <= watch.reported}
            watch.pruned = watch.pruned or bool(self._pruner.prune(self._study, frozen))
        return watch.pruned

    def may_continue(self, trial: Trial) -> bool:
        now, watch = time.monotonic(), self._watches[trial.number]
        if now - watch.beaten >= BEAT_SECONDS:
            watch.beaten = now
            if self._is_lost(trial.number):
                return False
            watch.beats += 1
            self._note(trial.number, "beat", watch.beats)
        if now - watch.looked < LOOK_SECONDS:
            return True
        watch.looked = now
        self._report(trial, watch)
        return not watch.pruned

    def _report(self, trial: Trial, watch: _Watch) -> None:
        """Report new evaluations, up to one at which the trial should end."""
        from optuna.exceptions import UpdateFinishedTrialError

        if watch.before is not None and watch.before == newest_evaluations(trial.paths.runs):
            return
        watch.before = None
        for evaluation in read_evaluations(trial.paths.runs)[watch.reported :]:
            try:
                self._store(trial, watch, evaluation)
            except UpdateFinishedTrialError:  # elsewhere, while this machine was suspended; the next heartbeat finds it
                return
            if trial.number in self._watches and self._should_prune(trial, evaluation):
                return

    def _store(self, trial: Trial, watch: _Watch, evaluation: Mapping[str, Any]) -> None:
        """Write an evaluation to the database, over that of an earlier try of the trial."""
        watch.reported += 1
        value = monitored(trial.params, evaluation)
        self._storage.set_trial_intermediate_value(self._id(trial.number), watch.reported, value)

    def _is_lost(self, number: int) -> bool:
        """Whether another machine has taken over the trial because the heartbeat of this one stopped."""
        trial = self._trial(number)
        return trial.state.is_finished() or trial.user_attrs.get("owner") != self._us

    def finish(self, trial: Trial, error: str) -> None:
        from optuna.trial import TrialState

        number = trial.number
        self._look_again = 0.0
        result = trial.result()
        lost = self._is_lost(number)
        watch = self._watches.pop(number)
        if lost:
            return
        if result is not None:
            value = monitored(trial.params, result.valid)
            if not math.isnan(value):
                self._report(trial, watch)
                for step in self._trial(number).intermediate_values:
                    if step > watch.reported:  # of an earlier try that took longer
                        self._storage.set_trial_intermediate_value(self._id(number), step, math.nan)
                self._note(number, "result", {key: getattr(result, key) for key in ("valid", "test", "seconds")})
                self._study.tell(number, value, skip_if_finished=True)
                return
            error = f"the monitored metric is {value}"
        elif watch.pruned:
            evaluations = read_evaluations(trial.paths.runs)[: watch.reported]
            if evaluations:
                valid = {name: evaluations[-1][name] for name in trial.params["metrics"] if name in evaluations[-1]}
                self._note(number, "result", {"valid": valid, "seconds": evaluations[-1]["seconds"]})
            self._study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
            return
        # Unique, so that others can distinguish it from an earlier failure of the same text.
        self._note(number, "error", {"message": error, "failure": uuid.uuid4().hex})
        self._storage.set_trial_state_values(self._id(number), TrialState.WAITING)

    def give_back(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        if not self._is_lost(trial.number):
            self._storage.set_trial_state_values(self._id(trial.number), TrialState.WAITING)

    def results(self) -> list[TrialResult]:
        from optuna.trial import TrialState

        results = []
        for trial in self._trials():
            attributes, error = trial.user_attrs, _error(trial)
            if not trial.state.is_finished() and error is None:
                continue
            reached = {} if error else attributes.get("result", {})
            monitor = {key: self._tuner.setting(key) for key in ("monitor", "monitor_mode")}
            results.append(
                TrialResult(
                    attributes["expid"],
                    {**monitor, **attributes["point"]},
                    reached.get("valid", {}),
                    reached.get("test", {}),
                    reached.get("seconds", math.nan),
                    error["message"] if error else None,
                    skipped=trial.number not in self._ran,
                    pruned=trial.state == TrialState.PRUNED,
                )
            )
        return results

    def importance(self) -> dict[str, float]:
        """Return the importance of the settings, largest first; empty if it cannot be estimated."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances
        from optuna.trial import TrialState

        finished = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        if len(finished) < IMPORTANCE_TRIALS or len({trial.value for trial in finished}) == 1:
            return {}
        return get_param_importances(self._study, evaluator=FanovaImportanceEvaluator(seed=0))


def _error(trial: FrozenTrial) -> dict[str, str] | None:
    """Return the failure of a trial that is to be repeated, None if it has not failed."""
    return None if trial.state.is_finished() else trial.user_attrs.get("error")
