"""Experiments of the report: runs grouped by dataset and configuration."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.errors import UserError
from fuxictr_mm.files import StrPath
from fuxictr_mm.runs import TEST_DATA, Run, differences, different_files, left_out, present_first
from fuxictr_mm.terminal import listed, number, plural


@dataclass(frozen=True)
class ExperimentRuns:
    """Runs that differ only in their seed."""

    #: The experiment id; of an earlier configuration with the time of its newest run. Unique within a dataset.
    name: str
    runs: list[Run]  #: Finished, one for each seed: those of the data as it is now first, then the newest.

    @property
    def newest(self) -> Run:
        """The first run, whose settings represent the configuration."""
        return self.runs[0]

    def values(self, metric: str, split: str = "valid") -> list[float]:
        """Return a metric of each run that has it; on test, of the runs of the newest's test file."""
        runs = self.runs if split == "valid" else self.of_one_test_file
        found = [number(getattr(run, split).get(metric)) for run in runs]
        return [value for value in found if value is not None]

    @property
    def test_file(self) -> str | None:
        """Hash of the newest run's test file; None if it has none, or is of a version that saved no hashes."""
        return self.newest.data.get(TEST_DATA)

    @property
    def of_one_test_file(self) -> list[Run]:
        """The runs that were evaluated on the same test file as the newest."""
        return [run for run in self.runs if run.data.get(TEST_DATA) == self.test_file]

    def mean(self, metric: str, split: str = "valid") -> float | None:
        """Return the mean of a metric over the runs, None where no run has it."""
        return average(self.values(metric, split))

    def standard_deviation(self, metric: str, split: str = "valid") -> float | None:
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
    """The runs of one dataset."""

    dataset_id: str
    experiments: list[ExperimentRuns]  #: In the order of their names.
    notes: list[str]  #: What is omitted, with the reason.


def gather(runs: Sequence[Run], named: Iterable[StrPath] = ()) -> list[Gathered]:
    """Group runs, newest first, by dataset and experiment.

    The configuration that is kept of an experiment is the first of ``present_first``, and so is the run of each seed.
    Runs of another configuration or other data are kept if they are named.
    """
    asked = {os.path.basename(os.path.normpath(name)) for name in named}
    datasets: dict[str, list[Run]] = {}
    for run in runs:
        datasets.setdefault(run.dataset_id, []).append(run)
    return [_of_dataset(name, members, asked) for name, members in sorted(datasets.items())]


def _of_dataset(dataset_id: str, runs: Sequence[Run], asked: set[str]) -> Gathered:
    notes: list[str] = []
    usable: dict[str, list[Run]] = {}
    for run in runs:
        if run.is_usable and any(number(v) is not None for v in run.valid.values()):
            usable.setdefault(run.expid, []).append(run)
        else:
            why = "none of its metrics can be read" if run.is_usable else run.state
            notes.append(f"{run.expid}, run {run.run}, is left out: {why}")
    experiments: list[ExperimentRuns] = []
    for expid, members in sorted(usable.items()):
        experiments += _of_experiment(expid, members, asked, notes)
    notes += different_files({experiment.name: experiment.newest for experiment in experiments})
    return Gathered(dataset_id, experiments, notes + _on_test(experiments))


def _of_experiment(expid: str, runs: Sequence[Run], asked: set[str], notes: list[str]) -> list[ExperimentRuns]:
    configurations: dict[str, list[Run]] = {}
    ordered = present_first(runs)
    if newer := left_out(runs, ordered[0]):
        notes.append(f"{expid}: {newer}")
    for run in ordered:
        configurations.setdefault(run.config_key, []).append(run)
    found: list[ExperimentRuns] = []
    for index, group in enumerate(configurations.values()):
        kept = [run for run in group if run.run in asked] if index else group
        if len(kept) < len(group):
            what = listed(differences([ordered[0], group[0]]))
            notes.append(
                f"{expid}: {plural(len(group) - len(kept), 'run')} of other {what} are left out, newest "
                f"{group[0].run}; name a run to include it"
            )
        if not kept:
            continue
        by_seed: dict[int | None, Run] = {}
        for run in kept:
            by_seed.setdefault(run.seed, run)
        if len(by_seed) < len(kept):
            notes.append(f"{expid}: one run of each seed is used ({len(by_seed)} of {len(kept)} runs)")
        name = expid if not found else f"{expid} ({kept[0].run})"
        found.append(ExperimentRuns(name, list(by_seed.values())))
        if others := len(found[-1].runs) - len(found[-1].of_one_test_file):
            notes.append(
                f"{name}: its runs have different test files; test metrics exclude those of "
                f"{plural(others, 'run')} of another test file than {kept[0].run}"
            )
    return found


def _on_test(experiments: Sequence[ExperimentRuns]) -> list[str]:
    """Return a note where experiments were evaluated on different test files."""
    files: dict[str, list[str]] = {}
    for experiment in experiments:
        if experiment.test_file and experiment.newest.test:
            files.setdefault(experiment.test_file, []).append(experiment.name)
    if len(files) < 2:
        return []
    return [f"test metrics are of different test files: {'; '.join(listed(names) for names in files.values())}"]


def history(run: Run) -> list[dict[str, Any]]:
    """Return the evaluations of a run that have a step; an empty list if the file is damaged.

    Those of a run on one label also have its metrics by the names that they have in a run on several.
    """
    try:
        lines = [line for line in run.history() if number(line.get("step")) is not None]
    except (UserError, OSError):
        return []
    labels = run.label_names
    return [of_label(line, labels[0]) | line for line in lines] if len(labels) == 1 else lines


def of_label(metrics: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return the metrics of a run on one label by the names that they have in a run on several."""
    return {f"{label}_{name}": value for name, value in metrics.items()}


def average(values: Sequence[float]) -> float | None:
    """Return the mean, None without values."""
    return statistics.fmean(values) if values else None
