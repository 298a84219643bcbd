"""Figures of runs: intervals, differences, learning curves, speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fuxictr_mm.report.comparisons import Comparisons
from fuxictr_mm.report.drawing import ACCENT, INK, MUTED, PALE, SERIES, Dot, Line, Panel, Plot, dots, limits, lines
from fuxictr_mm.report.experiments import ExperimentRuns, average, history
from fuxictr_mm.runs import Run, is_falling
from fuxictr_mm.terminal import decimal, grouped, listed, number, plural, signed

#: Experiments in one plot; the table has all.
MOST_ROWS = 30

#: Largest number of points of a curve that are marked.
MOST_DOTS = 20

#: Seeds per plot of learning curves, each in its own colour.
MOST_SEEDS = len(SERIES)


def plot_intervals(comparisons: Comparisons, order: Sequence[ExperimentRuns]) -> Plot | None:
    """Plot the metric of each experiment with its interval over resampled users."""
    rows: list[Dot] = []
    for experiment in [e for e in order if e.name in comparisons.sides][:MOST_ROWS]:
        side, interval = comparisons.sides[experiment.name], comparisons.interval(experiment.name)
        low, high = interval if interval else (None, None)
        seeds = side.values.tolist() if len(side.runs) > 1 else []
        rows.append(Dot(experiment.name, side.mean, low, high, INK if rows else ACCENT, seeds))
    if not rows:
        return None
    highest, lowest = (choose(rows, key=lambda row: row.value) for choose in (max, min))
    best, worst = (highest, lowest) if side.sign > 0 else (lowest, highest)
    first, last = ("highest", "lowest") if side.sign > 0 else ("lowest", "highest")
    sentences = [f"{best.name} is {first} with {decimal(best.value)} ({decimal(best.low)} to {decimal(best.high)})"]
    if len(rows) > 1:
        ends = f"{decimal(worst.low)} to {decimal(worst.high)}"
        sentences.append(f"{worst.name} {last} with {decimal(worst.value)} ({ends})")
    caption = (
        f"{listed(sentences)}. Whiskers: 95 % interval over resampled users, for these weights"
        f"{'; rings: single seeds' if any(row.others for row in rows) else ''}. All experiments share the rows, so "
        f"whiskers may overlap although a difference is significant: see the differences.{_cut(order)}"
    )
    return dots(f"Validation {side.metric}", caption, rows, f"{side.metric} on the validation rows")


def _cut(experiments: Sequence[ExperimentRuns]) -> str:
    """Return the end of a caption where not all experiments are in the plot."""
    return f" Of the first {MOST_ROWS} of {len(experiments)} experiments." if len(experiments) > MOST_ROWS else ""


def plot_differences(comparisons: Comparisons, order: Sequence[ExperimentRuns]) -> Plot | None:
    """Plot each experiment's difference to the best with its interval."""
    named = [e.name for e in order if e.name in comparisons.sides]
    rows, alone = [], False
    better: list[str] = []
    worse: list[str] = []
    for name in named[1:MOST_ROWS]:
        against = comparisons.against(name, named[0])
        if against is not None:
            found = against.found
            rows.append(Dot(name, found.value, found.low, found.high, MUTED if against.better else INK))
            alone = alone or found.seeds is None
            if against.better:
                (better if against.better == name else worse).append(name)
    if not rows:
        return None
    lost = listed([f"{row.name} {signed(row.value)} ({signed(row.low)} to {signed(row.high)})" for row in rows], 3)
    result = f"Significantly worse: {listed(worse)}." if worse else "None is significantly worse."
    result += f" Significantly better: {listed(better)}." if better else ""
    caption = (
        f"Against {named[0]}: {lost}. {result} Whiskers: 95 % interval of the difference, over users and, where there "
        "are several, seeds; one that crosses the dashed line at 0 may be noise."
    )
    caption += (
        " With one seed per experiment, other seeds may differ by as much: run three seeds of each." if alone else ""
    )
    caption += _cut(order)
    return dots(
        f"Difference to {named[0]}", caption, rows, f"difference in {comparisons.sides[named[0]].metric}", reference=0.0
    )


