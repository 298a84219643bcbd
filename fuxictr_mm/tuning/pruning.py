"""Pruning: which evaluations a running trial has reported, and whether it should end."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr_mm.runs import Result, monitored, newest_evaluations, read_evaluations
from fuxictr_mm.tuning.stored_trials import StoredTrials
from fuxictr_mm.tuning.trial import Trial
from fuxictr_mm.tuning.tuner_file import Pruning

LOOK_SECONDS = 1.0  # between reads of the evaluations of a running trial
STARTUP_TRIALS = 5  # finished trials before one is pruned


class Pruner:
    """Ends trials that are worse than the median of the others at the same evaluation; with None, no trial."""

    def __init__(self, stored: StoredTrials, pruning: Pruning | None) -> None:
        from optuna.pruners import MedianPruner

        self._stored = stored
        self._pruning = pruning
        self._median = None if pruning is None else MedianPruner(STARTUP_TRIALS, pruning.warmup + 1)

    def ends(self, trial: Trial, evaluation: Mapping[str, Any], reported: int) -> bool:
        """Whether a trial should end at an evaluation, the last one of ``reported``."""
        if self._pruning is None or self._median is None:
            return False
        warm = self._pruning.epochs
        if warm is None:
            warm = math.ceil(trial.params["epochs"] / 3)  # those that learn slowly at first get time to
        if evaluation.get("epoch", math.inf) <= warm:
            return False
        frozen = copy.copy(self._stored.get(trial.number).frozen)
        frozen.intermediate_values = {k: v for k, v in frozen.intermediate_values.items() if k <= reported}
        return self._median.prune(self._stored.study, frozen)


class Watch:
    """The evaluations of a trial that this process runs: written to the database, until the pruner ends it at one.

    That of initial weights does not count: it says nothing of the trial's settings, and other trials may have none.
    """

    def __init__(self, trial: Trial, stored: StoredTrials, pruner: Pruner) -> None:
        self._trial = trial
        self._stored = stored
        self._pruner = pruner
        self._looked = 0.0
        #: The evaluations of a failed try, which begins again, until there are others.
        self._before: tuple[Path, int] | None = None
        self.reported = 0
        self.pruned = False

    def begin_again(self) -> None:
        """Ignore the evaluations of a failed try."""
        self._before = newest_evaluations(self._trial.paths.runs)

    def go_on(self, known: int) -> None:
        """Write the first ``known`` evaluations of an earlier try again, and judge the last."""
        seen = self._evaluations()[:known]
        for evaluation in seen:
            self._store(evaluation)
        self.pruned = bool(seen) and self._pruner.ends(self._trial, seen[-1], self.reported)

    def look(self) -> None:
        """Report new evaluations, if it is time."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self.report()

    def report(self, *, ended: bool = False) -> None:
        """Report new evaluations, up to one at which the trial should end, unless it has ``ended``."""
        from optuna.exceptions import UpdateFinishedTrialError

        if self._before is not None and self._before == newest_evaluations(self._trial.paths.runs):
            return
        self._before = None
        for evaluation in self._evaluations()[self.reported :]:
            try:
                self._store(evaluation)
            except UpdateFinishedTrialError:  # elsewhere, while this machine was suspended: the next heartbeat finds it
                return
            if not ended and self._pruner.ends(self._trial, evaluation, self.reported):
                self.pruned = True
                return

    def last(self) -> Result | None:
        """Return the result at the last evaluation that was reported."""
        evaluations = self._evaluations()[: self.reported]
        if not evaluations:
            return None
        last = evaluations[-1]
        return Result({name: last[name] for name in self._trial.params["metrics"] if name in last}, last["seconds"])

    def _evaluations(self) -> list[dict[str, Any]]:
        return [line for line in read_evaluations(self._trial.paths.runs) if line.get("step") != 0]

    def _store(self, evaluation: Mapping[str, Any]) -> None:
        self.reported += 1
        self._stored.report(self._trial.number, self.reported, monitored(self._trial.params, evaluation))
