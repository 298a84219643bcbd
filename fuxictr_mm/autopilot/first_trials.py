"""The first trials of several models side by side: one of each, then more of each while there is time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fuxictr_mm.autopilot.clock import Clock, Journal
from fuxictr_mm.autopilot.model_study import ModelStudy
from fuxictr_mm.tuning.study_trials import StudyTrials
from fuxictr_mm.tuning.trial import Trial, TrialResult, Trials

#: Trials of each model, after which only the best model is tuned further.
FIRST_TRIALS = 3

#: Parts of the budget: more than one trial of a model may begin until the first is spent, and a model's first trial if
#: it is expected to end until the second is.
COMPARING, QUICK = 0.3, 0.5

#: Part of the budget that the first trial of a model may take whose trials last longer than those of the others: it
#: would take the time of their tuning.
COSTLY = 0.15


class FirstTrials(Trials):
    """Trials as of ``run_trials``, of the studies of several models.

    The first trial of each study, with settings that suit the data, says more than one more of another model, so that
    all of them begin before. A model is left out if its first trial would take too long, by the slowest trial so far;
    one whose trials take longer than those of the others waits for these.
    """

    def __init__(self, studies: Sequence[ModelStudy], clock: Clock, journal: Journal) -> None:
        self._studies, self._clock, self._journal = studies, clock, journal
        # Of each study that may begin its first trial alone, and once that has ended all of them.
        self._trials: dict[int, StudyTrials] = {}
        self._compared: set[int] = set()  # Those of which all may begin.
        self._left_out: set[int] = set()
        self._taken = [0] * len(studies)
        self._running: dict[str, tuple[int, float]] = {}  # Study and start of a trial by its experiment id.
        self._slowest = 0.0
        for number, study in enumerate(studies):
            if study.has_begun:  # before any begins: what these have taken tells whether it may
                self._open(number)

    @property
    def total(self) -> int:  # type: ignore[override]
        """Most trials that there can be."""
        return FIRST_TRIALS * (len(self._studies) - len(self._left_out))

    @property
    def done(self) -> bool:
        """Whether no trial remains."""
        numbers = [number for number in range(len(self._studies)) if number not in self._left_out]
        return all(number in self._compared and self._trials[number].done for number in numbers)

    def _open(self, number: int) -> None:
        """Open a study for its first trial, or for all trials if that has ended in an earlier start."""
        self._trials[number] = self._studies[number].trials(1)
        if any(result.error is None for result in self._trials[number].results()):
            self._open_all(number)

    def _open_all(self, number: int) -> None:
        """Open a study for all trials, of which none begins once the time for them is over."""
        self._trials[number] = self._studies[number].trials(FIRST_TRIALS, self._clock.until(COMPARING))
        self._compared.add(number)
        results = self._trials[number].results()
        self._taken[number] = len(results)
        self._slowest = max([self._slowest, *(each.seconds for each in results if not math.isnan(each.seconds))])

    def take(self) -> Trial | None:
        """Return the next trial to run; None if there is none at the moment."""
        for number in self._next():
            trial = self._trials[number].take()
            if trial is not None:
                self._taken[number] += 1
                self._running[trial.expid] = number, self._clock.spent
                return trial
        return None

    def _next(self) -> Iterator[int]:
        """Yield the studies that may give a trial: those without one first, then those with the fewest."""
        for number in range(len(self._studies)):
            if number not in self._compared and self._may_begin(number):
                yield number
                if self._trials[number].done:  # it has given none, because its first trial has ended
                    self._open_all(number)
        yield from sorted(self._compared, key=lambda number: self._taken[number])

    def _may_begin(self, number: int) -> bool:
        """Whether the first trial of a study may begin, or has begun in this or an earlier start; opens the study."""
        if number in self._trials:
            return True
        if number in self._left_out:
            return False
        if number:
            plan = self._studies[number].plan
            if plan.cost > 1 and not self._compared | self._left_out >= {*range(number)}:
                return False
            running = (self._clock.spent - started for _, started in self._running.values())
            expected, left = max([self._slowest, *running]) * plan.cost, self._clock.left(QUICK)
            if plan.cost > 1:
                left = min(left, COSTLY * self._clock.budget)
            if expected > left:
                self._left_out.add(number)
                why = f"a trial may take {expected:.0f} s, and {left:.0f} s are left for it"
                self._journal.tell(
                    f"{plan.model}: not tried, because {why if left > 0 else 'no time is left for a first trial'}."
                )
                return False
        self._open(number)
        return True

    def may_continue(self, trial: Trial) -> bool:
        """Whether a running trial should continue."""
        return self._trials[self._running[trial.expid][0]].may_continue(trial)

    def finish(self, trial: Trial, error: str) -> None:
        """Record that a trial's process has ended."""
        number, started = self._running.pop(trial.expid)
        self._trials[number].finish(trial, error)
        self._slowest = max(self._slowest, self._clock.spent - started)  # with the start of its process

    def give_back(self, trial: Trial) -> None:
        """Record that a trial was ended because this process ends."""
        self._trials[self._running.pop(trial.expid)[0]].give_back(trial)

    def results(self) -> list[TrialResult]:
        """Return the results of all studies so far."""
        return [result for trials in self._trials.values() for result in trials.results()]

    def compared(self) -> list[ModelStudy]:
        """Return the studies of which a trial has finished, with their results; say of which none has."""
        for number, trials in sorted(self._trials.items()):
            study = self._studies[number]
            study.keep(trials.results())
            if not study.finished:
                self._journal.tell(
                    f"{study.plan.model}: no trial has finished{f' ({study.error})' if study.error else ''}."
                )
        return [study for study in self._studies if study.finished]
