"""Which experiment is best, and by how much: what ``fuxictr-mm compare`` says, for all experiments of a dataset.

Where ``compare`` refuses (other rows, a missing file), an experiment is left out here with a note, so that one broken
folder never costs the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fuxictr_mm.errors import UserError
from fuxictr_mm.records.comparison import ALPHA, Side
from fuxictr_mm.records.reading import RunRecord
from fuxictr_mm.records.standing import Comparison, compare_groups
from fuxictr_mm.report.gathering import Experiment


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
    comparison : Comparison or None
        None where there is nothing to compare.
    notes : list of str
        Who is missing, and what to keep in mind.
    """

    comparison: Comparison | None
    notes: list[str]

    @property
    def sides(self) -> dict[str, Side]:
        """By name of the experiment, best mean AUC first."""
        sides = [] if self.comparison is None else self.comparison.sides
        return {side.name: side for side in sorted(sides, key=lambda side: -side.mean)}

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return the 95 % interval of an experiment's mean AUC over resampled users, for its very weights."""
        if name not in self.sides:
            return None
        low, high = np.quantile(self.sides[name].samples.mean(axis=0), [ALPHA / 2, 1 - ALPHA / 2])
        return float(low), float(high)

    def against(self, first: str, second: str) -> Against | None:
        """Return the difference of two experiments, None where it is not known."""
        for pair in [] if self.comparison is None else self.comparison.pairs:
            if {pair.first.name, pair.second.name} == {first, second}:
                found, sign = pair.found, 1 if pair.first.name == first else -1
                low, high = sorted((sign * found.low, sign * found.high))
                shown = found.is_shown(pair.corrected_p)
                return Against(sign * found.value, low, high, shown, found.seeds is not None, pair.verdict)
        return None


def stand(
    experiments: Sequence[Experiment],
    known: Sequence[RunRecord],
    samples: int = 2000,
    track: Callable[[Iterable[int]], Any] = iter,
) -> Standings:
    """Compare every two experiments on their validation rows.

    Parameters
    ----------
    experiments : sequence of Experiment
        Of one dataset.
    known : sequence of RunRecord
        All runs there are, also those that are not on the page: they may be further seeds.
    samples : int
        Draws of users, as ``fuxictr-mm compare`` makes them.
    track : callable
        Wraps the iterable of the chunks of draws, to show progress.
    """
    notes: list[str] = []
    if not experiments:
        return Standings(None, notes)

    def leave_out(name: str, run: RunRecord, reason: str) -> None:
        notes.append(f"{name}, run {run.run}, is not compared: {reason}")

    groups = {experiment.name: experiment.runs for experiment in experiments}
    try:
        found = compare_groups(groups, known, samples=samples, track=track, on_problem=leave_out)
    except UserError as error:
        return Standings(None, [*notes, f"no intervals and verdicts: {error}"])
    return Standings(found, [*notes, *found.notes])
