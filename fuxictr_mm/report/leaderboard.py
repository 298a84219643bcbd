"""Rows of the leaderboard, and the sentence above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.records.listing import FALLING
from fuxictr_mm.report.gathering import Experiment, average
from fuxictr_mm.report.run_pictures import speed_of
from fuxictr_mm.report.settings import Ablation, Change, changes, settings_of
from fuxictr_mm.report.standing import Against, Standings
from fuxictr_mm.report.text import decimal, number, plural, printable

#: Metric that experiments are ordered by where they have it.
FIRST = "AUC"


@dataclass(frozen=True)
class Row:
    """An experiment in the leaderboard.

    Parameters
    ----------
    experiment : Experiment
        The experiment.
    interval : (float, float) or None
        95 % interval of its AUC.
    against : Against or None
        Its difference to the best; None of the best, and where it is not known.
    speed : float or None
        Mean training rows per second.
    best : bool
        Whether it leads.
    """

    experiment: Experiment
    interval: tuple[float, float] | None
    against: Against | None
    speed: float | None
    best: bool

    @property
    def verdict(self) -> str:
        """In a word."""
        return "best" if self.best else verdict_of(self.against)


@dataclass(frozen=True)
class Reason:
    """Why the best is good, in a sentence.

    Parameters
    ----------
    text : str
        The sentence, without its full stop.
    section : {"ablation", "diagnosis"}
        Part of the page that shows more.
    """

    text: str
    section: str


def verdict_of(against: Against | None) -> str:
    """Return a verdict in a word or two."""
    if against is None:
        return "not compared"
    if against.shown:
        return "worse" if against.value < 0 else "better"
    return "no difference shown" if against.seeds_known or against.low <= 0 <= against.high else "seeds unknown"


def metrics_of(experiments: Sequence[Experiment], split: str = "valid") -> list[str]:
    """Return the metrics that any experiment has, AUC first."""
    names = dict.fromkeys(name for e in experiments for run in e.runs for name in getattr(run, split))
    known = [name for name in names if any(e.values(name, split) for e in experiments)]
    return sorted(known, key=lambda name: name != FIRST)


def leaderboard(experiments: Sequence[Experiment], standings: Standings) -> list[Row]:
    """Return a row for each experiment, best first; without a first metric last."""
    metrics = metrics_of(experiments)
    sign = -1 if metrics and metrics[0] in FALLING else 1

    def place(experiment: Experiment) -> tuple[bool, float, str]:
        mean = experiment.mean(metrics[0]) if metrics else None
        return mean is None, 0.0 if mean is None else -sign * mean, experiment.name

    order = sorted(experiments, key=place)
    rows = []
    for place_of, experiment in enumerate(order):
        against = standings.against(experiment.name, order[0].name) if place_of else None
        speed = average(speed_of(experiment))
        rows.append(Row(experiment, standings.interval(experiment.name), against, speed, place_of == 0))
    return rows


def lead(rows: Sequence[Row]) -> list[str]:
    """Say which experiment is best, and by how much over the next."""
    metrics = metrics_of([row.experiment for row in rows])
    if not rows or not metrics:
        return ["No finished run yet."]
    first = rows[0]
    seeds = len(first.experiment.values(metrics[0]))
    of = f" (mean of {plural(seeds, 'seed')})" if seeds > 1 else ""
    ends = " to ".join(decimal(end) for end in first.interval or ())
    within = f", 95 % interval {ends}" if ends else ""
    told = [
        f"{first.experiment.name} has the {'lowest' if metrics[0] in FALLING else 'highest'} validation {metrics[0]}: "
        f"{decimal(first.experiment.mean(metrics[0]))}{of}{within}."
    ]
    if len(rows) == 1:
        return [*told, "There is no other experiment to compare it with."]
    second = rows[1]
    if second.against is None:
        return [*told, f"{second.experiment.name} follows; the two could not be compared."]
    return [*told, f"Against the next, {second.experiment.name}: {second.against.sentence}."]


def needed(rows: Sequence[Row], ablations: Sequence[Ablation], standings: Standings) -> Reason | None:
    """Say what the best loses most by, among the experiments of its model that are shown to be worse."""
    if not rows:
        return None
    best = rows[0].experiment
    relatives = [[a.base, *(e for e, _ in a.others)] for a in ablations if a.model == best.newest.model]
    lost = [
        (against.value, other)
        for group in relatives
        for other in group
        if other is not best and (against := standings.against(other.name, best.name)) and against.shown
    ]
    if not lost or min(lost, key=lambda pair: pair[0])[0] >= 0:
        return None
    value, other = min(lost, key=lambda pair: pair[0])
    told = _changed(changes(settings_of(best), settings_of(other)))
    return Reason(f"{told} ({other.name}) it loses {decimal(-value, 3)}", "ablation")


def _changed(found: Sequence[Change]) -> str:
    if len(found) == 1 and found[0].gone:
        return f"Without {', '.join(found[0].gone)}"
    if len(found) > 2:
        return f"With {plural(len(found), 'other setting')}"
    return f"With {' and '.join(f'{printable(c.key)}: {c.text}' for c in found) or 'the same settings'}"


def costliest(name: str, diagnosis: Mapping[str, Any]) -> Reason | None:
    """Say what costs an experiment most when permuted, None where its diagnosis does not show it."""
    importance = diagnosis.get("importance")
    entries = importance.get("groups") if isinstance(importance, Mapping) else None
    known = [
        (lost, printable(entry["name"]))
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, Mapping) and "name" in entry
        if (lost := number(entry.get("auc_lost"))) is not None and lost > max(number(entry.get("noise")) or 0.0, 0.0)
    ]
    if not known:
        return None
    lost, what = max(known)
    return Reason(f"Of what {name} reads, {what} costs most when permuted, {decimal(lost, 3)}", "diagnosis")
