"""Experiments of the report: runs grouped by configuration, their differences, and how they compare."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fuxictr_mm.config import NAMING_KEYS, with_text_keys
from fuxictr_mm.errors import UserError
from fuxictr_mm.evaluation.compare import Comparison, compare_groups
from fuxictr_mm.evaluation.significance import ALPHA, Side
from fuxictr_mm.runs import TEST_DATA, Run, differences, different_files, left_out, present_first
from fuxictr_mm.terminal import DASH, MINUS, listed, number, plural, printable


@dataclass(frozen=True)
class Experiment:
    """Runs that differ only in their seed.

    Parameters
    ----------
    name : str
        The experiment id; of an earlier configuration with the time of its newest run. Unique within a dataset.
    runs : list of Run
        Finished, one for each seed: those of the data as it is now first, then the newest.
    """

    name: str
    runs: list[Run]

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
    """The runs of one dataset.

    Parameters
    ----------
    dataset_id : str
        Name of the dataset.
    experiments : list of Experiment
        In the order of their names.
    notes : list of str
        What is omitted, with the reason.
    """

    dataset_id: str
    experiments: list[Experiment]
    notes: list[str]


def gather(runs: Sequence[Run], named: Iterable[str | os.PathLike[str]] = ()) -> list[Gathered]:
    """Group runs by dataset and experiment.

    The configuration that is kept of an experiment is the first of ``present_first``, and so is the run of each seed.
    Runs of another configuration or other data are kept if they are named.

    Parameters
    ----------
    runs : sequence of Run
        Newest first.
    named : iterable of str or path
        Names and folders of the requested runs.
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
    experiments: list[Experiment] = []
    for expid, members in sorted(usable.items()):
        experiments += _of_experiment(expid, members, asked, notes)
    notes += different_files({experiment.name: experiment.newest for experiment in experiments})
    return Gathered(dataset_id, experiments, notes + _on_test(experiments))


def _of_experiment(expid: str, runs: Sequence[Run], asked: set[str], notes: list[str]) -> list[Experiment]:
    configurations: dict[str, list[Run]] = {}
    ordered = present_first(runs)
    if newer := left_out(runs, ordered[0]):
        notes.append(f"{expid}: {newer}")
    for run in ordered:
        configurations.setdefault(run.config_key, []).append(run)
    found: list[Experiment] = []
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
        found.append(Experiment(name, list(by_seed.values())))
        if others := len(found[-1].runs) - len(found[-1].of_one_test_file):
            notes.append(
                f"{name}: its runs have different test files; test metrics exclude those of "
                f"{plural(others, 'run')} of another test file than {kept[0].run}"
            )
    return found


def _on_test(experiments: Sequence[Experiment]) -> list[str]:
    """Return a note where experiments were evaluated on different test files."""
    files: dict[str, list[str]] = {}
    for experiment in experiments:
        if experiment.test_file and experiment.newest.test:
            files.setdefault(experiment.test_file, []).append(experiment.name)
    if len(files) < 2:
        return []
    return [f"test metrics are of different test files: {'; '.join(listed(names) for names in files.values())}"]


def labels_of(run: Run) -> list[str]:
    """Return the names of the labels of a run."""
    given = run.config.get("label_col") or {}
    return [column["name"] for column in (given if isinstance(given, list) else [given]) if "name" in column]


def history(run: Run) -> list[dict[str, Any]]:
    """Return the evaluations of a run that have a step; an empty list if the file is damaged.

    Those of a run on one label also have its metrics by the names that they have in a run on several.
    """
    try:
        lines = [line for line in run.history() if number(line.get("step")) is not None]
    except (UserError, OSError):
        return []
    labels = labels_of(run)
    return [of_label(line, labels[0]) | line for line in lines] if len(labels) == 1 else lines


