"""Settings of experiments: what differs between configurations, and between environments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fuxictr_mm.config import NAMING_KEYS, NOT_SET, comparable, differing
from fuxictr_mm.report.experiments import ExperimentRuns
from fuxictr_mm.terminal import DASH, MINUS, printable

#: Longest text of a setting, in characters.
SHOWN = 160

#: Keys of the environment that are not compared.
OF_THE_MOMENT = ("command", "started_at")


@dataclass(frozen=True)
class Change:
    """A setting that differs from the base's."""

    key: str
    text: str  #: What it changes to, as ``True → False``, or for lists what is left out and what is added.
    size: int  #: Size of the change: 1, or the number of entries for lists.
    gone: tuple[str, ...] = field(default=(), repr=False)  #: Entries removed from a list, if nothing is added to it.


@dataclass(frozen=True)
class Ablation:
    """Experiments of one model, compared with the one that the others differ from least."""

    model: str
    base: ExperimentRuns
    others: list[tuple[ExperimentRuns, list[Change]]]  #: The others, with what they change.


def settings_of(experiment: ExperimentRuns) -> dict[str, Any]:
    """Return the settings of the configuration, without names and seed."""
    return comparable(experiment.newest.config, without=NAMING_KEYS)


def changes(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[Change]:
    """Return what other settings change of a base's.

    Examples
    --------
    >>> changes({"senet": True, "use": ["a", "b"]}, {"senet": False, "use": ["b", "c"]})
    [Change(key='senet', text='True → False', size=1), Change(key='use', text='− a, + c', size=2)]
    """
    return [_change(key, *values) for key, values in differing([base, other]).items()]


def _change(key: str, before: Any, after: Any) -> Change:
    if isinstance(before, list) and isinstance(after, list) and set(map(str, before)) != set(map(str, after)):
        gone = [printable(v) for v in before if v not in after]
        new = [printable(v) for v in after if v not in before]
        text = ", ".join([*(f"{MINUS} {v}" for v in gone), *(f"+ {v}" for v in new)])
        return Change(key, text, len(gone) + len(new), () if new else tuple(gone))
    return Change(key, " → ".join([shown(before), shown(after)]), 1)


def ablations(experiments: Sequence[ExperimentRuns]) -> list[Ablation]:
    """Return, for each model with several experiments, the base and what the others change.

    The base is the experiment from which the others differ in the fewest settings; ties go to the shortest name.
    """
    models: dict[str, list[ExperimentRuns]] = {}
    for experiment in experiments:
        models.setdefault(experiment.newest.model, []).append(experiment)
    found = []
    for model, group in models.items():
        if len(group) < 2:
            continue
        settings = {e.name: settings_of(e) for e in group}
        sizes = {
            name: sum(c.size for s in settings.values() for c in changes(own, s)) for name, own in settings.items()
        }
        base = min(group, key=lambda e: (sizes[e.name], len(e.name), e.name))
        others = [(e, changes(settings[base.name], settings[e.name])) for e in group if e is not base]
        found.append(Ablation(model, base, others))
    return found


def table_of_differences(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the keys whose values differ among mappings, each with its value in every one as text."""
    found = []
    for key, values in differing(columns).items():
        short, full = ([shown(value, width) for value in values] for width in (SHOWN, 0))
        found.append((key, short if len(set(short)) == len(set(full)) else full))
    return found


def environments(experiments: Sequence[ExperimentRuns]) -> tuple[list[tuple[str, str]], list[tuple[str, list[str]]]]:
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
    differ = table_of_differences(columns)
    names = [key for key, _ in differ]
    shared = [(key, value) for key, value in columns[0].items() if key not in names] if columns else []
    return shared, differ


def shown(value: Any, width: int = SHOWN) -> str:
    """Return a setting as YAML text; above ``width`` characters its middle is left out."""
    if value is NOT_SET:
        return DASH
    if value is None or isinstance(value, str | bool):
        return printable("null" if value is None else value, width)
    return printable(json.dumps(value, default=str, ensure_ascii=False), width)
