"""Statistics of numeric columns, and how columns are scaled by those of training.

Shape letters: R rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.data.decoding import finite
from fuxictr_mm.errors import DataError

if TYPE_CHECKING:
    from fuxictr_mm.data.dataset import Dataset
    from fuxictr_mm.data.schema import Feature
    from fuxictr_mm.data.vocabulary import Vocabularies

#: What is subtracted from a column, and what it is then divided by.
Scale = tuple[float, float]

#: Key of the scales, by feature, in the settings that a run keeps with its vocabularies.
SCALES = "scales_of_numbers"

#: Numbers that are copied at a time.
CHUNK = 2**20

#: Mean and deviation beyond which a column is called unscaled, the deviation below which it is, and the largest value.
MOST, LEAST, LARGEST = 10.0, 0.01, 100.0


@dataclass
class Moments:
    """Count, mean, sum of squared deviations and bounds of numbers that come in chunks.

    Examples
    --------
    >>> moments = Moments.of(np.array([1.0, 2.0]))
    >>> moments.add(Moments.of(np.array([6.0])))
    >>> moments.mean, round(moments.deviation, 3), moments.highest
    (3.0, 2.16, 6.0)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Return the statistics of finite numbers ``(R,)``."""
        found = cls()
        for start in range(0, values.size, CHUNK):  # to bound the memory of the copies
            exact = values[start : start + CHUNK].astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):  # refused in `scale`
                mean = float(exact.mean())
                squares = float(np.square(exact - mean).sum())
                found.add(cls(exact.size, mean, squares, float(exact.min()), float(exact.max())))
        return found

    def add(self, other: Moments) -> None:
        """Add the statistics of further numbers."""
        if other.count == 0:
            return
        total = self.count + other.count
        step = other.mean - self.mean
        self.squares += other.squares + step * step * self.count * other.count / total
        self.mean += step * other.count / total
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        self.count = total

    @property
    def deviation(self) -> float:
        """Standard deviation, 0 where all numbers are equal: the mean of many 0.1 is not quite 0.1."""
        return math.sqrt(self.squares / self.count) if self.lowest < self.highest else 0.0

    @property
    def is_unscaled(self) -> bool:
        """Whether the numbers are far from mean 0 and standard deviation 1, or some are very large."""
        if self.count == 0:
            return False
        largest = max(abs(self.lowest), abs(self.highest))
        is_narrow = 0 < self.deviation < LEAST and self.highest - self.lowest < 10 * LEAST  # no rare 1 among 0
        return abs(self.mean) > MOST or self.deviation > MOST or largest > LARGEST or is_narrow

    def describe(self) -> str:
        """Return mean, standard deviation and bounds as text."""
        return (
            f"mean {self.mean:.4g}, standard deviation {self.deviation:.4g}, from {self.lowest:.4g} to "
            f"{self.highest:.4g}"
            if self.count
            else "no numbers"
        )

    def scale(self, normalizer: str, where: str) -> Scale:
        """Return mean and standard deviation (``StandardScaler``) or minimum and range (``MinMaxScaler``), as FuxiCTR.

        A column that is constant is divided by 1.
        """
        if self.count == 0:
            raise DataError(f"{where}: no rows, expected at least one")
        is_standard = normalizer == "StandardScaler"
        shift, scale = (self.mean, self.deviation) if is_standard else (self.lowest, self.highest - self.lowest)
        if self.lowest == self.highest:
            shift, scale = self.lowest, 1.0
        if not (math.isfinite(shift) and math.isfinite(scale)):
            raise DataError(
                f"{where}: is scaled by {shift} and {scale}, expected finite numbers; divide the column, or leave out "
                "normalizer"
            )
        return shift, scale or 1.0  # the squares of small deviations may be 0


def apply_scale(values: np.ndarray, scale: Scale | None, where: str, row: np.ndarray | int) -> np.ndarray:
    """Return numbers ``(R,)`` scaled, float32; ``where`` and ``row`` are for errors, as in ``decoding``."""
    if scale is None:
        return values
    with np.errstate(over="ignore", invalid="ignore"):  # refused as not finite
        scaled = (values - scale[0]) / scale[1]
    return finite(scaled, where, row)


def scales_of(vocabularies: Vocabularies) -> Mapping[str, Scale]:
    """Return the scales that a run keeps, by feature."""
    found: Mapping[str, Any] = vocabularies.settings.get(SCALES, {})
    return {name: (float(shift), float(scale)) for name, (shift, scale) in found.items()}


def scale_of(feature: Feature, vocabularies: Vocabularies, build: Callable[[], Moments], where: str) -> Scale:
    """Return the scale of a feature with a ``normalizer``; it is built unless the vocabularies are a run's."""
    if feature.name not in scales_of(vocabularies):
        if vocabularies.path is not None:
            what = "holds no scale of" if vocabularies.path.exists() else "no such file; it holds the scale of"
            raise DataError(
                f"{vocabularies.path}: {what} '{feature.name}', which normalizer: {feature.normalizer} needs; keep "
                "the file with the weights, or train again; weights of an earlier version, which ignored normalizer, "
                "are used without it"
            )
        earlier = {} if vocabularies.earlier is None else scales_of(vocabularies.earlier)
        shift, scale = earlier.get(feature.name) or build().scale(str(feature.normalizer), where)
        vocabularies.settings.setdefault(SCALES, {})[feature.name] = [shift, scale]
    return scales_of(vocabularies)[feature.name]


def unscaled(dataset: Dataset) -> dict[str, Moments]:
    """Return the numeric features of a training split that are far from mean 0 and standard deviation 1."""
    context = dataset.summaries["train"].numbers if "train" in dataset.summaries else {}
    found: dict[str, Moments] = {}
    for feature in dataset.features:
        if feature.type == "numeric" and feature.embedded:
            if feature.is_item:
                known = dataset.items.known.clone()
                known[0] = False
                moments = Moments.of(dataset.items[feature.name][known].cpu().numpy())
            else:
                moments = context.get(feature.name, Moments())
            if moments.is_unscaled:
                found[feature.name] = moments
    return found
