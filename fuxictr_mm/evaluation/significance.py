"""The difference of two configurations in a metric: its interval over users and seeds, and whether it is significant.

Shape letters: n examples, R runs of a configuration, U users, S bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fuxictr_mm.evaluation.intervals import Measured, sampling_error
from fuxictr_mm.runs import is_falling

#: Two-sided level of intervals and tests, and the power of ``Difference.detectable``.
ALPHA, POWER = 0.05, 0.8

#: Bootstrap weights in memory at once.
CHUNK = 2**22


def bootstrap(
    runs: Sequence[Measured],
    user: np.ndarray,
    samples: int,
    seed: int,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> np.ndarray:
    """Return the metric of each run on bootstrap samples of the users.

    A sample is U users sampled with replacement, each with all examples. All runs share the samples, so differences
    between runs are paired. For the AUC, samples with one class only are left out.

    Parameters
    ----------
    runs : sequence of Measured
        R runs, on the same examples.
    user : ndarray
        ``(n,)``, from 0 to U - 1 without gaps.
    samples, seed : int
        S, and the seed of the sampling.
    track : callable
        Wraps the iterable of chunks of samples, for a progress bar.

    Returns
    -------
    ndarray
        ``(R, S or fewer)``
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, min(samples, CHUNK // len(user)))
    found = []
    for start in track(range(0, samples, at_once)):
        weight = sample_users(int(user.max()) + 1, min(at_once, samples - start), generator)[user]
        found.append(np.stack([run.weighted(weight) for run in runs]))
    values = np.concatenate(found, axis=1)
    return values[:, ~np.isnan(values).any(axis=0)]


def sample_users(users: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Return how often each user is in each bootstrap sample, ``(U, S)``; each column sums to U."""
    drawn = generator.integers(users, size=(users, samples))
    flat = np.bincount((drawn * samples + np.arange(samples)).ravel(), minlength=users * samples)
    return flat.reshape(users, samples).astype(np.float64)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the runs of a configuration."""

    name: str  #: Name in conclusions.
    configuration: str  #: Equal for sides that are seeds of one configuration.
    runs: Sequence[Measured]  #: R runs, on the same examples as those of every other side.
    samples: np.ndarray  #: ``(R, S)`` of ``bootstrap``, computed for all sides at once.
    #: The metric on these examples of further runs of the configuration: they count for the variance between seeds.
    other_seeds: Sequence[float] = ()
    has_seeds: bool = True  #: Whether there can be other seeds: not of an ensemble, nor of a file.

    @property
    def metric(self) -> str:
        """``AUC``, ``RMSE`` or ``MAE``."""
        return self.runs[0].metric

    @property
    def sign(self) -> int:
        """1 if a higher value is better, -1 if a lower one is."""
        return -1 if is_falling(self.metric) else 1

    @property
    def values(self) -> np.ndarray:
        """The metric of each run, ``(R,)``."""
        return np.array([run.value for run in self.runs])

    @property
    def mean(self) -> float:
        """Mean of the runs."""
        return float(self.values.mean())


@dataclass(frozen=True)
class SeedDeviation:
    """Pooled standard deviation of the metric between seeds of a configuration, and its degrees of freedom."""

    value: float
    degrees: int


@dataclass(frozen=True)
class Difference:
    """Difference in the mean metric of two sides, first minus second.

    Parameters
    ----------
    value : float
        The difference.
    low, high : float
        95 % interval for new examples and, where ``seeds`` is known, new seeds.
    p_value : float
        Two-sided p-value, of examples and seeds.
    detectable : float
        Smallest true difference that would be significant with a power of 80 %, without correction for several tests.
    rows_low, rows_high : float
        95 % percentile interval of the bootstrap, for these weights only.
    rows_error, seeds_error : float
        Standard errors of the bootstrap and of the seeds (0 if unknown).
    rows_reach, seeds_reach : float
        Half widths of the interval from either source alone.
    rows_p : float or None
        p-value for these weights only and independent examples, of the AUC DeLong's; None for one example of a class.
    seeds : SeedDeviation or None
        None where the variance between seeds is unknown.
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
    rows_p: float | None
    seeds: SeedDeviation | None

    def is_significant(self, p_value: float | None = None) -> bool:
        """Whether the sides differ, by ``p_value`` where it is given (corrected for several tests)."""
        return self.seeds is not None and (self.p_value if p_value is None else p_value) < ALPHA

    def reversed(self) -> Difference:
        """Return the difference of the second side from the first."""
        low, high, rows_low, rows_high = -self.high, -self.low, -self.rows_high, -self.rows_low
        return replace(self, value=-self.value, low=low, high=high, rows_low=rows_low, rows_high=rows_high)


def difference(first: Side, second: Side, users: int) -> Difference:
    r"""Compare two sides on the same examples.

    With the bootstrap's standard error :math:`b` of the difference over U users, and the standard deviation between
    seeds :math:`s` with :math:`d` degrees of freedom, pooled over the configurations::

        e = s sqrt(1 / R_1 + 1 / R_2)
        interval = difference +- sqrt((t(U - 1) b)^2 + (t(d) e)^2),     t: 0.975 quantile

    (Howe, Journal of the American Statistical Association 1974, https://doi.org/10.1080/01621459.1974.10480197). The
    interval is never narrower than Student's for the seeds alone, so seeds of one configuration differ significantly in
    at most 5 % of comparisons. Satterthwaite's degrees of freedom would exceed that for few seeds.

    Parameters
    ----------
    first, second : Side
        A side with a single run and no other seeds leaves ``seeds`` unknown.
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
    half = math.hypot(rows_reach, seeds_reach)
    error = sampling_error(first.runs, second.runs)
    rows_p = float(2 * stats.norm.sf(abs(value) / error)) if error else None if error is None else float(value == 0)
    return Difference(
        value=value,
        low=value - half,
        high=value + half,
        p_value=_p_value(reach, abs(value)),
        detectable=half + reach(1 - POWER),
        rows_low=rows_low,
        rows_high=rows_high,
        rows_error=rows_error,
        seeds_error=seeds_error,
        rows_reach=rows_reach,
        seeds_reach=seeds_reach,
        rows_p=rows_p,
        seeds=seeds,
    )


def pool(groups: Sequence[Sequence[float]]) -> SeedDeviation | None:
    """Return the standard deviation within groups of values, None where a group has a single one.

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


def _seed_deviation(first: Side, second: Side) -> SeedDeviation | None:
    if first.configuration != second.configuration:
        return pool([[*side.values.tolist(), *side.other_seeds] for side in (first, second)])
    runs = [*first.values.tolist(), *second.values.tolist(), *first.other_seeds]
    # With two runs alone, their own difference would be the estimate.
    return pool([runs]) if len(runs) > 2 else None


def _p_value(reach: Callable[[float], float], value: float) -> float:
    """Return the level at which the interval just reaches ``value``, at least 1e-12."""
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
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.minimum(factors * np.take(p_values, order), 1.0))
    return corrected.tolist()


def fixed(value: float, sign: str = "") -> str:
    """Return four decimals, with ``sign="+"`` a plus as well; zero has no sign.

    Examples
    --------
    >>> fixed(-0.00001), fixed(0.5, "+")
    ('0.0000', '+0.5000')
    """
    return f"{round(value, 4) + 0.0:{sign}.4f}"


def conclude(first: Side, second: Side, found: Difference, p_value: float | None = None) -> str:
    """Return one sentence: which side is better and by how much, or which difference would have been detectable.

    Parameters
    ----------
    first, second : Side
        The sides of ``found``.
    found : Difference
        From ``difference``.
    p_value : float, optional
        Corrected for several tests.
    """
    if found.value == 0 and found.rows_error == 0:
        return f"no difference: {first.name} and {second.name} predict the same"
    sign = 1 if found.value >= 0 else -1
    better, worse = (first, second) if sign == first.sign else (second, first)
    low, high = sorted((sign * found.low, sign * found.high))
    size = f"{abs(found.value):.4f} (95 % interval {fixed(low)} to {fixed(high)})"
    single = len(first.runs) == len(second.runs) == 1
    what = "two seeds of one configuration" if single else "seeds of one configuration on both sides"
    same = f" ({what})" if first.configuration == second.configuration else ""
    if found.is_significant(p_value):
        return f"{better.name} is better than {worse.name} by {size}{same}"
    pair = "" if p_value is None else ", for this pair alone"
    limit = f"differences below {found.detectable:.4f} are not detectable (80 % power{pair})"
    if found.seeds is None:
        alone = [side for side in (first, second) if len(side.runs) + len(side.other_seeds) == 1]
        unknown = f"the variance between seeds of {' and '.join(side.name for side in alone)} is unknown"
        lone = " and ".join(side.name for side in alone if side.has_seeds)
        is_clear = (found.p_value if p_value is None else p_value) < ALPHA
        if is_clear and not lone:
            return f"{better.name} is better than {worse.name} for these predictions, by {size}; {unknown}{same}"
        if is_clear:
            what = "rank" if first.metric == "AUC" else "are"
            here = f"these predictions of {better.name} {what} better than those of {worse.name} by {size}"
            more = f"other seeds of {lone} may differ by as much: run at least 3 seeds of each"
            return f"seeds unknown: {here}, which is significant for them; {more}{same}"
        limit += f", and {unknown}"
    source = "examples" if found.seeds is None or found.rows_reach >= found.seeds_reach else "seeds"
    corrected = "; corrected for several tests" if p_value is not None and found.p_value < ALPHA else ""
    than = f"{'higher' if first.sign > 0 else 'lower'} than that of {worse.name} by {size}{corrected}"
    return (
        f"no significant difference: the {first.metric} of {better.name} is {than}; with these {source} {limit}{same}"
    )
