"""The order of experiments, and sentences on which is best and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.evaluation.compare import Pair
from fuxictr_mm.report.comparisons import Comparisons
from fuxictr_mm.report.experiments import ExperimentRuns, average
from fuxictr_mm.report.figures import speed_of
from fuxictr_mm.report.settings import Ablation, Change, changes, settings_of
from fuxictr_mm.runs import is_falling
from fuxictr_mm.terminal import decimal, number, plural, printable

#: Metric that experiments are ordered by, if they have it.
FIRST = "AUC"


@dataclass(frozen=True)
class Row:
    """An experiment in the leaderboard."""

    experiment: ExperimentRuns
    interval: tuple[float, float] | None  #: 95 % interval of the metric that it is compared by.
    against: Pair | None  #: Its difference to the best; None for the best and if it is unknown.
    speed: float | None  #: Mean training rows per second.
    best: bool

    @property
    def conclusion(self) -> str:
        """The conclusion in a few words."""
        return "best" if self.best else conclusion_of(self.against)


@dataclass(frozen=True)
class Reason:
    """A reason for the result of the best experiment, in one sentence."""

    text: str  #: The sentence, without its full stop.
    section: str  #: Section of the page with the details: ``ablation`` or ``diagnosis``.


def conclusion_of(against: Pair | None) -> str:
    """Return the conclusion about a difference in a few words."""
    if against is None:
        return "not compared"
    if against.better:
        return "better" if against.better == against.first.name else "worse"
    is_known = against.found.seeds is not None or against.found.low <= 0 <= against.found.high
    return "no significant difference" if is_known else "seeds unknown"


def metrics_of(experiments: Sequence[ExperimentRuns], split: str = "valid") -> list[str]:
    """Return the metrics of any experiment, AUC first."""
    names = dict.fromkeys(name for e in experiments for run in e.runs for name in getattr(run, split))
    known = [name for name in names if any(e.values(name, split) for e in experiments)]
    return sorted(known, key=lambda name: name != FIRST)


def leaderboard(experiments: Sequence[ExperimentRuns], comparisons: Comparisons) -> list[Row]:
    """Return a row for each experiment, best first; those without the first metric last."""
    metrics = metrics_of(experiments)
    sign = -1 if metrics and is_falling(metrics[0]) else 1

    def sort_key(experiment: ExperimentRuns) -> tuple[bool, float, str]:
        mean = experiment.mean(metrics[0]) if metrics else None
        return mean is None, 0.0 if mean is None else -sign * mean, experiment.name

    order = sorted(experiments, key=sort_key)
    rows = []
    for rank, experiment in enumerate(order):
        against = comparisons.against(experiment.name, order[0].name) if rank else None
        speed = average(speed_of(experiment))
        rows.append(Row(experiment, comparisons.interval(experiment.name), against, speed, rank == 0))
    return rows


def lead(rows: Sequence[Row]) -> list[str]:
    """Return sentences on which experiment is best, and its difference to the next."""
    metrics = metrics_of([row.experiment for row in rows])
    if not rows or not metrics:
        return ["No finished run yet."]
    first = rows[0]
    seeds = len(first.experiment.values(metrics[0]))
    of = f" (mean of {plural(seeds, 'seed')})" if seeds > 1 else ""
    ends = " to ".join(decimal(end) for end in first.interval or ())
    within = f", 95 % interval {ends}" if ends else ""
    sentences = [
        f"{first.experiment.name} has the {'lowest' if is_falling(metrics[0]) else 'highest'} validation {metrics[0]}: "
        f"{decimal(first.experiment.mean(metrics[0]))}{of}{within}."
    ]
    if len(rows) == 1:
        return [*sentences, "There is no other experiment to compare it with."]
    second = rows[1]
    if second.against is None:
        return [*sentences, f"{second.experiment.name} follows; the two could not be compared."]
    return [*sentences, f"Compared with the next, {second.experiment.name}: {second.against.conclusion}."]


def needed(rows: Sequence[Row], ablations: Sequence[Ablation], comparisons: Comparisons) -> Reason | None:
    """Return the change that costs the best experiment most, among significantly worse experiments of its model."""
    if not rows:
        return None
    best = rows[0].experiment
    relatives = [[a.base, *(e for e, _ in a.others)] for a in ablations if a.model == best.newest.model]
    lost = [
        (abs(against.found.value), other)
        for group in relatives
        for other in group
        if other is not best and (against := comparisons.against(other.name, best.name)) and against.better == best.name
    ]
    if not lost:
        return None
    value, other = max(lost, key=lambda pair: pair[0])
    changed = _changed(changes(settings_of(best), settings_of(other)))
    return Reason(f"{changed} ({other.name}) it loses {decimal(value, 3)}", "ablation")


def _changed(found: Sequence[Change]) -> str:
    if len(found) == 1 and found[0].gone:
        return f"Without {', '.join(found[0].gone)}"
    if len(found) > 2:
        return f"With {plural(len(found), 'other setting')}"
    return f"With {' and '.join(f'{printable(c.key)}: {c.text}' for c in found) or 'the same settings'}"


def costliest(name: str, diagnosis: Mapping[str, Any]) -> Reason | None:
    """Return what costs an experiment most when permuted; None if its diagnosis has no such entry."""
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
    return Reason(f"Of the inputs of {name}, permuting {what} costs most, {decimal(lost, 3)}", "diagnosis")
