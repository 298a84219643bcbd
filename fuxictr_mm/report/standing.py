"""Which experiment is best, and by how much: what ``fuxictr-mm compare`` says, for all experiments of a dataset.

Where ``compare`` refuses (other rows, a missing file), an experiment is left out here with a note, so that one broken
folder never costs the page.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from fuxictr_mm.errors import UserError
from fuxictr_mm.records.auc import RankedRows, bootstrap_aucs
from fuxictr_mm.records.comparison import ALPHA, Difference, Side, difference, holm, verdict
from fuxictr_mm.records.reading import RunRecord
from fuxictr_mm.report.gathering import Experiment
from fuxictr_mm.report.text import plural

MIN_USERS = 10

Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Against:
    """One experiment against another.

    Parameters
    ----------
    value, low, high : float
        Difference in mean AUC, first less second, and its 95 % interval.
    shown : bool
        Whether it is more than chance, corrected for the number of pairs.
    seeds_known : bool
        Whether there are seeds enough to know how far they lie apart; without nothing is shown.
    sentence : str
        The verdict.
    """

    value: float
    low: float
    high: float
    shown: bool
    seeds_known: bool
    sentence: str


@dataclass(frozen=True)
class Standings:
    """The experiments of a dataset whose predictions could be compared.

    Parameters
    ----------
    sides : dict of str to Side
        By name of the experiment, best mean AUC first.
    users, rows, positives : int
        Of the validation rows.
    notes : list of str
        Who is missing, and what to keep in mind.
    found : dict of (str, str) to (Difference, float)
        Differences, first less second, and their corrected p-values.
    """

    sides: dict[str, Side]
    users: int
    rows: int
    positives: int
    notes: list[str]
    found: dict[tuple[str, str], tuple[Difference, float]]

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of an experiment's mean AUC over resampled users, for its very weights."""
        if name not in self.sides:
            return None
        low, high = np.quantile(self.sides[name].samples.mean(axis=0), [ALPHA / 2, 1 - ALPHA / 2])
        return float(low), float(high)

    def against(self, first: str, second: str) -> Against | None:
        """Return the difference of two experiments, None where it is not known."""
        if (first, second) in self.found:
            (known, p_value), sign = self.found[first, second], 1
            one, two = self.sides[first], self.sides[second]
        elif (second, first) in self.found:
            (known, p_value), sign = self.found[second, first], -1
            one, two = self.sides[second], self.sides[first]
        else:
            return None
        sentence = verdict(one, two, known, p_value if len(self.found) > 1 else None)
        low, high = sorted((sign * known.low, sign * known.high))
        return Against(sign * known.value, low, high, known.is_shown(p_value), known.seeds is not None, sentence)


def stand(
    experiments: Sequence[Experiment], samples: int = 2000, track: Callable[[Iterable[int]], Any] = iter
) -> Standings:
    """Compare every two experiments on their validation rows.

    Parameters
    ----------
    experiments : sequence of Experiment
        Of one dataset.
    samples : int
        Draws of users, as ``fuxictr-mm compare`` makes them.
    track : callable
        Wraps the iterable of the chunks of draws, to show progress.
    """
    notes: list[str] = []
    read = {e.name: _read(e, notes) for e in experiments}
    rows = [_digest(r) for runs in read.values() for _, r in runs]
    nothing = Standings({}, 0, 0, 0, notes, {})
    if not rows:
        return nothing
    common = Counter(rows).most_common(1)[0][0]
    compared: dict[str, list[tuple[RunRecord, Rows]]] = {}
    for name, runs in read.items():
        same = [(run, r) for run, r in runs if _digest(r) == common]
        if len(same) < len(runs):
            notes.append(f"{name}: {plural(len(runs) - len(same), 'run')} validated on other rows, not compared")
        if same:
            compared[name] = same
    everything = [r for runs in compared.values() for _, r in runs]
    label, group = everything[0][0], everything[0][2]
    user = np.arange(len(label)) if group is None else np.unique(group, return_inverse=True)[1]
    users = int(user.max()) + 1
    if users < MIN_USERS:
        notes.append(f"validation rows of {users} users: too few for intervals, {MIN_USERS} or more are needed")
        return nothing
    if group is None:
        notes.append("no group_id: rows are resampled instead of users, though rows of one user are not independent")
    ranked = [RankedRows(r[0], r[1]) for r in everything]
    drawn = bootstrap_aucs(ranked, user, samples, 0, track)
    if drawn.shape[1] < samples // 2:
        notes.append("too few validation rows of both classes for intervals")
        return nothing
    sides, start = [], 0
    for name, runs in compared.items():
        part = slice(start, start + len(runs))
        sides.append(Side(name, runs[0][0].config_key, ranked[part], drawn[part]))
        start += len(runs)
    sides.sort(key=lambda side: -side.mean)
    couples = list(itertools.combinations(sides, 2))
    found = [difference(one, two, users) for one, two in couples]
    corrected = holm([f.p_value for f in found])
    pairs = {(a.name, b.name): (f, p) for (a, b), f, p in zip(couples, found, corrected, strict=True)}
    return Standings({side.name: side for side in sides}, users, len(label), int(label.sum()), notes, pairs)


def _read(experiment: Experiment, notes: list[str]) -> list[tuple[RunRecord, Rows]]:
    kept = []
    for run in experiment.runs:
        try:
            label, prediction, group = run.predictions()
        except UserError as error:
            notes.append(f"{experiment.name}, run {run.run}, is not compared: {error}")
            continue
        if problem := _problem(label, prediction):
            notes.append(f"{experiment.name}, run {run.run}, is not compared: {problem}")
        else:
            # Texts, among them nulls, are compared as texts.
            of_user = group.astype(str) if group is not None and group.dtype == object else group
            kept.append((run, (label, prediction, of_user)))
    return kept


def _problem(label: np.ndarray, prediction: np.ndarray) -> str:
    if label.dtype.kind not in "biuf" or prediction.dtype.kind not in "iuf" or set(np.unique(label)) != {0, 1}:
        return "its labels are not both 0 and 1, or its predictions no numbers"
    return "" if np.isfinite(prediction).all() else "some of its predictions are not finite"


def _digest(rows: Rows) -> str:
    label, _, group = rows
    of_group = "" if group is None else sha256(group.astype(str).tobytes()).hexdigest()
    return sha256(label.astype(np.int8).tobytes()).hexdigest() + of_group
