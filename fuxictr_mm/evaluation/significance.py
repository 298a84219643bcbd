"""AUC, RMSE or MAE with its uncertainty: by examples alone, by a bootstrap over users, and between seeds.

Shape letters: n examples, P positives, N negatives, R runs of a configuration, U users, S bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np

from fuxictr_mm.metric_names import ERRORS
from fuxictr_mm.runs import is_falling

#: Two-sided level of intervals and tests, and the power of ``Difference.detectable``.
ALPHA, POWER = 0.05, 0.8

#: 0.975 quantile of the standard normal distribution.
NORMAL_95 = 1.959964

#: Bootstrap weights in memory at once.
CHUNK = 2**22


class Errors:
    """The errors of one run in a regression: RMSE or MAE under any weights.

    Parameters
    ----------
    label, prediction : ndarray
        ``(n,)``
    metric : {"RMSE", "MAE"}
        Which of them.
    """

    def __init__(self, label: np.ndarray, prediction: np.ndarray, metric: str) -> None:
        self.metric = metric
        error = prediction.astype(np.float64) - label
        self.error = error**2 if metric == "RMSE" else np.abs(error)

    def weighted(self, weight: np.ndarray) -> np.ndarray:
        """Return the metric ``(S,)`` for S sets of weights ``(n, S)``."""
        mean = self.error @ weight / weight.sum(axis=0)
        return np.sqrt(mean) if self.metric == "RMSE" else mean

    @property
    def value(self) -> float:
        """The metric, each example counted once."""
        mean = self.error.mean()
        return float(np.sqrt(mean) if self.metric == "RMSE" else mean)

    @cached_property
    def components(self) -> tuple[np.ndarray]:
        """What an example adds to the metric, to first order ``(n,)``: the square root has the slope 1 / (2 RMSE)."""
        return (self.error / (2 * max(self.value, np.finfo(float).tiny)) if self.metric == "RMSE" else self.error,)


class Ranking:
    """Examples ranked by the scores of one run: sorted once, for the AUC under any weights.

    Parameters
    ----------
    label : ndarray
        ``(n,)``, 0 and 1, both present.
    score : ndarray
        ``(n,)``
    """

    metric = "AUC"

    def __init__(self, label: np.ndarray, score: np.ndarray) -> None:
        self.score = score
        self.positive, negative = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
        self.negative = negative[np.argsort(score[negative], kind="stable")]
        # For each positive: negatives with a lower score, and those with a lower or equal one.
        self.low = np.searchsorted(score[self.negative], score[self.positive], "left")
        self.high = np.searchsorted(score[self.negative], score[self.positive], "right")

    def weighted(self, weight: np.ndarray) -> np.ndarray:
        """Return the AUC of weighted examples, for S sets of weights w.

        ::

            AUC = sum_{i positive} w_i (W(< s_i) + W(<= s_i)) / 2 / (W+ W-),   W: weight of negatives with such a score

        Parameters
        ----------
        weight : ndarray
            ``(n, S)``

        Returns
        -------
        ndarray
            ``(S,)``, NaN where a class has no weight.
        """
        below = np.zeros((len(self.negative) + 1, weight.shape[1]))
        np.cumsum(weight[self.negative], axis=0, out=below[1:])
        positive = weight[self.positive]
        won = np.einsum("ps,ps->s", positive, below[self.low] + below[self.high]) / 2
        pairs = positive.sum(axis=0) * below[-1]
        return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    @cached_property
    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """DeLong's structural components V10 ``(P,)`` and V01 ``(N,)``; the mean of either is the AUC.

        V10 is, for each positive, the fraction of negatives below it, V01, for each negative, the fraction of positives
        above it; ties count half. Both are in the order of the examples.
        """
        positive, negative = np.sort(self.score[self.positive]), self.score[np.sort(self.negative)]
        not_above = np.searchsorted(positive, negative, "left") + np.searchsorted(positive, negative, "right")
        return (self.low + self.high) / 2 / len(negative), 1 - not_above / 2 / len(positive)

    @property
    def value(self) -> float:
        """AUC, each example counted once."""
        return float(self.components[0].mean())


#: A metric of the predictions of one run for n examples, under any weights of the examples.
Measured: TypeAlias = Ranking | Errors


def metric_of(is_regression: bool, metrics: Iterable[str]) -> str:
    """Return what models are judged by: AUC, or in a regression the first of RMSE and MAE among their metrics."""
    return next((name for name in metrics if name in ERRORS), "RMSE") if is_regression else "AUC"


def measured(label: np.ndarray, prediction: np.ndarray, metric: str) -> Measured:
    """Return a metric of ``metric_of`` of predictions ``(n,)``."""
    return Ranking(label, prediction) if metric == "AUC" else Errors(label, prediction, metric)


def sampling_variance(runs: Sequence[Measured], others: Sequence[Measured] = ()) -> float:
    """Return the variance of a mean metric, or of the difference of two means, for independent examples.

    That of the AUC is DeLong's, with V10 and V01 averaged over the runs and those of ``others`` subtracted::

        variance = var(V10) / P + var(V01) / N

    DeLong, DeLong and Clarke-Pearson, Biometrics 1988, https://doi.org/10.2307/2531595. The components come from sorted
    scores in O(n log n), as in Sun and Xu, IEEE Signal Processing Letters 2014,
    https://doi.org/10.1109/LSP.2014.2337313. Errors have one component, of all examples: the variance of a mean.

    Parameters
    ----------
    runs, others : sequence of Measured
        Of the same examples.
    """
    variance = 0.0
    for part in range(len(runs[0].components)):
        component = np.mean([run.components[part] for run in runs], axis=0)
        if others:
            component = component - np.mean([run.components[part] for run in others], axis=0)
        variance += component.var(ddof=1) / len(component)
    return float(variance)


def sampling_error(runs: Sequence[Measured], others: Sequence[Measured] = ()) -> float | None:
    """Return the root of ``sampling_variance``, None where a class has a single example."""
    alone = min(map(len, runs[0].components)) < 2
    return None if alone else math.sqrt(sampling_variance(runs, others))


def with_interval(label: np.ndarray, prediction: np.ndarray, metric: str) -> dict[str, float | None]:
    """Return a metric by its name in lower case, and its 95 % interval ``low`` to ``high``, for independent examples.

    Of the AUC ``auc_with_interval``; of RMSE and MAE from the standard error, which one example does not have.
    """
    if metric == "AUC":
        return auc_with_interval(label, prediction)
    found = Errors(label, prediction, metric)
    if len(label) < 2:
        return {metric.lower(): found.value, "low": None, "high": None}
    half = NORMAL_95 * math.sqrt(sampling_variance([found]))
    return {metric.lower(): found.value, "low": max(found.value - half, 0.0), "high": found.value + half}


def auc_with_interval(label: np.ndarray, score: np.ndarray) -> dict[str, float | None]:
    """Return ``auc`` and its 95 % interval ``low`` to ``high``; all are None where there is one class only.

    The interval is DeLong's, after one example of each class is added below all scores and one above: of few examples
    alone, which may be ranked without an error, the variance is 0 or far too small. Agresti and Coull, The American
    Statistician 1998, https://doi.org/10.1080/00031305.1998.10480550, add two successes and two failures to a
    proportion for the same reason.

    Parameters
    ----------
    label, score : ndarray
        ``(n,)``

    Examples
    --------
    >>> auc_with_interval(np.array([1, 0, 1, 0]), np.array([0.9, 0.1, 0.4, 0.4]))
    {'auc': 0.875, 'low': 0.13..., 'high': 1.0}
    >>> auc_with_interval(np.array([1, 1]), np.array([0.9, 0.1]))
    {'auc': None, 'low': None, 'high': None}
    """
    if not ((label == 1).any() and (label == 0).any()):
        return {"auc": None, "low": None, "high": None}
    added = Ranking(np.append(label, [0, 1, 0, 1]), np.append(score, [-np.inf, -np.inf, np.inf, np.inf]))
    half = NORMAL_95 * math.sqrt(sampling_variance([added]))
    return {
        "auc": Ranking(label, score).value,
        "low": max(added.value - half, 0.0),
        "high": min(added.value + half, 1.0),
    }


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
        if (found.p_value if p_value is None else p_value) < ALPHA and not lone:
            return f"{better.name} is better than {worse.name} for these predictions, by {size}; {unknown}{same}"
        what = "rank" if first.metric == "AUC" else "predict"
        here = f"no significant difference: the weights of {better.name} {what} these examples better than those of"
        here += f" {worse.name} by {size}"
        if low > 0 and lone:
            return f"{here}, but other seeds of {lone} may differ by as much: run at least 3 seeds of each{same}"
        return f"{here}; with these examples {limit}, and {unknown}{same}"
    source = "examples" if found.rows_reach >= found.seeds_reach else "seeds"
    corrected = "; corrected for several tests" if p_value is not None and found.p_value < ALPHA else ""
    than = f"{'higher' if first.sign > 0 else 'lower'} than that of {worse.name} by {size}{corrected}"
    return (
        f"no significant difference: the {first.metric} of {better.name} is {than}; with these {source} {limit}{same}"
    )
