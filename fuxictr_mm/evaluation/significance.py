"""The AUC of some rows with its interval, and of two rankings the variance of the difference.

Shape letters: R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

#: Weights of rows that are held at once.
CHUNK = 2**22


class RankedRows:
    """The validation rows as one run ranks them: sorted once, weighed as often as wanted.

    Parameters
    ----------
    label : ndarray
        ``(n,)``, 0 and 1, both there.
    score : ndarray
        ``(n,)``
    """

    def __init__(self, label: np.ndarray, score: np.ndarray) -> None:
        self.positive, self.negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
        self.score = score
        # Rows in the order of their scores; ties fall between `low` and `high` of each positive.
        self.negative = self.negative[np.argsort(score[self.negative], kind="stable")]
        self.low = np.searchsorted(score[self.negative], score[self.positive], "left")
        self.high = np.searchsorted(score[self.negative], score[self.positive], "right")

    def weighted_auc(self, weight: np.ndarray) -> np.ndarray:
        """Return the AUC of rows with weights w.

        ::

            AUC = sum_{i positive} w_i (W(< s_i) + W(<= s_i)) / 2 / (W+ W-),   W: weight of negatives with such a score

        Parameters
        ----------
        weight : ndarray
            ``(n, S)``, a column per sample.

        Returns
        -------
        ndarray
            ``(S,)``, NaN where one class has no weight.
        """
        below = np.zeros((len(self.negative) + 1, weight.shape[1]))
        np.cumsum(weight[self.negative], axis=0, out=below[1:])
        positive = weight[self.positive]
        won = np.einsum("ps,ps->s", positive, below[self.low] + below[self.high]) / 2
        pairs = positive.sum(axis=0) * below[-1]
        return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    @cached_property
    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """DeLong's structural components.

        Returns
        -------
        ndarray, ndarray
            ``(P,)``, for each positive the share of negatives below it, ties half; ``(N,)``, for each negative (in the
            order of the rows) the share of positives above it. The mean of either is the AUC.
        """
        ranked = np.sort(self.score[self.positive])
        negative = self.score[np.sort(self.negative)]
        not_above = np.searchsorted(ranked, negative, "left") + np.searchsorted(ranked, negative, "right")
        return (self.low + self.high) / 2 / len(self.negative), 1 - not_above / 2 / len(self.positive)

    @property
    def auc(self) -> float:
        """The AUC of the rows, each counted once."""
        return float(self.components[0].mean())


def delong_variance(runs: Sequence[RankedRows], others: Sequence[RankedRows] = ()) -> float:
    """Return the variance of a mean AUC, or of the difference of two means, over draws of independent rows.

    With the components V10 of positives and V01 of negatives, averaged over the runs of a side, and the second side's
    taken off::

        variance = var(V10) / P + var(V01) / N

    DeLong, DeLong and Clarke-Pearson, Biometrics 1988, https://doi.org/10.2307/2531595. The components come from sorted
    scores in O(n log n), as in Sun and Xu, IEEE Signal Processing Letters 2014,
    https://doi.org/10.1109/LSP.2014.2337313.

    Parameters
    ----------
    runs, others : sequence of RankedRows
        Of the same rows.
    """
    variance = 0.0
    for side in (0, 1):
        component = np.mean([run.components[side] for run in runs], axis=0)
        if others:
            component = component - np.mean([run.components[side] for run in others], axis=0)
        variance += component.var(ddof=1) / len(component)
    return float(variance)


def bootstrap_aucs(
    runs: Sequence[RankedRows], user: np.ndarray, samples: int, seed: int, track: Any = iter
) -> np.ndarray:
    """Return the AUC of each run in resampled validation sets.

    As many users are drawn, with replacement, as there are; each comes with all its rows. All runs see the same draws,
    so that differences between them are paired. Draws without both classes are left out.

    Parameters
    ----------
    runs : sequence of RankedRows
        K runs on the same rows.
    user : ndarray
        ``(n,)``, from 0 to U - 1 without gaps.
    samples : int
        S draws.
    seed : int
        Of the draws.
    track : callable
        Wraps the iterable of the chunks of draws, to show progress.

    Returns
    -------
    ndarray
        ``(K, S or fewer)``
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, min(samples, CHUNK // len(user)))
    found: list[np.ndarray] = []
    starts: Iterable[int] = track(range(0, samples, at_once))
    for start in starts:
        weight = draw_users(int(user.max()) + 1, min(at_once, samples - start), generator)[user]
        found.append(np.stack([run.weighted_auc(weight) for run in runs]))
    aucs = np.concatenate(found, axis=1)
    return aucs[:, ~np.isnan(aucs).any(axis=0)]


def draw_users(users: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Return how often each user is drawn, ``(U, S)``; each column sums to U."""
    drawn = generator.integers(users, size=(users, samples))
    flat = np.bincount((drawn * samples + np.arange(samples)).ravel(), minlength=users * samples)
    return flat.reshape(users, samples).astype(np.float64)


#: Of the standard normal distribution: 95 % lie within this many standard deviations.
NORMAL_95 = 1.959964


def auc_with_interval(label: np.ndarray, score: np.ndarray) -> dict[str, float | None]:
    """Return ``auc`` and its 95 % interval ``low`` to ``high`` by DeLong's variance.

    All are None where there is one class only; with one row of a class the interval is all there is, 0 to 1.

    Parameters
    ----------
    label, score : ndarray
        ``(R,)``; a label of 1 is a click.

    Examples
    --------
    >>> auc_with_interval(np.array([1, 0, 1, 0]), np.array([0.9, 0.1, 0.4, 0.4]))
    {'auc': 0.875, 'low': 0.52..., 'high': 1.0}
    >>> auc_with_interval(np.array([1, 1]), np.array([0.9, 0.1]))
    {'auc': None, 'low': None, 'high': None}
    """
    rarer = min(int((label == 1).sum()), int((label == 0).sum()))
    if rarer == 0:
        return {"auc": None, "low": None, "high": None}
    ranked = RankedRows(label, score)
    half = NORMAL_95 * math.sqrt(delong_variance([ranked])) if rarer > 1 else 1.0
    return {"auc": ranked.auc, "low": max(ranked.auc - half, 0.0), "high": min(ranked.auc + half, 1.0)}


def difference_variance(first: RankedRows, second: RankedRows) -> float:
    """Return DeLong's variance of the difference of two AUC on the same rows; 0 for the same ranking."""
    return delong_variance([first], [second])


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