def of_label(metrics: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return the metrics of a run on one label by the names that they have in a run on several."""
    return {f"{label}_{name}": value for name, value in metrics.items()}


def average(values: Sequence[float]) -> float | None:
    """Return the mean, None without values."""
    return statistics.fmean(values) if values else None


#: Longest text of a setting, in characters.
SHOWN = 160

#: Keys of the environment that are not compared.
OF_THE_MOMENT = ("command", "started_at")


@dataclass(frozen=True)
class Change:
    """A setting that differs from the base's.

    Parameters
    ----------
    key : str
        The setting.
    text : str
        What it changes to, as ``True → False``, or for lists what is left out and what is added.
    size : int
        Size of the change: 1, or the number of entries for lists.
    gone : tuple of str
        Entries removed from a list, if nothing is added to it.
    """

    key: str
    text: str
    size: int
    gone: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Ablation:
    """Experiments of one model, compared with the one that the others differ from least.

    Parameters
    ----------
    model : str
        Name of the model.
    base : Experiment
        The base.
    others : list of (Experiment, list of Change)
        The others, with what they change.
    """

    model: str
    base: Experiment
    others: list[tuple[Experiment, list[Change]]]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted name; entries of a list of mappings are named by their ``name``.

    Examples
    --------
    >>> flatten({"a": {"b": 1}, "c": [{"name": "x", "dim": 2}]})
    {'a.b': 1, 'c.x': '{"dim": 2}'}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flatten(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) and "name" in v for v in value):
            for entry in value:
                columns = entry["name"] if isinstance(entry["name"], list) else [entry["name"]]
                rest = {k: v for k, v in entry.items() if k != "name"}
                found[f"{name}.{','.join(map(str, columns))}"] = json.dumps(rest, sort_keys=True, default=str)
        else:
            found[name] = value
    return found


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """Return the settings of the configuration, without names and seed."""
    config = with_text_keys(experiment.newest.config)
    return flatten({k: v for k, v in config.items() if k not in NAMING_KEYS})


def changes(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[Change]:
    """Return what other settings change of a base's.

    Examples
    --------
    >>> changes({"senet": True, "use": ["a", "b"]}, {"senet": False, "use": ["b", "c"]})
    [Change(key='senet', text='True → False', size=1), Change(key='use', text='− a, + c', size=2)]
    """
    found = []
    for key in sorted(base.keys() | other.keys()):
        before, after = base.get(key), other.get(key)
        if before == after and (key in base) == (key in other):
            continue
        if isinstance(before, list) and isinstance(after, list) and set(map(str, before)) != set(map(str, after)):
            gone = [printable(v) for v in before if v not in after]
            new = [printable(v) for v in after if v not in before]
            text = ", ".join([*(f"{MINUS} {v}" for v in gone), *(f"+ {v}" for v in new)])
            found.append(Change(key, text, len(gone) + len(new), () if new else tuple(gone)))
        else:
            sides = [shown(s[key]) if key in s else DASH for s in (base, other)]
            found.append(Change(key, " → ".join(sides), 1))
    return found


def ablations(experiments: Sequence[Experiment]) -> list[Ablation]:
    """Return, for each model with several experiments, the base and what the others change.

    The base is the experiment from which the others differ in the fewest settings; ties go to the shortest name.
    """
    models: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        models.setdefault(experiment.newest.model, []).append(experiment)
    found = []
    for model, group in models.items():
        if len(group) < 2:
            continue
        settings = {e.name: settings_of(e) for e in group}

        def distance(experiment: Experiment, settings: dict[str, dict[str, Any]] = settings) -> tuple[int, int, str]:
            name = experiment.name
            return sum(c.size for s in settings.values() for c in changes(settings[name], s)), len(name), name

        base = min(group, key=distance)
        others = [(e, changes(settings[base.name], settings[e.name])) for e in group if e is not base]
        found.append(Ablation(model, base, others))
    return found


def differing(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the keys whose values differ among mappings, each with its value in every one."""
    found = []
    for key in sorted({key for column in columns for key in column}):
        short, full = ([shown(c[key], width) if key in c else DASH for c in columns] for width in (SHOWN, 0))
        if len(set(full)) > 1:
            found.append((key, short if len(set(short)) == len(set(full)) else full))
    return found


def environments(experiments: Sequence[Experiment]) -> tuple[list[tuple[str, str]], list[tuple[str, list[str]]]]:
    """Return the part of the environment that all runs have in common, and the part that differs by experiment.

    If the runs of an experiment differ, all values are listed.
    """
    columns: list[dict[str, Any]] = []
    for experiment in experiments:
        column: dict[str, Any] = {}
        for run in experiment.runs:
            for key, value in run.environment.items():
                if key not in OF_THE_MOMENT:
                    column.setdefault(key, []).append(shown(value))
        columns.append({key: ", ".join(dict.fromkeys(values)) for key, values in column.items()})
    differ = differing(columns)
    names = [key for key, _ in differ]
    shared = [(key, value) for key, value in columns[0].items() if key not in names] if columns else []
    return shared, differ


def shown(value: Any, width: int = SHOWN) -> str:
    """Return a setting as YAML text; above ``width`` characters its middle is left out."""
    if value is None or isinstance(value, str | bool):
        return printable("null" if value is None else value, width)
    return printable(json.dumps(value, default=str, ensure_ascii=False), width)


@dataclass(frozen=True)
class Against:
    """The difference between two experiments.

    Parameters
    ----------
    value, low, high : float
        Difference in mean AUC, first less second, and its 95 % interval.
    shown : bool
        Whether it is significant, corrected for the number of pairs.
    seeds_known : bool
        Whether there are enough seeds to estimate their spread; otherwise no difference is significant.
    sentence : str
        The conclusion of ``fuxictr-mm compare``.
    """

    value: float
    low: float
    high: float
    shown: bool
    seeds_known: bool
    sentence: str


@dataclass(frozen=True)
class Comparisons:
    """Comparison of the experiments of a dataset.

    Parameters
    ----------
    comparison : Comparison or None
        None if there is nothing to compare.
    notes : list of str
        Which experiments are missing, and what limits the conclusions.
    """

    comparison: Comparison | None
    notes: list[str]

    @property
    def sides(self) -> dict[str, Side]:
        """Sides by name of the experiment, best mean AUC first."""
        sides = [] if self.comparison is None else self.comparison.sides
        return {side.name: side for side in sorted(sides, key=lambda side: -side.mean)}

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of an experiment's mean AUC over resampled users, for its present weights."""
        if name not in self.sides:
            return None
        low, high = np.quantile(self.sides[name].samples.mean(axis=0), [ALPHA / 2, 1 - ALPHA / 2])
        return float(low), float(high)

    def against(self, first: str, second: str) -> Against | None:
        """Return the difference of two experiments; None if they were not compared."""
        for pair in [] if self.comparison is None else self.comparison.pairs:
            if {pair.first.name, pair.second.name} == {first, second}:
                found, sign = pair.found, 1 if pair.first.name == first else -1
                low, high = sorted((sign * found.low, sign * found.high))
                shown = found.is_significant(pair.corrected_p)
                return Against(sign * found.value, low, high, shown, found.seeds is not None, pair.conclusion)
        return None


def compare_experiments(
    experiments: Sequence[Experiment],
    known: Sequence[Run],
    track: Callable[[Iterable[int]], Any] = iter,
    task: str | None = None,
) -> Comparisons:
    """Compare all pairs of experiments on their validation rows.

    Parameters
    ----------
    experiments : sequence of Experiment
        Of one dataset.
    known : sequence of Run
        All runs, also those that are not on the page: they may be further seeds.
    track : callable
        Wraps the iterable of chunks of bootstrap samples, to show progress.
    task : str, optional
        The label to compare on, for runs with several labels.
    """
    notes: list[str] = []
    if not experiments:
        return Comparisons(None, notes)

    def leave_out(name: str, run: Run, reason: UserError) -> None:
        notes.append(f"{name}, run {run.run}, is not compared: {reason}")

    groups = {experiment.name: experiment.runs for experiment in experiments}
    try:
        found = compare_groups(groups, known, track=track, on_problem=leave_out, task=task)
    except UserError as error:
        return Comparisons(None, [*notes, f"no intervals and no comparison: {error}"])
    return Comparisons(found, [*notes, *found.notes])
