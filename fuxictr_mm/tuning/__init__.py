"""Search over ``tuner_space:`` of a tuner YAML, several trials at once, finished ones skipped.

A grid is FuxiCTR's: its YAML, its folder and the experiment ids that come of it. Departures from FuxiCTR:

- Hashes tell configurations apart (FuxiCTR hashes the sorted characters of the text: swapped digits collide) and stay
  the same from run to run.
- A grid over dataset settings keeps every combination (FuxiCTR keeps the last one of a parquet dataset).
- A list-valued setting takes a list of lists; a flat list is refused instead of being taken as a grid of its numbers.
- Every trial is checked before the first one starts, a trial that fails is reported, and a trial whose result is there
  is not run again.
- Random search and TPE, on an Optuna study.
"""

from fuxictr_mm.tuning.grid import enumerate_trials
from fuxictr_mm.tuning.run import run_grid
from fuxictr_mm.tuning.study import run_study
from fuxictr_mm.tuning.table import format_table, report, write_table
from fuxictr_mm.tuning.trial import TrialResult
from fuxictr_mm.tuning.tuner import run_tuner
from fuxictr_mm.tuning.tuner_file import Tuner, read_tuner

__all__ = [
    "TrialResult",
    "Tuner",
    "enumerate_trials",
    "format_table",
    "read_tuner",
    "report",
    "run_grid",
    "run_study",
    "run_tuner",
    "write_table",
]
