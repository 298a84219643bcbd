"""The values that a study may try, and how its points are drawn from them.

A point holds a value of each tuned setting. Which one trial number n gets is decided by the seed and n, for ``tpe``
also by what is known of the other trials; it differs from every point that was drawn before it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from fuxictr_mm.checking import check_types, describe, matches
from fuxictr_mm.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

RANGE_KEYS = {"low": float, "high": float, "log": bool, "step": float}
TRIES = 20  # draws of a sampler that may repeat known points before chance decides
RANDOM_TRIES = 200  # and of chance, before the points that are left are counted

Point: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Parameters
    ----------
    low, high : float
        Ends.
    step : float, optional
        Distance between two values; None: 1 for whole numbers, any distance for others.
    log : bool
        Drawn evenly by their logarithm.
    whole : bool
        Whole numbers only.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def size(self) -> float:
        """How many values there are."""
        step = self.step or (1 if self.whole else 0)
        return round((self.high - self.low) / step) + 1 if step else math.inf

    def values(self) -> list[float]:
        """Return all values of a range that has finitely many."""
        step = self.step or 1
        return [self.low + step * index for index in range(int(self.size))]


Space: TypeAlias = "dict[str, list[Any] | Range]"


def read_range(settings: Mapping[str, Any], annotation: Any, where: str) -> Range:
    """Return the range that a mapping of a tuner YAML describes.

    Parameters
    ----------
    settings : mapping
        ``low``, ``high``, and perhaps ``log`` or ``step``.
    annotation : Any
        Type of the setting. Whole ends make a range of whole numbers, unless the setting is known to take fractions.
    where : str
        For the message.

    Raises
    ------
    ConfigError
        A key is unknown or missing, or there are no such numbers.
    """
    problems = check_types(settings, RANGE_KEYS, where)
    if problems:
        raise ConfigError("; ".join(problems))
    for key in ("low", "high"):
        if key not in settings:
            raise ConfigError(f"{where}: {key} is missing, expected a range such as {{low: 0.1, high: 0.5}}")
        if not math.isfinite(settings[key]):
            raise ConfigError(f"{where}: {key} is {settings[key]}, expected a finite number")
        if not matches(settings[key], annotation):
            raise ConfigError(f"{where}: {key} is {settings[key]}, but the setting takes {describe(annotation)}")
    low, high, step, log = (settings.get(key) for key in ("low", "high", "step", "log"))
    assert low is not None
    assert high is not None
    if low >= high:
        raise ConfigError(f"{where}: low is {low} and high is {high}, expected low below high")
    if log and low <= 0:
        raise ConfigError(f"{where}: low is {low}, expected a number above 0 with log: True")
    if step is not None:
        if log:
            raise ConfigError(f"{where}: step and log exclude each other; keep one of them")
        if step <= 0:
            raise ConfigError(f"{where}: step is {step}, expected a number above 0")
        steps = (high - low) / step
        if not math.isclose(steps, round(steps), rel_tol=1e-9) or round(steps) < 1:
            raise ConfigError(f"{where}: {high} is not reached from {low} by steps of {step}; change high or step")
    takes_fractions = annotation is not Any and matches(0.5, annotation)
    numbers = [number for number in (low, high, step) if number is not None]
    whole = not takes_fractions and all(isinstance(number, int) for number in numbers)
    if step is not None and not whole and not matches(low + step, annotation):
        raise ConfigError(f"{where}: step is {step}, but the setting takes {describe(annotation)}")
    return Range(low, high, step, bool(log), whole)


def number_of_points(space: Space) -> float:
    """Return how many different points a space has."""
    return math.prod(values.size if isinstance(values, Range) else len(values) for values in space.values())


def check_points(space: Space) -> list[Point]:
    """Return a few points in which every value of every list, and both ends of every range, occur."""
    columns = {key: [values.low, values.high] if isinstance(values, Range) else values for key, values in space.items()}
    length = max((len(values) for values in columns.values()), default=1)
    return [{key: values[row % len(values)] for key, values in columns.items()} for row in range(length)]


def point_key(point: Point) -> str:
    """Return a text that is the same for the same points only."""
    return json.dumps(point, sort_keys=True, default=str)


class Dimensions:
    """A space as Optuna takes it: distributions of those settings that have more than one value."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._choices = {
            key: _choices(values) for key, values in space.items() if isinstance(values, list) and len(values) > 1
        }
        self.distributions = {
            key: _distribution(values, self._choices.get(key))
            for key, values in space.items()
            if isinstance(values, Range) or len(values) > 1
        }

    def point(self, drawn: Mapping[str, Any]) -> Point:
        """Return the values of a draw, those of settings with a single value among them."""
        point: Point = {}
        for key, values in self._space.items():
            if isinstance(values, Range):
                point[key] = drawn[key]
            else:
                point[key] = values[self._choices[key].index(drawn[key])] if key in drawn else values[0]
        return point

    def drawn(self, point: Point) -> dict[str, Any]:
        """Return the draw that gave a point."""
        result: dict[str, Any] = {}
        for key in self.distributions:
            values = self._space[key]
            if isinstance(values, Range):
                result[key] = point[key]
            else:
                keys = [point_key({key: value}) for value in values]
                result[key] = self._choices[key][keys.index(point_key({key: point[key]}))]
        return result


