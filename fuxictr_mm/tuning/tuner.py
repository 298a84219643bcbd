"""A tuner YAML from reading it to the table of its results."""

from collections.abc import Sequence
from pathlib import Path

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.tuning.grid import enumerate_trials
from fuxictr_mm.tuning.run import run_grid
from fuxictr_mm.tuning.study import run_study
from fuxictr_mm.tuning.table import report
from fuxictr_mm.tuning.tuner_file import read_tuner


def run_tuner(
    tuner_yaml: Path,
    gpus: Sequence[int],
    script: Path,
    *,
    tag: str | None = None,
    data_root: Path | None = None,
    model_zoo: Path | None = None,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    """Run what is left of a search and report all of it; parameters as of ``run_grid``, ``run_study``, ``report``."""
    tuner = read_tuner(tuner_yaml, model_zoo)
    if tuner.search == "grid":
        enumerate_trials(tuner_yaml, model_zoo)
        results = run_grid(tuner.folder, gpus, tag, script, data_root=data_root, model_zoo=model_zoo, quiet=quiet)
        report(results, tuner.folder, tag, quiet=quiet, as_json=as_json)
        return
    if tag is not None:
        raise ConfigError(f"{tuner_yaml}: --tag chooses among the points of a grid, but search is {tuner.search}")
    results, importance = run_study(tuner, gpus, script, data_root, model_zoo, quiet)
    report(results, tuner.folder, importance=importance, quiet=quiet, as_json=as_json)
