"""The difference in AUC, RMSE or MAE between two or more configurations, and whether it is significant."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.evaluation.intervals import measured, metric_of
from fuxictr_mm.evaluation.others import is_prediction_file, read_file
from fuxictr_mm.evaluation.significance import Difference, Side, bootstrap, conclude, difference, holm
from fuxictr_mm.files import StrPath
from fuxictr_mm.runs import (
    TEST_DATA,
    Predictions,
    Run,
    differences,
    different_files,
    find_runs,
    left_out,
    present_first,
    resolve_one,
)
from fuxictr_mm.terminal import listed, plural, progress_bar

#: Smallest number of users and bootstrap samples for an interval.
MIN_USERS, MIN_SAMPLES = 10, 100


#: Called with the name of a group, a run of it that cannot be compared, and the reason.
OnProblem = Callable[[str, Run, UserError], None]


@dataclass(frozen=True)
class Pair:
    """Two sides and their difference, first minus second."""

    first: Side
    second: Side
    found: Difference  #: Of ``difference``.
    corrected_p: float  #: p-value, corrected for the number of pairs.
    conclusion: str  #: One sentence.

    @property
    def better(self) -> str | None:
        """Name of the better side, None without a significant difference."""
        if not self.found.is_significant(self.corrected_p):
            return None
        return self.first.name if self.found.value * self.first.sign > 0 else self.second.name

    def of(self, first: str) -> Pair:
        """Return the pair with the side of this name as the first."""
        if self.first.name == first:
            return self
        return replace(self, first=self.second, second=self.first, found=self.found.reversed())


@dataclass(frozen=True, repr=False)
class Comparison:
    """Groups of runs and their differences on the same examples."""

    sides: list[Side]  #: In the order given; of more than two the best first.
    runs: list[list[Run]]  #: The runs of each side.
    pairs: list[Pair]  #: All pairs, those of the first side first.
    rows: int  #: Number of examples.
    positives: int | None  #: Number of clicks; None in a regression.
    users: int  #: Number of users.
    samples: int  #: Bootstrap samples, for the AUC those with both classes.
    notes: list[str] = field(default_factory=list)  #: Which runs were selected, and limits of the conclusions.
    split: str = "valid"  #: Where the examples are from, ``valid`` or ``test``.

    @property
    def metric(self) -> str:
        """``AUC``; of a regression ``RMSE`` or ``MAE``."""
        return self.sides[0].metric

    def __str__(self) -> str:
        """Return what ``print`` and a notebook show: the mean of each side, conclusions of the first one, and notes."""
        means = [f"{side.name}: {self.metric} {side.mean:.4f} (runs: {len(side.runs)})" for side in self.sides]
        conclusions = [pair.conclusion for pair in self.pairs if pair.first is self.sides[0]]
        return "\n".join([*means, *(f"{line}." for line in conclusions), *(f"Note: {note}." for note in self.notes)])

    __repr__ = __str__  # that of the fields holds the bootstrap samples


def compare(
    names: Sequence[StrPath],
    root: StrPath = "checkpoints",
    *,
    split: str = "valid",
    task: str | None = None,
    samples: int = 2000,
    seed: int = 0,
    quiet: bool = True,
) -> Comparison:
    """Compare experiments, runs, folders of runs, or predictions of other programs on the same examples.

    Classifications are compared by AUC, regressions by the first of RMSE and MAE among the ``metrics`` of
    the first of them.

    Parameters
    ----------
    names : sequence of str or path
        Two or more, as for ``fuxictr_mm.runs.resolve_one``, or files as for ``fuxictr_mm.evaluation.others.read_file``.
    root : path
        The ``model_root`` of the runs.
    split : {"valid", "test"}
        Examples to compare on. Do not select by the result on test: it would no longer be an unbiased estimate.
    task : str, optional
        The label to compare on, for runs with several labels.
    samples, seed : int
        Bootstrap samples of users, and their seed.
    quiet : bool
        No progress bar.

    Raises
    ------
    UserError
        A name has no run, two sides share a run, runs were evaluated on different examples, or these have no labels.
    """
    names = [names] if isinstance(names, str | os.PathLike) else names
    if len(names) < 2:
        given = f"'{os.fspath(names[0])}' is the only name" if names else "no name is given"
        raise ConfigError(f"compare: {given}; give two or more experiment ids, runs or folders, in one list")
    known = find_runs(root)
    notes: list[str] = []
    groups: dict[str, list[Run]] = {_label(name, names): [] for name in names}
    owner: dict[Path, str] = {}
    files = [name for name in names if is_prediction_file(name)]
    for name in names:
        if name not in files:
            label = _label(name, names)
            groups[label] = runs_of_one_configuration(resolve_one(name, known, root), label, notes, split)
            _check_on_one_side(groups[label], label, owner)
    if len(files) == len(names):
        raise ConfigError(
            f"compare: '{files[0]}' and the others are files, which have no labels; give at least one run"
        )
    first = next(run for group in groups.values() for run in group)
    for name in files:
        groups[label := _label(name, names)] = [read := read_file(name, first, split, task)]
        notes.append(f"{label}: {read.description}")
    found = compare_groups(
        groups,
        known,
        split=split,
        task=task,
        samples=samples,
        seed=seed,
        track=lambda chunks: progress_bar(chunks, "bootstrap", verbose=0 if quiet else 1),
    )
    sides = zip(found.sides, found.runs, strict=True)
    notes += [*found.notes, *different_files({side.name: runs[0] for side, runs in sides}, split)]
    if len(found.pairs) > 1:
        notes.append(
            f"p is corrected for all {len(found.pairs)} pairs (Holm), since the best was selected among them; "
            "intervals are of each pair alone"
        )
    return replace(found, notes=notes)


def _check_on_one_side(group: Iterable[Run], label: str, owner: dict[Path, str]) -> None:
    """Refuse a run that has an ``owner``, another side, and note that of those of a side."""
    for run in group:
        path = run.path.resolve()
        if path in owner:
            raise ConfigError(
                f"the run {run.run} is on both sides, {owner[path]} and {label}; give two different experiments or runs"
            )
        owner[path] = label


def _label(name: StrPath, names: Iterable[StrPath]) -> str:
    """Return the last part of a path, or all of it where another name has the same last part."""
    short = Path(name).name
    is_ambiguous = sum(Path(other).name == short for other in names) > 1
    return os.fspath(name) if is_ambiguous or not short else short  # "." has no last part


def runs_of_one_configuration(runs: Sequence[Run], name: str, notes: list[str], split: str = "valid") -> list[Run]:
    """Return runs of one configuration and one data, a run of each seed, without broken ones.

    Those of the data as it is now are taken before newer ones, see ``fuxictr_mm.runs.present_first``; then the newest.

    Parameters
    ----------
    runs : sequence of Run
        Of one name, newest first.
    name : str
        For the notes.
    notes : list of str
        What is left out, and why, is appended.
    split : {"valid", "test"}
        On test, runs of one test file.
    """
    broken = [f"{name}, run {run.run}, is left out: {run.state}" for run in runs if not run.is_usable]
    usable = [run for run in runs if run.is_usable]
    if not usable:
        raise DataError(f"{'; '.join(broken)}; train it again")
    notes += broken
    ordered = present_first(usable)
    first = ordered[0]
    if newer := left_out(usable, first):
        notes.append(f"{name}: {newer}")
    same = [run for run in ordered if run.config_key == first.config_key]
    if split == "test":
        same = [run for run in same if run.data.get(TEST_DATA) == first.data.get(TEST_DATA)]
    kept: dict[int | None, Run] = {}
    for run in same:
        kept.setdefault(run.seed, run)
    found = f"{len(kept)} of {plural(len(usable), 'run')} {'is' if len(kept) == 1 else 'are'} used"
    what = differences(usable) or [TEST_DATA] * (len(same) < len(usable))
    if what:
        notes.append(f"{name}: its runs differ in {listed(what)}; {found}, like {first.run} of {first.started_at}")
    elif len(kept) < len(usable):
        notes.append(f"{name}: the newest of the runs with the same seed is used ({found})")
    return list(kept.values())


class _Entry(NamedTuple):
    """A run of the group ``name``, its predictions of the n examples, and the metric that it is compared by."""

    name: str
    run: Run
    rows: Predictions
    metric: str

    @property
    def label(self) -> np.ndarray:
        """``(n,)``, of runs that are compared never None."""
        assert self.rows.label is not None
        return self.rows.label


def _raise(_: str, __: Run, error: UserError) -> None:
    raise error


def compare_groups(
    groups: Mapping[str, Sequence[Run]],
    known: Sequence[Run],
    *,
    split: str = "valid",
    samples: int = 2000,
    seed: int = 0,
    task: str | None = None,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
    on_problem: OnProblem = _raise,
) -> Comparison:
    """Compare every two groups of runs on the examples of a split.

    Parameters
    ----------
    groups : mapping of str to sequence of Run
        Seeds of one configuration each, by the name for conclusions. More than two are sorted, the best first.
    known : sequence of Run
        All runs: further seeds of a group's configuration count for the variance between seeds.
    split : {"valid", "test"}
        Examples to compare on; they need labels.
    samples, seed : int
        Bootstrap samples of users, and their seed.
    task : str, optional
        The label to compare on, for runs with several labels.
    track : callable
        Wraps the iterable of chunks of samples, for a progress bar.
    on_problem : callable
        Called for a run without predictions, or evaluated on other examples than most; the run is left out then, and
        so is a group without runs. By default the error is raised.

    Raises
    ------
    UserError
        Nothing can be compared, or ``on_problem`` raises.
    """
    found = _read(groups, split, task, on_problem)
    most = _most_common_examples(found)
    kept = [entry for entry in found if _is_comparable(entry, most, on_problem)]
    label = most.label
    user, notes = _users(most.rows.keys, len(label))
    users = int(user.max()) + 1
    of_runs = [measured(entry.label, entry.rows.prediction, most.metric) for entry in kept]
    drawn = bootstrap(of_runs, user, samples, seed, track)
    if drawn.shape[1] < samples // 2:
        raise DataError(f"only {drawn.shape[1]} of {samples} bootstrap samples hold both classes: too few examples")
    compared: list[tuple[Side, list[Run]]] = []
    for name in dict.fromkeys(entry.name for entry in kept):
        members = [i for i, entry in enumerate(kept) if entry.name == name]
        runs = [kept[i].run for i in members]
        others = _other_seeds(runs[0], kept, most.metric, known, split, task)
        has_seeds = runs[0].seed is not None
        side = Side(name, runs[0].config_key, [of_runs[i] for i in members], drawn[members], others, has_seeds)
        compared.append((side, runs))
    if len(compared) > 2:
        compared.sort(key=lambda entry: -entry[0].sign * entry[0].mean)
    sides = [side for side, _ in compared]
    return Comparison(
        sides=sides,
        runs=[runs for _, runs in compared],
        pairs=_compare_all(sides, users),
        rows=len(label),
        positives=int(label.sum()) if most.metric == "AUC" else None,
        users=users,
        samples=drawn.shape[1],
        notes=notes,
        split=split,
    )


def _read(groups: Mapping[str, Sequence[Run]], split: str, task: str | None, on_problem: OnProblem) -> list[_Entry]:
    found = []
    for name, run in [(name, run) for name, group in groups.items() for run in group]:
        try:
            rows = run.all_rows(split, task).of_known_labels
            if rows.label is None:
                raise DataError(f"{run.path}: the {split} rows have no labels; compare on --split valid")
            found.append(_Entry(name, run, rows, metric_of(run.is_regression(task), run.config.get("metrics") or ())))
        except UserError as error:
            on_problem(name, run, error)
    if not found:
        raise DataError("no run has predictions to compare")
    return found


def _most_common_examples(found: Sequence[_Entry]) -> _Entry:
    """Return a run that was evaluated on the examples that most were; one that knows their groups, if any does."""
    most = _most_common(found, [(p.metric == "AUC", p.label.tobytes()) for p in found])
    alike = [p for p in found if (p.metric == "AUC") == (most.metric == "AUC") and np.array_equal(p.label, most.label)]
    if same := [p for p in alike if p.rows.partition is not None]:
        most = _most_common(same, [np.asarray(p.rows.partition).tobytes() for p in same])
    if most.metric == "AUC" and most.label.min() == most.label.max():
        raise DataError(f"{most.run.path}: all {len(most.label)} labels are {most.label[0]}; AUC needs both classes")
    return most


def _most_common(found: Sequence[_Entry], keys: Sequence[Hashable]) -> _Entry:
    return found[keys.index(Counter(keys).most_common(1)[0][0])]


def _is_comparable(entry: _Entry, like: _Entry, on_problem: OnProblem) -> bool:
    """Whether a run was evaluated on the examples of another, by its metric; ``on_problem`` is called if not."""
    if (entry.metric == "AUC") != (like.metric == "AUC"):  # of regressions, one error serves for all
        message = f"{entry.run.path}: is compared by {entry.metric}, the other runs by {like.metric}"
        on_problem(entry.name, entry.run, DataError(f"{message}; compare runs of one task"))
        return False
    reason = entry.rows.difference_of_rows(like.rows)
    if reason:
        message = f"{entry.run.path}: evaluated on different examples than the other runs: {reason}"
        on_problem(entry.name, entry.run, DataError(f"{message}; compare runs on the same file"))
    return not reason


def _users(group: np.ndarray | None, rows: int) -> tuple[np.ndarray, list[str]]:
    """Return the user of each example ``(n,)``, numbered from 0, and a note where examples are taken for users."""
    from fuxictr_mm.data.groups import NO_GROUP, number_users

    if group is None:
        note = "the runs have no group_id, so examples are resampled instead of users, as if all were independent"
        return np.arange(rows), [note]
    user = number_users(group, rows)
    if user.max() + 1 < MIN_USERS:
        raise DataError(f"examples of {user.max() + 1} users; the bootstrap needs {MIN_USERS} or more")
    alone = int((group == NO_GROUP).sum())
    return user, [f"{alone} of {rows} rows have no group, and each counts as a user"] if alone else []


def _other_seeds(
    first: Run, compared: Sequence[_Entry], metric: str, known: Sequence[Run], split: str, task: str | None
) -> list[float]:
    """Return the metric of further seeds of a run's configuration on the same examples."""
    taken = {entry.run.path.resolve() for entry in compared}
    seeds = {entry.run.seed for entry in compared if entry.run.config_key == first.config_key}
    found = []
    for run in known:
        fits = run.is_usable and run.config_key == first.config_key and run.seed not in seeds
        if not fits or run.path.resolve() in taken:
            continue
        try:
            rows = run.all_rows(split, task).of_known_labels
        except UserError:
            continue  # missing or not finite: not one of the requested runs
        if rows.label is not None and np.array_equal(rows.label, compared[0].label):
            seeds.add(run.seed)
            found.append(measured(rows.label, rows.prediction, metric).value)
    return found


def _compare_all(sides: Sequence[Side], users: int) -> list[Pair]:
    couples = list(itertools.combinations(sides, 2))
    found = [difference(first, second, users) for first, second in couples]
    corrected = holm([one.p_value for one in found])
    return [
        Pair(first, second, one, p_value, conclude(first, second, one, p_value if len(couples) > 1 else None))
        for (first, second), one, p_value in zip(couples, found, corrected, strict=True)
    ]
