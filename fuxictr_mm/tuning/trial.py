"""A trial, its result, and sources of trials."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fuxictr_mm.checking import SettingsError
from fuxictr_mm.files import InheritedLock
from fuxictr_mm.runs import RunPaths, monitored

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment

Loaded = TypeVar("Loaded")

FOLLOWED_KEYS = ("model_id", "dataset_id")  # names derived from the settings


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial."""

    expid: str  #: Experiment id.
    params: dict[str, Any]  #: Its parameters: the monitor and its mode, and at least those that are tuned.
    #: Metrics; empty where there are none.
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan  #: Wall time; NaN if it failed.
    error: str | None = None  #: Last line of the output of a trial that failed.
    skipped: bool = False  #: Whether it had finished before.
    pruned: bool = False  #: Whether it was ended early; ``valid`` is its last evaluation.

    @property
    def state(self) -> str:
        """``finished``, ``pruned`` or ``failed``."""
        return "failed" if self.error is not None else "pruned" if self.pruned else "finished"

    @property
    def reached(self) -> float:
        """The monitored metric, or weighted sum of metrics, on valid; NaN if it is missing."""
        return monitored(self.params, self.valid)

    @property
    def score(self) -> float:
        """``reached``, such that higher is better; -inf if it is missing."""
        value = self.reached
        return -math.inf if math.isnan(value) else -value if self.params["monitor_mode"] == "min" else value


@dataclass(frozen=True)
class Trial:
    """An experiment that is checked and ready to run."""

    expid: str  #: Experiment id.
    experiment: Experiment | None = None  #: What is trained; None if its settings are invalid.
    config_dir: Path = Path()  #: The folder of its configuration.
    lock: InheritedLock | None = None  #: Protects its files from other processes.
    number: int = -1  #: Of the trial in its study.
    arguments: tuple[str, ...] = ()  #: More arguments for the script.
    name: str = ""  #: Name of its log; the experiment id if empty.

    @cached_property
    def params(self) -> dict[str, Any]:
        """Resolved parameters, none if they are invalid."""
        return {} if self.experiment is None else self.experiment.config.to_dict()

    @property
    def paths(self) -> RunPaths:
        """Where its files are."""
        assert self.experiment is not None
        return self.experiment.paths

    def result(self, skipped: bool = False) -> TrialResult | None:
        """Return the result on disk; None if there is none with exactly these parameters, model file and data."""
        found = None if self.experiment is None else self.experiment.finished.result()
        if found is None:
            return None
        return TrialResult(self.expid, self.params, found.valid, found.test, found.seconds, skipped=skipped)

    def release(self) -> None:
        """Release the lock on its files."""
        if self.lock is not None:
            self.lock.release()


def best_first(results: Iterable[TrialResult]) -> list[TrialResult]:
    """Return the trials that have finished with a number, best first."""
    found = [result for result in results if result.state == "finished" and result.score > -math.inf]
    return sorted(found, key=lambda result: -result.score)


def load_each(names: Iterable[str], load: Callable[[str], Loaded], where: str) -> list[Loaded]:
    """Return what ``load`` returns of the experiments of several trials.

    Raises
    ------
    ConfigError
        Settings are invalid; one line lists each problem once, with the first trial that has it.
    """
    loaded, problems = list[Loaded](), dict[str, str]()
    for name in names:
        try:
            loaded.append(load(name))
        except SettingsError as error:
            problems = {**{sentence: f"{name}: {sentence}" for sentence in error.problems.values()}, **problems}
    if problems:
        raise SettingsError(where, problems)
    return loaded


def warn_of_changed_data(changed: Iterable[str | None], what: str) -> None:
    """Print which data has changed since trials (``what``: trial, seed or fold) were trained, a line each."""
    for path in sorted({path for path in changed if path is not None}):
        print(f"{path} has changed since {what}s were trained; they are trained again", file=sys.stderr)


class Trials(Protocol):
    """Source of trials, and receiver of their results."""

    total: int

    @property
    def done(self) -> bool:
        """Whether no trial remains, now or later; called after ``take``."""

    def take(self) -> Trial | None:
        """Return a locked trial to run; None if there is none at the moment."""

    def may_continue(self, trial: Trial) -> bool:
        """Whether a running trial should continue; polled."""
        return True

    def finish(self, trial: Trial, error: str) -> None:
        """Record that a trial's process has ended; ``error`` is the reason if there is no result."""

    def give_back(self, trial: Trial) -> None:
        """Record that a trial was ended because this process ends; it resumes later."""
        return None

    def results(self) -> list[TrialResult]:
        """Return the results so far."""
