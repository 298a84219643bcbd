"""How experiments of the report compare: intervals, differences and conclusions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fuxictr_mm.errors import UserError
from fuxictr_mm.evaluation.compare import Comparison, Pair, compare_groups
from fuxictr_mm.evaluation.significance import ALPHA, Side
from fuxictr_mm.report.experiments import ExperimentRuns
from fuxictr_mm.runs import Run


@dataclass(frozen=True)
class Comparisons:
    """Comparison of the experiments of a dataset."""

    comparison: Comparison | None  #: None if there is nothing to compare.
    notes: list[str]  #: Which experiments are missing, and what limits the conclusions.

    @property
    def sides(self) -> dict[str, Side]:
        """Sides by name of the experiment, the best first."""
        sides = [] if self.comparison is None else self.comparison.sides
        return {side.name: side for side in sorted(sides, key=lambda side: -side.sign * side.mean)}

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of an experiment's mean metric over resampled users, for its present weights."""
        if name not in self.sides:
            return None
        low, high = np.quantile(self.sides[name].samples.mean(axis=0), [ALPHA / 2, 1 - ALPHA / 2])
        return float(low), float(high)

    def against(self, first: str, second: str) -> Pair | None:
        """Return the difference of two experiments; None if they were not compared."""
        pairs = [] if self.comparison is None else self.comparison.pairs
        return next((pair.of(first) for pair in pairs if {pair.first.name, pair.second.name} == {first, second}), None)


def compare_experiments(
    experiments: Sequence[ExperimentRuns],
    known: Sequence[Run],
    track: Callable[[Iterable[int]], Any] = iter,
    task: str | None = None,
) -> Comparisons:
    """Compare all pairs of experiments of a dataset on their validation rows, by the label ``task`` of several.

    Of ``known``, runs that are not on the page may be further seeds. ``track`` wraps the chunks of bootstrap samples,
    to show progress.
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