def _choices(values: list[Any]) -> list[Any]:
    """Return what stands for the values of a list: Optuna tells apart what ``==`` does, and stores no lists."""
    simple = all(value is None or isinstance(value, bool | int | float | str) for value in values)
    return values if simple and len(set(values)) == len(values) else [json.dumps(v, sort_keys=True) for v in values]


def _distribution(values: list[Any] | Range, choices: list[Any] | None) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(choices or [])
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
    return FloatDistribution(values.low, values.high, log=values.log, step=values.step)


class Drawing:
    """Draws the points of a study.

    Parameters
    ----------
    space : dict
        Values to try.
    search : {"random", "tpe"}
        How.
    seed : int
        Of the study.
    """

    def __init__(self, space: Space, search: str, seed: int) -> None:
        self.dimensions = Dimensions(space)
        self._space = space
        self._search = search
        self._seed = seed
        self._random: list[Point] = []  # those of trial 0, 1 ...

    def draw(self, study: Study, trial: FrozenTrial, others: Collection[Point]) -> Point:
        """Return the point of a trial.

        Parameters
        ----------
        study : Study
            Just loaded: it must not hold trials as they were before.
        trial : FrozenTrial
            The trial, without values yet.
        others : collection of dict
            Points of the other trials; ``random`` does without, since it knows those before by their numbers.
        """
        if self._search == "random":
            used = {point_key(point) for point in self._random}
            while len(self._random) <= trial.number:
                point = self._draw_random(study, trial, len(self._random), used)
                self._random.append(point)
                used.add(point_key(point))
            return self._random[trial.number]
        from optuna.samplers import TPESampler

        used = {point_key(point) for point in others}
        for attempt in range(TRIES):
            sampler = TPESampler(seed=self._derived_seed(trial.number, attempt))
            point = self._sample(sampler, study, trial)
            if point_key(point) not in used:
                return point
        return self._draw_random(study, trial, trial.number, used)

    def _draw_random(self, study: Study, trial: FrozenTrial, number: int, used: Collection[str]) -> Point:
        from optuna.samplers import RandomSampler

        sampler = RandomSampler(seed=self._derived_seed(number))
        for _ in range(RANDOM_TRIES):
            point = self._sample(sampler, study, trial)
            if point_key(point) not in used:
                return point
        # Few are left of finitely many: the one that chance would have reached first is as good as any.
        columns = [values.values() if isinstance(values, Range) else values for values in self._space.values()]
        points = (dict(zip(self._space, values, strict=True)) for values in itertools.product(*columns))
        left = [point for point in points if point_key(point) not in used]
        return min(left, key=lambda point: hashlib.sha256(f"{self._seed} {point_key(point)}".encode()).digest())

    def _sample(self, sampler: BaseSampler, study: Study, trial: FrozenTrial) -> Point:
        relative = sampler.infer_relative_search_space(study, trial)
        drawn = sampler.sample_relative(study, trial, relative)
        for key, distribution in self.dimensions.distributions.items():
            if key not in drawn:
                drawn[key] = sampler.sample_independent(study, trial, key, distribution)
        return self.dimensions.point(drawn)

    def _derived_seed(self, *numbers: int) -> int:
        text = " ".join(map(str, (self._seed, *numbers)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
