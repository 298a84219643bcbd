"""The search space: lists and ranges of values, its points, and Optuna's distributions of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field

from fuxictr_mm.checking import Settings, describe_type, matches
from fuxictr_mm.config import Number
from fuxictr_mm.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class RangeSettings(Settings):
    """A range of a tuner YAML, such as ``{low: 1.e-4, high: 1.e-2, log: True}``."""

    low: Number = Field(description="Least value.")
    high: Number = Field(description="Largest value.")
    log: bool = Field(False, description="Sample the logarithm of the value uniformly.")
    step: Number | None = Field(None, description="Distance between neighbouring values.")


Point: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    #: Ends.
    low: float
    high: float
    step: float | None = None  #: Distance between two values; None: 1 for integers, continuous otherwise.
    log: bool = False  #: Sampled uniformly in the logarithm.
    whole: bool = False  #: Integers only; the name under which studies store it.

    @property
    def size(self) -> float:
        """Number of values."""
        step = self.step or (1 if self.whole else 0)
        return round((self.high - self.low) / step) + 1 if step else math.inf

    def values(self) -> list[float]:
        """Return all values of a range that has finitely many."""
        step = self.step or 1
        # As Optuna: the last one is high, which a sum of fractions may exceed.
        return [min(self.low + step * index, self.high) for index in range(int(self.size))]

    def equal_to(self, value: Any) -> list[float]:
        """Return the value of the range that a setting has; none if it has another."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return []
        if math.isinf(self.size):
            return [value]
        step = self.step or 1
        own = min(self.low + step * round((value - self.low) / step), self.high)
        return [own] if math.isclose(own, value, abs_tol=1e-9 * step) else []


Space: TypeAlias = "dict[str, list[Any] | Range]"


def read_range(settings: Mapping[str, Any], annotation: Any, where: str) -> Range:
    """Return the range that ``low``, ``high``, and perhaps ``log`` or ``step`` of a tuner YAML describe.

    Integer ends make a range of integers, unless the setting, of the type ``annotation``, takes fractions. ``where`` is
    the prefix of the message.

    Raises
    ------
    ConfigError
        A key is unknown or missing, or the range is empty.
    """
    given = RangeSettings.read(settings, where)
    for key in ("low", "high"):
        if not math.isfinite(settings[key]):
            raise ConfigError(f"{where}: {key} is {settings[key]}, expected a finite number")
        if not matches(settings[key], annotation):
            raise ConfigError(f"{where}: {key} is {settings[key]}, but the setting takes {describe_type(annotation)}")
    low, high, step, log = given.low, given.high, given.step, given.log
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
    takes_fractions = annotation is not Any and (matches(0.5, annotation) or matches(1.5, annotation))
    numbers = [number for number in (low, high, step) if number is not None]
    whole = not takes_fractions and all(isinstance(number, int) for number in numbers)
    if step is not None and not whole and not matches(low + step, annotation):
        raise ConfigError(f"{where}: step is {step}, but the setting takes {describe_type(annotation)}")
    return Range(low, high, step, log, whole)


def number_of_points(space: Space) -> float:
    """Return the number of different points of a space."""
    return math.prod(values.size if isinstance(values, Range) else len(values) for values in space.values())


def point_of(space: Space, settings: Mapping[str, Any]) -> Point | None:
    """Return the point of a space that settings are, with the values as the space has them; None if there is none."""
    if settings.keys() != space.keys():
        return None
    found = {
        key: values.equal_to(settings[key]) if isinstance(values, Range) else _equal(values, settings[key])
        for key, values in space.items()
    }
    return {key: equal[0] for key, equal in found.items()} if all(found.values()) else None


def _equal(values: list[Any], value: Any) -> list[Any]:
    """Return the values of a list that a setting equals: 0.0 may be written as 0, but not as False."""
    same = [own for own in values if point_key({"": own}) == point_key({"": value})]
    return same or [own for own in values if own == value and not isinstance(own, bool) and not isinstance(value, bool)]


def check_points(space: Space) -> list[Point]:
    """Return a few points in which every value of every list, and both ends of every range, occur."""
    columns = {key: [values.low, values.high] if isinstance(values, Range) else values for key, values in space.items()}
    length = max((len(values) for values in columns.values()), default=1)
    return [{key: values[row % len(values)] for key, values in columns.items()} for row in range(length)]


def point_key(point: Point) -> str:
    """Return a text that identifies a point."""
    return json.dumps(point, sort_keys=True, default=str)


class Dimensions:
    """Optuna distributions of a space, for the settings with more than one value."""

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

    def point(self, sampled: Mapping[str, Any]) -> Point:
        """Return the point of Optuna's values, including settings with a single value."""
        point: Point = {}
        for key, values in self._space.items():
            if isinstance(values, Range):
                point[key] = sampled[key]
            else:
                point[key] = values[self._choices[key].index(sampled[key])] if key in sampled else values[0]
        return point

    def sampled(self, point: Point) -> dict[str, Any]:
        """Return Optuna's values of a point."""
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
    """Return the choices of a list as Optuna takes them: distinct by ``==``, and no lists."""
    simple = all(value is None or isinstance(value, bool | int | float | str) for value in values)
    return values if simple and len(set(values)) == len(values) else [json.dumps(v, sort_keys=True) for v in values]


def _distribution(values: list[Any] | Range, choices: list[Any] | None) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(choices or [])
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
    return FloatDistribution(values.low, values.high, log=values.log, step=values.step)