def plot_curves(experiments: Sequence[ExperimentRuns], metric: str) -> list[Plot]:
    """Plot training loss and validation metric of each experiment's seeds, the others in the background."""
    curves = {e.name: [(run, history(run)) for run in e.runs] for e in experiments}
    everything = [entries for runs in curves.values() for _, entries in runs]
    scales = {key: limits([y for entries in everything for y in _points(entries, key)[1]]) for key in ("loss", metric)}
    plots = []
    for experiment in experiments:
        runs = [(run, entries) for run, entries in curves[experiment.name] if _points(entries, metric)[0]]
        runs.sort(key=lambda pair: (pair[0].seed is None, pair[0].seed or 0))
        if not runs:
            continue
        others = [entries for name, of in curves.items() if name != experiment.name for _, entries in of]
        panels = []
        for key, label in (("loss", "training loss"), (metric, f"validation {metric}")):
            behind = [_behind(others, key)]
            own = [
                _curve(entries, key, colour, f"seed {run.seed}" if key == "loss" and len(runs) > 1 else "", metric)
                for (run, entries), colour in zip(runs, SERIES, strict=False)
            ]
            panels.append(Panel([line for line in (*behind, *own) if line.x], label, limits=scales[key]))
        panels = [panel for panel in panels if panel.lines]
        plots.append(lines(experiment.name, _describe_curves(runs, metric, bool(others)), panels, "training step"))
    return plots


def _behind(others: Sequence[Sequence[Mapping[str, Any]]], key: str) -> Line:
    """Return the curves of other experiments as one line with gaps, which keeps the page small."""
    x: list[float] = []
    y: list[float] = []
    for entries in others:
        for along, values in zip((x, y), _points(entries, key), strict=True):
            along += [*values, math.nan] if values else []
    return Line(x, y, colour=PALE, dots=False)


def _points(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    pairs = [(number(e.get("step")), number(e.get(key))) for e in entries]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in known], [y for _, y in known]


def _curve(entries: Sequence[Mapping[str, Any]], key: str, colour: str, name: str = "", metric: str = "") -> Line:
    x, y = _points(entries, key)
    best = _best(entries, metric) if metric and key == metric else None
    mark = None if best is None else (float(best["step"]), float(best[key]))
    return Line(x, y, name, colour, dots=len(x) <= MOST_DOTS, mark=mark)


def _best(entries: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    having = [e for e in entries if number(e.get(metric)) is not None]
    choose = min if is_falling(metric) else max
    return choose(having, key=lambda e: e[metric]) if having else None


def _describe_curves(runs: Sequence[tuple[Run, list[dict[str, Any]]]], metric: str, others: bool) -> str:
    sentences = []
    for run, entries in runs[:MOST_SEEDS]:
        best, losses = _best(entries, metric), _points(entries, "loss")[1]
        assert best is not None
        loss = f"; training loss {decimal(losses[0], 3)} to {decimal(losses[-1], 3)}" if losses else ""
        epoch = number(best.get("epoch"))
        where = f"step {best['step']:.0f}" if epoch is None else f"epoch {epoch:.0f} of {_epochs(entries)}"
        sentences.append(f"Seed {run.seed}: best {metric} {decimal(best[metric])} at {where}{loss}.")
    if len(runs) > MOST_SEEDS:
        sentences.append(f"{plural(len(runs) - MOST_SEEDS, 'more seed')} not shown.")
    return " ".join(sentences) + " The ring marks the best." + (" Pale: the other experiments." if others else "")


def _epochs(entries: Sequence[Mapping[str, Any]]) -> str:
    known = [epoch for e in entries if (epoch := number(e.get("epoch"))) is not None]
    return f"{max(known):.0f}" if known else "?"


def rows_per_second(run: Run) -> float | None:
    """Return the median speed over the evaluations of a run."""
    known = [v for e in history(run) if (v := number(e.get("rows_per_second"))) is not None]
    return statistics.median(known) if known else None


def seconds_per_epoch(run: Run) -> float | None:
    """Return the wall time of a run until its last evaluation by the epochs until then."""
    ends = [(number(e.get("seconds")), number(e.get("epoch"))) for e in history(run)]
    known = [(seconds, epoch) for seconds, epoch in ends if seconds is not None and epoch]
    return known[-1][0] / known[-1][1] if known else None


def speed_of(experiment: ExperimentRuns) -> list[float]:
    """Return the speed of each run that has one."""
    return [speed for run in experiment.runs if (speed := rows_per_second(run)) is not None]


def plot_speed(experiments: Sequence[ExperimentRuns]) -> Plot | None:
    """Plot rows per second of each experiment, with a ring for each run."""
    rows = []
    for experiment in experiments[:MOST_ROWS]:
        speeds = speed_of(experiment)
        mean = average(speeds)
        if mean is not None:
            rows.append(Dot(experiment.name, mean, colour=SERIES[0], others=speeds if len(speeds) > 1 else ()))
    if not rows:
        return None
    rows.sort(key=lambda row: -row.value)
    fast, slow = rows[0], rows[-1]
    caption = f"{fast.name} trains at {grouped(fast.value)} rows per second"
    caption += f", {slow.name} at {grouped(slow.value)}." if len(rows) > 1 else "."
    if any(row.others for row in rows):
        caption += " Rings: single runs."
    caption += _cut(experiments)
    return dots("Training speed", caption, rows, "training rows per second", bars=True)
