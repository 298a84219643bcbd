"""Compares groups of runs on the rows that they share: the one source of verdicts, for ``compare`` and ``report``."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np

from fuxictr_mm.errors import DataError, UserError
from fuxictr_mm.records.auc import RankedRows, bootstrap_aucs
from fuxictr_mm.records.comparison import Difference, Side, difference, holm, verdict
from fuxictr_mm.records.reading import RunRecord

MIN_USERS = 10

#: Label, prediction, group or None of each row.
Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Pair:
    """Two sides and what was found of them.

    Parameters
    ----------
    first, second : Side
        The difference is first less second.
    found : Difference
        From ``difference``.
    corrected_p : float
        Corrected for the number of pairs.
    verdict : str
        A sentence.
    """

    first: Side
    second: Side
    found: Difference
    corrected_p: float
    verdict: str

    @property
    def better(self) -> str | None:
        """Name of the better side, None where no difference is shown."""
        if not self.found.is_shown(self.corrected_p):
            return None
        return self.first.name if self.found.value > 0 else self.second.name


@dataclass(frozen=True)
class Comparison:
    """Groups of runs and their differences.

    Parameters
    ----------
    sides : list of Side
        Best mean AUC first where there are more than two, else as given.
    records : list of list of RunRecord
        The runs of each side.
    pairs : list of Pair
        All pairs; those of the first side come first. Corrected for their number.
    rows, positives, users : int
        Of the validation rows.
    samples : int
        Draws that had both classes.
    notes : list of str
        What was chosen, and what to keep in mind.
    """

    sides: list[Side]
    records: list[list[RunRecord]]
    pairs: list[Pair]
    rows: int
    positives: int
    users: int
    samples: int
    notes: list[str] = field(default_factory=list)


def compare_groups(
    groups: Mapping[str, Sequence[RunRecord]],
    known: Sequence[RunRecord],
    *,
    samples: int = 2000,
    seed: int = 0,
    track: Callable[[Iterable[int]], Any] = iter,
    on_problem: Callable[[str, RunRecord, str], None] | None = None,
) -> Comparison:
    """Compare every two groups of runs on their validation rows.

    Parameters
    ----------
    groups : mapping of str to sequence of RunRecord
        Seeds of one configuration each, by a name for the sentences. More than two are put in order, the best first.
    known : sequence of RunRecord
        All runs there are: further seeds of a group's configuration count for how far seeds lie apart.
    samples, seed : int
        Draws of users, and their seed.
    track : callable
        Wraps the iterable of the chunks of draws, to show progress.
    on_problem : callable, optional
        Gets name, run and reason where a run has no predictions, or other rows than most; it is left out then, and so
        is a group without a run. Without it the first problem is raised.

    Raises
    ------
    UserError
        Nothing can be compared, or, without ``on_problem``, a run cannot.
    """
    notes: list[str] = []
    read: list[tuple[str, RunRecord, Rows]] = []
    for name, record in [(name, record) for name, group in groups.items() for record in group]:
        try:
            read.append((name, record, record.predictions()))
        except UserError as error:
            if on_problem is None:
                raise
            on_problem(name, record, str(error))
    if not read:
        raise DataError("no run has predictions to compare")
    digests = [_digest(rows) for _, _, rows in read]
    _, chosen, (label, _, user_of_row) = read[digests.index(Counter(digests).most_common(1)[0][0])]
    if label.min() == label.max():
        raise DataError(f"{chosen.path}: all {len(label)} labels are {label[0]}; AUC needs both classes")
    kept: dict[str, list[tuple[RunRecord, np.ndarray]]] = {}
    for name, record, (own_label, prediction, own_group) in read:
        what = _what_differs(label, own_label, user_of_row, own_group)
        if not what:
            kept.setdefault(name, []).append((record, prediction))
        elif on_problem is None:
            raise DataError(
                f"{record.path} and {chosen.path} were validated on different rows: {what}; compare runs that "
                "validated on one file"
            )
        else:
            on_problem(name, record, f"validated on other rows than {chosen.run}: {what}")
    user = _users(label, user_of_row, notes)
    users = int(user.max()) + 1
    ranked = [RankedRows(label, prediction) for group in kept.values() for _, prediction in group]
    drawn = bootstrap_aucs(ranked, user, samples, seed, track)
    if drawn.shape[1] < samples // 2:
        raise DataError(f"only {drawn.shape[1]} of {samples} draws of users hold both classes: too few validation rows")
    compared = [[record for record, _ in group] for group in kept.values()]
    everyone = [record for group in compared for record in group]
    sides, start = [], 0
    for name, group in zip(kept, compared, strict=True):
        part = slice(start, start + len(group))
        others = _other_seeds(group, everyone, known, label)
        sides.append(Side(name, group[0].config_key, ranked[part], drawn[part], others))
        start += len(group)
    if len(sides) > 2:
        order = sorted(range(len(sides)), key=lambda i: -sides[i].mean)
        sides, compared = [sides[i] for i in order], [compared[i] for i in order]
    pairs = _compare_all(sides, users)
    return Comparison(sides, compared, pairs, len(label), int(label.sum()), users, drawn.shape[1], notes)


def _compare_all(sides: Sequence[Side], users: int) -> list[Pair]:
    couples = list(itertools.combinations(sides, 2))
    found = [difference(first, second, users) for first, second in couples]
    corrected = holm([f.p_value for f in found])
    pairs = []
    for (first, second), one, p_value in zip(couples, found, corrected, strict=True):
        sentence = verdict(first, second, one, p_value if len(couples) > 1 else None)
        pairs.append(Pair(first, second, one, p_value, sentence))
    return pairs


def _digest(rows: Rows) -> str:
    label, _, group = rows
    of_group = "" if group is None else sha256(group.astype(str).tobytes()).hexdigest()
    return sha256(label.astype(np.int8).tobytes()).hexdigest() + of_group


def _what_differs(
    label: np.ndarray, own_label: np.ndarray, group: np.ndarray | None, own_group: np.ndarray | None
) -> str:
    if len(own_label) != len(label):
        return f"{len(own_label)} against {len(label)}"
    if not np.array_equal(own_label, label):
        return f"labels differ, first in row {int(np.argmax(own_label != label))}"
    if own_group is not None and group is not None and not np.array_equal(own_group, group):
        return f"groups differ, first in row {int(np.argmax(own_group != group))}"
    return ""


def _users(label: np.ndarray, group: np.ndarray | None, notes: list[str]) -> np.ndarray:
    """Return the number of each row's user, from 0."""
    if group is None:
        notes.append("the runs have no group_id, so rows are resampled instead of users, as if no two were of one user")
        return np.arange(len(label))
    user = np.unique(group, return_inverse=True)[1]
    if user.max() + 1 < MIN_USERS:
        raise DataError(f"validation rows of {user.max() + 1} users; {MIN_USERS} or more are needed to resample them")
    return user


def _other_seeds(
    group: Sequence[RunRecord], compared: Sequence[RunRecord], known: Sequence[RunRecord], label: np.ndarray
) -> list[float]:
    """Return the AUCs of further seeds of a side's configuration on the same rows."""
    taken = {record.path.resolve() for record in compared}
    seeds = {record.seed for record in compared if record.config_key == group[0].config_key}
    aucs = []
    for record in known:
        fits = record.is_usable and record.config_key == group[0].config_key and record.seed not in seeds
        if not fits or record.path.resolve() in taken:
            continue
        try:
            own_label, prediction, _ = record.predictions()
        except UserError:
            continue  # missing, or not finite: not one of those that were asked for
        if np.array_equal(own_label, label):
            seeds.add(record.seed)
            aucs.append(RankedRows(label, prediction).auc)
    return aucs
