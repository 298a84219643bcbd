"""Whether one configuration's AUC is higher than another's, by more than its rows and seeds would make it.

Two things make a measured difference a chance one: the validation rows, which are a draw of users, and the seeds of
the runs. Rows are resampled by user; seeds are judged by how far runs of one configuration lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fuxictr_mm.records.auc import RankedRows, delong_variance

#: Two-sided level of the intervals and tests, and the power that "can be seen" stands for.
ALPHA = 0.05
POWER = 0.8


@dataclass(frozen=True)
class Side:
    """The runs of one configuration: one, or several seeds.

    Parameters
    ----------
    name : str
        For the sentences.
    configuration : str
        Equal for sides that are seeds of one configuration.
    runs : sequence of RankedRows
        R runs on the same rows as every other side's.
    samples : ndarray
        ``(R, S)``, their AUCs in the resampled rows, from ``bootstrap_aucs`` with all runs of all sides.
    other_seeds : sequence of float
        AUCs on these rows of further runs of the configuration: they count for how far seeds lie apart.
    """

    name: str
    configuration: str
    runs: Sequence[RankedRows]
    samples: np.ndarray
    other_seeds: Sequence[float] = ()

    @property
    def aucs(self) -> np.ndarray:
        """AUC of each run, ``(R,)``."""
        return np.array([run.auc for run in self.runs])

    @property
    def mean(self) -> float:
        """Mean AUC."""
        return float(self.aucs.mean())


@dataclass(frozen=True)
class SeedDeviation:
    """How far the AUCs of seeds of one configuration lie apart.

    Parameters
    ----------
    value : float
        Standard deviation, pooled.
    degrees : int
        Degrees of freedom: runs less configurations.
    """

    value: float
    degrees: int


@dataclass(frozen=True)
class Difference:
    """The difference in mean AUC of two sides, first less second.

    Parameters
    ----------
    value : float
        The difference.
    low, high : float
        95 % interval of it for new rows and, where ``seeds`` is known, new seeds.
    p_value : float
        Of a difference this large by rows and seeds alone.
    detectable : float
        A true difference of this size would be shown with a chance of 80 %, were this the only pair.
    rows_low, rows_high : float
        95 % percentile interval over resampled users, for these very weights.
    rows_error, seeds_error : float
        Standard errors: of resampled users, and of the seeds (0 where nothing is known of them).
    rows_reach, seeds_reach : float
        Half of the interval that each would make alone.
    delong_p : float
        DeLong's test, for these very weights, rows taken as independent.
    seeds : SeedDeviation or None
        None where nothing is known of seeds: the difference is one of these weights.
    """

    value: float
    low: float
    high: float
    p_value: float
    detectable: float
    rows_low: float
    rows_high: float
    rows_error: float
    seeds_error: float
    rows_reach: float
    seeds_reach: float
    delong_p: float
    seeds: SeedDeviation | None

    def is_shown(self, p_value: float | None = None) -> bool:
        """Whether the sides differ; ``p_value`` may be one that was corrected for several tests."""
        return self.seeds is not None and (self.p_value if p_value is None else p_value) < ALPHA


def pool(groups: Sequence[Sequence[float]]) -> SeedDeviation | None:
    """Return the deviation between seeds within groups of AUCs, None where a group has one only.

    Examples
    --------
    >>> pool([[0.70, 0.72], [0.65, 0.67]])
    SeedDeviation(value=0.0141..., degrees=2)
    """
    if min(len(group) for group in groups) < 2:
        return None
    degrees = sum(len(group) - 1 for group in groups)
    squares = sum(float(np.var(group)) * len(group) for group in groups)
    return SeedDeviation(math.sqrt(squares / degrees), degrees)


def difference(first: Side, second: Side, users: int) -> Difference:
    r"""Compare two sides.

    With the bootstrap's standard error over U users :math:`b` of the difference of means, and the deviation between
    seeds :math:`s` with its degrees of freedom :math:`d`, pooled over the configurations::

        e = s sqrt(1 / n_1 + 1 / n_2)
        interval = difference +- sqrt((t(U - 1) b)^2 + (t(d) e)^2),     t: 0.975 quantile

    (Howe, Journal of the American Statistical Association 1974, https://doi.org/10.1080/01621459.1974.10480197). It is
    never narrower than Student's interval for the seeds alone: for two groups of seeds of one configuration, whose
    difference the rows do not make, the test errs at most as often as it says. Satterthwaite's degrees of freedom for
    the sum would err more often: where few seeds lie near each other by chance, they would take the error for known.

    Parameters
    ----------
    first, second : Side
        On the same rows. A side whose configuration has one run only leaves the seeds unknown.
    users : int
        U.
    """
    from scipy import stats

    value = first.mean - second.mean
    drawn = first.samples.mean(axis=0) - second.samples.mean(axis=0)
    rows_low, rows_high = (float(q) for q in np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2]))
    rows_error = float(drawn.std(ddof=1))
    seeds = _seed_deviation(first, second)
    seeds_error = 0.0 if seeds is None else seeds.value * math.sqrt(1 / len(first.runs) + 1 / len(second.runs))

    def reaches(tail: float) -> tuple[float, float]:
        of_seeds = 0.0 if seeds is None else stats.t.isf(tail, seeds.degrees) * seeds_error
        return float(stats.t.isf(tail, users - 1) * rows_error), float(of_seeds)

    def reach(tail: float) -> float:
        return math.hypot(*reaches(tail))

    rows_reach, seeds_reach = reaches(ALPHA / 2)
    width = math.hypot(rows_reach, seeds_reach)
    delong_error = math.sqrt(delong_variance(first.runs, second.runs))
    return Difference(
        value=value,
        low=value - width,
        high=value + width,
        p_value=_solve(reach, abs(value)),
        detectable=width + reach(1 - POWER),
        rows_low=rows_low,
        rows_high=rows_high,
        rows_error=rows_error,
        seeds_error=seeds_error,
        rows_reach=rows_reach,
        seeds_reach=seeds_reach,
        delong_p=float(2 * stats.norm.sf(abs(value) / delong_error)) if delong_error > 0 else 1.0,
        seeds=seeds,
    )


def _seed_deviation(first: Side, second: Side) -> SeedDeviation | None:
    if first.configuration != second.configuration:
        return pool([[*side.aucs.tolist(), *side.other_seeds] for side in (first, second)])
    runs = [*first.aucs.tolist(), *second.aucs.tolist(), *first.other_seeds]
    # Two runs alone would be judged by their own difference.
    return pool([runs]) if len(runs) > 2 else None


def _solve(reach: Callable[[float], float], value: float) -> float:
    """Return the level at which an interval would just reach a value, 1e-12 at least."""
    from scipy import optimize

    smallest = 1e-12
    if value == 0:
        return 1.0
    if reach(smallest / 2) <= value:
        return smallest
    return math.exp(optimize.brentq(lambda p: reach(math.exp(p) / 2) - value, math.log(smallest), 0.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, Scandinavian Journal of Statistics 1979).

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def fixed(value: float, sign: str = "") -> str:
    """Return four decimals, with ``sign="+"`` a plus as well; zero has no sign of its own.

    Examples
    --------
    >>> fixed(-0.00001), fixed(0.5, "+")
    ('0.0000', '+0.5000')
    """
    return f"{round(value, 4) + 0.0:{sign}.4f}"


def verdict(first: Side, second: Side, found: Difference, p_value: float | None = None) -> str:
    """Say in one sentence which side is better, by how much, or what could not be seen.

    Parameters
    ----------
    first, second : Side
        The sides of ``found``.
    found : Difference
        From ``difference``.
    p_value : float, optional
        One that was corrected for several tests.
    """
    if found.value == 0 and found.rows_error == 0:
        return f"no difference: {first.name} and {second.name} predict the same"
    same = ""
    if first.configuration == second.configuration:
        single = len(first.runs) == len(second.runs) == 1
        same = " (two seeds of one configuration)" if single else " (seeds of one configuration on both sides)"
    one, two, sign = (first, second, 1) if found.value >= 0 else (second, first, -1)
    low, high = sorted((sign * found.low, sign * found.high))
    figures = f"{abs(found.value):.4f} (95 % interval {fixed(low)} to {fixed(high)})"
    if found.is_shown(p_value):
        return f"{one.name} is better than {two.name} by {figures}{same}"
    alone = "" if p_value is None else ", for this pair alone"
    blind = f"differences below {found.detectable:.4f} cannot be seen (80 % power{alone})"
    if found.seeds is None:
        here = f"no difference shown: the weights of {one.name} rank these rows better than those of {two.name} by"
        lone = " and ".join(side.name for side in (first, second) if len(side.runs) + len(side.other_seeds) == 1)
        if low > 0:
            return f"{here} {figures}, but other seeds of {lone} alone may change as much: run 3 of each{same}"
        return f"{here} {figures}; with these rows {blind}, and nothing is known of other seeds of {lone}{same}"
    limit = "rows" if found.rows_reach >= found.seeds_reach else "seeds"
    corrected = "; corrected for several tests" if p_value is not None and found.p_value < ALPHA else ""
    return (
        f"no difference shown: {one.name} is ahead of {two.name} by {figures}{corrected}; "
        f"with these {limit} {blind}{same}"
    )
