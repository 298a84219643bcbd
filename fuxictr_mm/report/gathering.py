"""Groups runs to experiments: the seeds of one configuration on one dataset."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.errors import UserError
from fuxictr_mm.records.listing import state
from fuxictr_mm.records.reading import RunRecord
from fuxictr_mm.report.text import number, plural


@dataclass(frozen=True)
class Experiment:
    """Runs that differ in their seed only.

    Parameters
    ----------
    name : str
        The experiment id; of an earlier configuration with the time of its newest run. Unique within a dataset.
    runs : list of RunRecord
        Finished, the newest first, one for each seed.
    """

    name: str
    runs: list[RunRecord]

    @property
    def newest(self) -> RunRecord:
        """The newest run, which speaks for the configuration."""
        return self.runs[0]

    def values(self, metric: str, split: str = "valid") -> list[float]:
        """Return a metric of each run that has it."""
        found = [number(getattr(run, split).get(metric)) for run in self.runs]
        return [value for value in found if value is not None]

    def mean(self, metric: str, split: str = "valid") -> float | None:
        """Return the mean of a metric over the runs, None where no run has it."""
        return average(self.values(metric, split))

    def deviation(self, metric: str, split: str = "valid") -> float | None:
        """Return the standard deviation of a metric over the runs, None for fewer than two."""
        values = self.values(metric, split)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def parameters(self) -> float | None:
        """Trainable parameters."""
        return number(self.newest.parameters)

    @property
    def seconds(self) -> float | None:
        """Mean wall time of a run."""
        return average([s for run in self.runs if (s := number(run.seconds)) is not None])


@dataclass(frozen=True)
class Gathered:
    """The runs of one dataset.

    Parameters
    ----------
    dataset_id : str
        Name of the dataset.
    experiments : list of Experiment
        In the order of their names.
    notes : list of str
        What was left out, and why.
    """

    dataset_id: str
    experiments: list[Experiment]
    notes: list[str]


def gather(records: Sequence[RunRecord], named: Iterable[str | os.PathLike[str]] = ()) -> list[Gathered]:
    """Group runs by dataset and experiment.

    Of an experiment the newest configuration is kept, and of runs with the same seed the newest; runs of an earlier
    configuration are kept where they were named.

    Parameters
    ----------
    records : sequence of RunRecord
        Newest first.
    named : iterable of str or path
        Names and folders of runs that were asked for.
    """
    asked = {os.path.basename(os.path.normpath(name)) for name in named}
    datasets: dict[str, list[RunRecord]] = {}
    for record in records:
        datasets.setdefault(record.dataset_id, []).append(record)
    return [_of_dataset(name, runs, asked) for name, runs in sorted(datasets.items())]


def _of_dataset(dataset_id: str, records: Sequence[RunRecord], asked: set[str]) -> Gathered:
    notes: list[str] = []
    usable: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.is_usable and any(number(v) is not None for v in record.valid.values()):
            usable.setdefault(record.expid, []).append(record)
        else:
            why = "no metric of it can be read" if record.is_usable else state(record)
            notes.append(f"{record.expid}, run {record.run}, is left out: {why}")
    experiments: list[Experiment] = []
    for expid, runs in sorted(usable.items()):
        experiments += _of_experiment(expid, runs, asked, notes)
    return Gathered(dataset_id, experiments, notes)


def _of_experiment(expid: str, runs: Sequence[RunRecord], asked: set[str], notes: list[str]) -> list[Experiment]:
    configurations: dict[str, list[RunRecord]] = {}
    for run in runs:
        configurations.setdefault(run.config_key, []).append(run)
    found: list[Experiment] = []
    for place, group in enumerate(configurations.values()):
        kept = [run for run in group if run.run in asked] if place else group
        if len(kept) < len(group):
            notes.append(
                f"{expid}: {plural(len(group) - len(kept), 'run')} of an earlier configuration left out, newest "
                f"{group[0].run}; name a run to have it on the page"
            )
        if not kept:
            continue
        by_seed: dict[int | None, RunRecord] = {}
        for run in kept:
            by_seed.setdefault(run.seed, run)
        if len(by_seed) < len(kept):
            notes.append(f"{expid}: of runs with the same seed the newest counts ({len(by_seed)} of {len(kept)} runs)")
        name = expid if not found else f"{expid} ({kept[0].run})"
        found.append(Experiment(name, list(by_seed.values())))
    return found


def history(run: RunRecord) -> list[dict[str, Any]]:
    """Return the evaluations of a run that have a step; none where the file is damaged."""
    try:
        return [line for line in run.history() if number(line.get("step")) is not None]
    except (UserError, OSError):
        return []


def average(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return statistics.fmean(values) if values else None
