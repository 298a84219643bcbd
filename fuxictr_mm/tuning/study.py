"""A study: trials that Optuna samples."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fuxictr_mm.errors import ConfigError, UserError, first_line
from fuxictr_mm.tuning.database import shown_url
from fuxictr_mm.tuning.runner import run_trials
from fuxictr_mm.tuning.source import AS_CONFIGURED, Source
from fuxictr_mm.tuning.study_trials import Failures, StudyTrials
from fuxictr_mm.tuning.trial import TrialResult, best_first
from fuxictr_mm.tuning.trial_files import check_settings
from fuxictr_mm.tuning.tuner_file import Tuner


@dataclass(frozen=True)
class StudyResult:
    """What a study has found."""

    trials: list[TrialResult]  #: One for each trial of the study, of all processes.
    #: Fraction of the variance of the monitored metric by setting (fANOVA), largest first; empty with few trials.
    importance: dict[str, float]

    @property
    def finished(self) -> list[TrialResult]:
        """The trials that have finished with a number, best first."""
        return best_first(self.trials)


def run_study(
    tuner: Tuner,
    gpus: Sequence[int],
    script: Path | None,
    source: Source = AS_CONFIGURED,
    quiet: bool = False,
    *,
    until: float = math.inf,
    failures: Failures | None = None,
) -> StudyResult:
    """Run a study, of any search but a grid, until it has all its trials; other parameters as of ``run_trials``.

    Its folder receives each trial's configuration and, in ``logs``, its output. No trial begins after ``until``, by
    ``time.monotonic()``. ``failures`` are those of earlier starts, whose trials are repeated: by default all so far.

    Raises
    ------
    ConfigError, MissingFileError
        The configuration, the script, a device or the database is wrong; before any trial runs.
    UserError
        The database failed later.
    """
    with database_errors(lambda: shown_url(tuner)):
        trials = open_trials(tuner, source, until, failures)
        if trials.total < tuner.trials and not quiet:
            print(
                f"{tuner.path}: trials is {tuner.trials}, but the space has only {trials.total} points", file=sys.stderr
            )
        run_trials(trials, gpus, script, ["--resume", *source.arguments], quiet)
        return StudyResult(trials.results(), trials.stored.importance())


def open_trials(
    tuner: Tuner, source: Source = AS_CONFIGURED, until: float = math.inf, failures: Failures | None = None
) -> StudyTrials:
    """Return the trials of a study for ``run_trials``; parameters as of ``run_study``."""
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            f'{tuner.path}: search: {tuner.search} needs Optuna; pip install "fuxictr-mm[tuning]"'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return StudyTrials(tuner, source, check_settings(tuner, source), until, failures)


@contextmanager
def database_errors(place: Callable[[], str]) -> Iterator[None]:
    """Turn errors of the database of studies into a UserError, which says their ``place``."""
    try:
        yield
    except Exception as error:
        if not _is_of_database(error):
            raise
        reason = first_line(getattr(error, "orig", None) or error.__cause__ or error)
        raise UserError(
            f"{place()}: the study's database failed ({reason}); results of finished trials are "
            "kept; run the same command again"
        ) from error


def _is_of_database(error: Exception) -> bool:
    try:
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return False
    return isinstance(error, StorageInternalError | SQLAlchemyError)
