"""The trials of a study as a source of trials to run, which processes and machines share through its database."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from fuxictr_mm.errors import UserError
from fuxictr_mm.files import InheritedLock
from fuxictr_mm.training.resume import newest_checkpoint
from fuxictr_mm.tuning.database import open_storage, open_study
from fuxictr_mm.tuning.ownership import Locks, Owners
from fuxictr_mm.tuning.pruning import Pruner, Watch
from fuxictr_mm.tuning.sampler import Sampler
from fuxictr_mm.tuning.source import Source
from fuxictr_mm.tuning.space import number_of_points
from fuxictr_mm.tuning.stored_trials import StoredTrial, StoredTrials
from fuxictr_mm.tuning.trial import Trial, TrialResult
from fuxictr_mm.tuning.trial_files import expid_of, write_experiment
from fuxictr_mm.tuning.tuner_file import Tuner

#: The failure of each trial by number, None without one.
Failures: TypeAlias = "Mapping[int, dict[str, str] | None]"

LOOK_SECONDS = 1.0  # between reads of the database for a trial to take


class StudyTrials:
    """The trials of a study, as of ``Trials``; ``data``: hashes of the data, the rest is that of ``run_study``."""

    def __init__(
        self,
        tuner: Tuner,
        source: Source,
        data: Mapping[str, str],
        until: float = math.inf,
        failures: Failures | None = None,
    ) -> None:
        self._tuner = tuner
        self._source = source
        self._until = until
        self.total = int(min(tuner.trials, number_of_points(tuner.space)))
        self._sampler = Sampler(tuner.space, tuner.search, tuner.seed, tuner.first)
        self._locks = Locks(tuner.folder / "locks")
        with self._locks.alone():
            storage = open_storage(tuner)
            self.stored = StoredTrials(open_study(tuner, storage, source.model_zoo, data), storage, self.total)
            self._owners = Owners(self.stored, self._locks.place(), tuner.storage is not None)
        self._pruner = Pruner(self.stored, tuner.pruning)
        #: Trials that had failed before are repeated once; those that fail from now on, at the next start.
        self.failures = self.stored.failures() if failures is None else failures
        self._ran: set[int] = set()
        self._watches: dict[int, Watch] = {}
        self._look_again = 0.0
        self.done = False

    def take(self) -> Trial | None:
        """Return the next free trial, locked and sampled; None if there is none at the moment."""
        if time.monotonic() > self._until:
            self.done = True
        if self.done or time.monotonic() < self._look_again:
            return None
        while (claimed := self._claim()) is not None:
            if (trial := self._prepare(*claimed)) is not None:
                return trial
        self._look_again = time.monotonic() + LOOK_SECONDS
        return None

    def _claim(self) -> tuple[int, InheritedLock] | None:
        """Take the first free trial with its lock, and sample its point if it has none."""
        with self._locks.alone():
            trials = self.stored.all()
            for trial in trials:
                if self._is_over(trial) or trial.number in self._watches:
                    continue
                lock = self._locks.try_trial(trial.number)
                if lock is None:
                    continue  # another process runs it
                if self._make_ours(trial.number):
                    return trial.number, lock
                lock.release()
            if len(trials) == self.total:
                self.done = all(self._is_over(trial) for trial in trials)
                return None
            self.stored.add()
        return self._claim()

    def _is_over(self, trial: StoredTrial) -> bool:
        """Whether a trial has finished, or has failed since this start."""
        return trial.is_finished or (trial.error is not None and trial.error != self.failures.get(trial.number))

    def _make_ours(self, number: int) -> bool:
        """Start a trial whose lock is held, unless it runs or has finished elsewhere."""
        trial = self.stored.get(number)
        if self._is_over(trial) or (trial.is_running and not self._owners.is_abandoned(trial)):
            return False
        if not self.stored.start(trial):
            return False
        self._owners.take(number)
        if trial.error is not None:
            self.stored.note(number, "error", None)
        self._sample(number)
        return True

    def _sample(self, number: int) -> None:
        trial = self.stored.get(number)
        point = trial.point
        if point is None:
            study = self.stored.reloaded()
            others = [each.point for each in map(StoredTrial, study.get_trials(deepcopy=False)) if each.point]
            first = self._tuner.first if number == 0 else None
            point = first or self._sampler.sample(study, trial.frozen, others)
            # In one transaction, so that a killed trial has a complete point or none.
            self.stored.note(number, "point", point)
        self.stored.set_parameters(number, point, self._sampler.dimensions)

    def _prepare(self, number: int, lock: InheritedLock) -> Trial | None:
        """Write the experiment of a trial; None if it has ended already, or fails."""
        known = self.stored.get(number)
        assert known.point is not None
        expid = expid_of(self._tuner, number, known.point)
        if known.expid is None:
            self.stored.note(number, "expid", expid)
        self._ran.add(number)
        trial, error = Trial(expid, config_dir=self._tuner.folder, lock=lock, number=number), ""
        try:
            write_experiment(self._tuner.folder, self._tuner, expid, known.point)
            trial = replace(trial, experiment=self._source.load(expid, self._tuner.folder))
            watch = self._watches[number] = Watch(trial, self.stored, self._pruner)
            is_done = trial.result() is not None
            if not is_done and newest_checkpoint(trial.paths.checkpoint) is None:
                watch.begin_again()
                return trial
            watch.go_on(len(known.frozen.intermediate_values))
            if not is_done and not watch.pruned:
                return trial
        except UserError as failure:
            error = " ".join(str(failure).split())
        self.finish(trial, error)
        trial.release()
        return None

    def may_continue(self, trial: Trial) -> bool:
        """Report the evaluations of a running trial; whether it is ours still and not pruned."""
        if not self._owners.beat(trial.number):
            return False
        self._watches[trial.number].look()
        return not self._watches[trial.number].pruned

    def finish(self, trial: Trial, error: str) -> None:
        """Write what has become of a trial that is ours still."""
        self._look_again = 0.0
        result, watch = trial.result(), self._watches.pop(trial.number, None)
        if self._owners.is_lost(trial.number):
            return
        if watch is not None and result is not None and not math.isnan(result.reached):
            watch.report(ended=True)
            self.stored.finish(result, trial.number, watch.reported)
        elif watch is not None and result is None and watch.pruned:
            self.stored.prune(trial.number, watch.last())
        else:
            self.stored.fail(trial.number, f"the monitored metric is {result.reached}" if result else error)

    def give_back(self, trial: Trial) -> None:
        """Have a trial wait that this process ended."""
        if not self._owners.is_lost(trial.number):
            self.stored.let_wait(trial.number)

    def results(self) -> list[TrialResult]:
        """Return the results of the trials of all processes."""
        monitor = {key: self._tuner.setting(key) for key in ("monitor", "monitor_mode")}
        results = []
        for trial in self.stored.all():
            if not trial.is_finished and trial.error is None:
                continue
            assert trial.expid is not None
            results.append(
                TrialResult(
                    trial.expid,
                    {**monitor, **(trial.point or {})},
                    trial.reached.valid,
                    trial.reached.test,
                    trial.reached.seconds,
                    trial.error["message"] if trial.error else None,
                    skipped=trial.number not in self._ran,
                    pruned=trial.is_pruned,
                )
            )
        return results
