"""The search: models are compared with a few trials each, then the quick ones and the best are tuned."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from fuxictr_mm.autopilot.clock import Clock, Journal
from fuxictr_mm.autopilot.first_trials import QUICK, FirstTrials
from fuxictr_mm.autopilot.folder import Request
from fuxictr_mm.autopilot.model_study import ModelStudy, best_of
from fuxictr_mm.errors import UserError
from fuxictr_mm.tuning.runner import run_trials
from fuxictr_mm.tuning.study import database_errors

#: Trials of quick models, which take less than a quarter of the median time of all models.
QUICK_TRIALS = 20

#: Most trials of a model, and seeds of a configuration.
MOST_TRIALS, MOST_SEEDS = 100, 3

#: Seeds of the best trial, however long they take.
LEAST_SEEDS = 2

#: Part of the budget until which models are tuned; the rest is for seeds of the best trial of each model.
SEARCHING = 0.8


def compare(studies: Sequence[ModelStudy], request: Request, clock: Clock, journal: Journal) -> list[ModelStudy]:
    """Give each model a few trials; return the studies of which one has finished.

    Raises
    ------
    UserError
        There is none.
    """
    with database_errors(lambda: str(request.folder)):
        trials = FirstTrials(studies, clock, journal)
        run_trials(trials, request.workers, None, ["--resume", *request.source.arguments], request.quiet)
        found = trials.compared()
    if not found:
        raise UserError(f"no trial has finished; see {request.folder}/*/logs")
    count = sum(len(study.finished) for study in found)
    journal.tell(f"{best_of(found).plan.model} is best after {count} trial{'s' if count > 1 else ''}.")
    return found


def tune(studies: Sequence[ModelStudy], clock: Clock, journal: Journal) -> None:
    """Tune the models whose trials are quick, then the best of the others that has time for a trial."""
    typical = statistics.median(study.seconds for study in studies)  # the slowest one would make all others quick
    quick = [study for study in studies if study.seconds < typical / 4]
    for study in quick:
        why = f"a trial takes {study.seconds:.0f} s"
        _tune(study, QUICK_TRIALS, clock.until(QUICK), why, journal)
    others = [study for study in studies if study not in quick]
    fitting = [study for study in others if study.seconds < clock.left(SEARCHING)]
    best = best_of(fitting or others)
    _tune(best, MOST_TRIALS, clock.until(SEARCHING), f"the best of {'the others' if quick else 'all'}", journal)
    top = best_of(studies).best
    journal.tell(
        f"Best of {sum(len(study.finished) for study in studies)} trials: {top.expid}, valid AUC {top.score:.4f}."
    )


def _tune(study: ModelStudy, trials: int, until: float, why: str, journal: Journal) -> None:
    """Run trials until there are ``trials``, or one more would not end until then."""
    last = until - study.seconds
    outcome = f"tuned: {why}" if time.monotonic() < last else "not tuned: no time is left for a trial"
    journal.tell(f"{study.plan.model} is {outcome}.")
    study.run(trials, last)


def train_seeds(studies: Sequence[ModelStudy], clock: Clock, journal: Journal) -> None:
    """Train the best trial with more seeds, and while there is time the best one of each other model."""
    least = LEAST_SEEDS
    for study in sorted(studies, key=lambda study: -study.best.score):
        fitting = int(clock.left(1.0) / max(study.best.seconds, 1.0)) * len(study.request.workers)
        seeds, least = max(least, min(MOST_SEEDS, fitting)), 0
        if seeds < 1:
            continue
        journal.tell(f"{study.best.expid} is trained with {seeds} more seeds: their average is better than one.")
        try:
            study.train_seeds(seeds)
        except UserError as error:  # such as a loss of nan with another seed; the trials are enough
            journal.tell(f"{study.plan.model}: {error}.")
