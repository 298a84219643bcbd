"""The sampling of the points of a study.

The point of trial n depends on the seed and n, for ``tpe`` and ``local`` also on the results of the other trials; it
differs from all points sampled before.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection
from typing import TYPE_CHECKING

from fuxictr_mm.tuning.space import Dimensions, Point, Range, Space, point_key

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial


TRIES = 20  # samples of a sampler that repeats known points, before random ones are taken
RANDOM_TRIES = 200  # random samples before the remaining points are enumerated


class Sampler:
    """Samples the points of a study by ``search``, ``random``, ``tpe`` or ``local``.

    ``first`` is the point of the first trial if it is not sampled.
    """

    def __init__(self, space: Space, search: str, seed: int, first: Point | None = None) -> None:
        self.dimensions = Dimensions(space)
        self._space = space
        self._search = search
        self._seed = seed
        self._first = first
        self._random: list[Point] = []  # points of trials 0, 1, ...

    def sample(self, study: Study, trial: FrozenTrial, others: Collection[Point]) -> Point:
        """Return the point of a trial without values yet, of a study just loaded, so that its trials are current.

        ``random`` does not need the points of the other trials, because it can repeat them by their numbers.
        """
        if self._search == "random":
            used = {point_key(point) for point in self._random}
            while len(self._random) <= trial.number:
                point = self._sample_random(study, trial, len(self._random), used)
                self._random.append(point)
                used.add(point_key(point))
            return self._random[trial.number]
        used = {point_key(point) for point in others}
        for attempt in range(TRIES):
            point = self._sample(self._guided(self._derived_seed(trial.number, attempt)), study, trial)
            if point_key(point) not in used:
                return point
        return self._sample_random(study, trial, trial.number, used)

    def _guided(self, seed: int) -> BaseSampler:
        """Return a sampler that goes by the results of the other trials."""
        if self._search == "local":
            from fuxictr_mm.tuning.local_search import LocalSampler

            first = {} if self._first is None else self.dimensions.sampled(self._first)
            return LocalSampler(self.dimensions.distributions, seed, first)
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed)

    def _sample_random(self, study: Study, trial: FrozenTrial, number: int, used: Collection[str]) -> Point:
        from optuna.samplers import RandomSampler

        sampler = RandomSampler(seed=self._derived_seed(number))
        for _ in range(RANDOM_TRIES):
            point = self._sample(sampler, study, trial)
            if point_key(point) not in used:
                return point
        # Few points of a finite space are left: take the first by hash.
        columns = [values.values() if isinstance(values, Range) else values for values in self._space.values()]
        points = (dict(zip(self._space, values, strict=True)) for values in itertools.product(*columns))
        left = [point for point in points if point_key(point) not in used]
        return min(left, key=lambda point: hashlib.sha256(f"{self._seed} {point_key(point)}".encode()).digest())

    def _sample(self, sampler: BaseSampler, study: Study, trial: FrozenTrial) -> Point:
        relative = sampler.infer_relative_search_space(study, trial)
        sampled = sampler.sample_relative(study, trial, relative)
        for key, distribution in self.dimensions.distributions.items():
            if key not in sampled:
                sampled[key] = sampler.sample_independent(study, trial, key, distribution)
        return self.dimensions.point(sampled)

    def _derived_seed(self, *numbers: int) -> int:
        text = " ".join(map(str, (self._seed, *numbers)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
