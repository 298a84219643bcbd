"""Training of several seeds of an experiment in parallel processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.runs import Run
from fuxictr_mm.training.run import remove_leftover
from fuxictr_mm.tuning.runner import run_trials
from fuxictr_mm.tuning.trial import Trial, TrialResult, Trials, warn_of_changed_data

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment


@dataclass(frozen=True)
class Processes:
    """How variants of an experiment are trained, each in a process; those that run at once divide the cores."""

    config_dir: Path  #: Folder of the configuration.
    script: Path | None = None  #: The script that trains; None for ``fuxictr-mm train``.
    jobs: int | None = None  #: Maximum number of parallel processes; by default one per core, on a GPU one.
    resume: bool = False  #: Skip finished variants and continue interrupted ones.
    extra_args: Sequence[str] = ()  #: More arguments for the script.
    quiet: bool = False  #: No progress.


def train_seeds(experiment: Experiment, seeds: Sequence[int], processes: Processes) -> list[Run]:
    """Train an experiment with several different seeds, and return the runs in their order.

    Raises
    ------
    ConfigError
        A seed is given twice, or ``record`` is False.
    UserError
        A seed failed; the others have been trained.
    KeyboardInterrupt, SystemExit
        Ctrl-C or SIGTERM came; ``resume=True`` continues.
    """
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: {next(s for s in seeds if list(seeds).count(s) > 1)} is given twice; keep one")
    variants = {f"seed{seed}": (experiment.of_seed(seed), ("--seed", str(seed), "--beside")) for seed in seeds}
    return train_side_by_side(variants, experiment, processes, "seed")


def train_side_by_side(
    variants: Mapping[str, tuple[Experiment, tuple[str, ...]]], experiment: Experiment, processes: Processes, what: str
) -> list[Run]:
    """Train variants of an experiment, ``what`` is ``seed`` or ``fold``; errors are as of ``train_seeds``.

    A variant is the experiment as its process trains it, and what ``fuxictr-mm train`` takes for it besides the
    experiment id.
    """
    jobs, resume, quiet = processes.jobs, processes.resume, processes.quiet
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs is {jobs}, expected 1 or more")
    if not experiment.config.record:
        raise ConfigError(
            f"{experiment.config.expid}: record is False, but the {what}s need the folders of their runs; remove it"
        )
    gpu = experiment.config.gpu
    at_once = jobs or (1 if gpu >= 0 else os.cpu_count() or 1)
    if resume:
        for one, _ in variants.values():
            remove_leftover(one)
    trials = _Variants(variants, experiment.config.expid, processes.config_dir, resume)
    if resume and not quiet:
        warn_of_changed_data((one.finished.outdated() for one, _ in variants.values() if not one.finished.all()), what)
    logs = experiment.paths.process_logs
    options = [*(["--resume"] if resume else []), *processes.extra_args]
    try:
        gpus = [gpu] * min(at_once, len(variants))
        run_trials(trials, gpus, processes.script, options, quiet, logs=logs, what=what)
    except (KeyboardInterrupt, SystemExit):
        if not quiet:
            print("the same command with --resume continues", file=sys.stderr)
        raise
    failed = [result for result in trials.results() if result.error is not None]
    if failed:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(variants)} {what}s failed, first {first.expid}: {first.error}; see "
            f"{logs / first.expid}.out, and run the same command with --resume for the missing ones"
        )
    return trials.runs()


class _Variants(Trials):
    """Variants of an experiment."""

    def __init__(
        self,
        variants: Mapping[str, tuple[Experiment, tuple[str, ...]]],
        expid: str,
        config_dir: Path,
        resume: bool,
    ) -> None:
        self._trials = [
            Trial(expid, one, Path(config_dir), number=number, arguments=given, name=f"{expid}.{name}")
            for number, (name, (one, given)) in enumerate(variants.items())
        ]
        self._experiments = [one for one, _ in variants.values()]
        # Runs that do not count.
        self._before = [{run.run for run in one.finished.all() if not resume} for one in self._experiments]
        self._errors: dict[int, str] = {}
        self._waiting = [t for t in self._trials if self._run_of(t) is None]
        self._skipped = {t.number for t in self._trials} - {t.number for t in self._waiting}
        self.total = len(variants)

    @property
    def done(self) -> bool:
        return not self._waiting

    def take(self) -> Trial | None:
        return self._waiting.pop(0) if self._waiting else None

    def finish(self, trial: Trial, error: str) -> None:
        if self._run_of(trial) is None:
            self._errors[trial.number] = error

    def _run_of(self, trial: Trial) -> Run | None:
        """Return the run of a trial that has finished since we began."""
        number = trial.number
        runs = self._experiments[number].finished.all()
        return next((run for run in runs if run.run not in self._before[number]), None)

    def results(self) -> list[TrialResult]:
        found = []
        for trial in self._trials:
            run, error = self._run_of(trial), self._errors.get(trial.number)
            if error is not None:
                found.append(TrialResult(trial.name, trial.params, error=error))
            elif run is not None:
                skipped = trial.number in self._skipped
                found.append(TrialResult(trial.name, trial.params, run.valid, run.test, run.seconds, skipped=skipped))
        return found

    def runs(self) -> list[Run]:
        """Return the runs that have finished, in the order of the variants."""
        return [run for trial in self._trials if (run := self._run_of(trial)) is not None]
