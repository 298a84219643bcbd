"""Hyperparameter search over ``tuner_space:`` of a tuner YAML: trials in parallel, finished ones are skipped.

A grid has the YAML, the folder and the experiment ids of FuxiCTR. Departures from FuxiCTR:

- Different configurations have different hashes, which are the same in every run (FuxiCTR hashes the sorted characters
  of the text, so swapped digits collide).
- A grid over dataset settings keeps every combination (FuxiCTR keeps the last one of a parquet dataset).
- A list-valued setting takes a list of lists; a flat list is refused instead of being taken as a grid of its numbers.
- Every trial is checked before the first one starts, a trial that fails is reported, and a trial that has a result
  is not run again.
- Random search, TPE and local search, on an Optuna study.
"""

from collections.abc import Sequence
from pathlib import Path

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.tuning.grid import enumerate_trials, run_grid
from fuxictr_mm.tuning.seeds import Processes, train_seeds
from fuxictr_mm.tuning.source import AS_CONFIGURED, Source
from fuxictr_mm.tuning.study import run_study
from fuxictr_mm.tuning.table import format_table, report, write_table
from fuxictr_mm.tuning.trial import TrialResult
from fuxictr_mm.tuning.tuner_file import Tuner, read_tuner


def run_tuner(
    tuner_yaml: Path,
    gpus: Sequence[int],
    script: Path | None,
    *,
    tag: str | None = None,
    source: Source = AS_CONFIGURED,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Run the remaining trials of a search and report all; parameters as of ``run_grid``, ``run_study``, ``report``."""
    tuner = read_tuner(tuner_yaml, source.model_zoo)
    if tuner.search == "grid":
        enumerate_trials(tuner_yaml, source.model_zoo)
        results = run_grid(tuner.folder, gpus, tag, script, source, quiet)
        report(results, tuner.folder, tag, quiet=quiet, as_json=as_json)
        return
    if tag is not None:
        raise ConfigError(f"{tuner_yaml}: --tag chooses among the points of a grid, but search is {tuner.search}")
    found = run_study(tuner, gpus, script, source, quiet)
    report(found.trials, tuner.folder, importance=found.importance, quiet=quiet, as_json=as_json)
