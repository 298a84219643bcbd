"""A sampler of Optuna that changes a few settings of the best trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

#: Settings that a trial changes on average, at least one.
CHANGED = 2.0

#: Standard deviation of a step of a range, relative to its width.
STEP = 0.15


class LocalSampler(BaseSampler):
    """An evolution strategy with one parent (Rechenberg 1973) for mixed settings: the best trial with a few changes.

    A range moves by a normal step, on the logarithm where it is sampled on it; a list takes another value. Without a
    finished trial, the first one stands for the best while it runs; the point is random where that is not given.

    Parameters
    ----------
    distributions : mapping of str to BaseDistribution
        Those of the settings with more than one value.
    seed : int
        Seed of the changes.
    first : mapping of str to Any
        Settings of the first trial; empty if they are random.
    """

    def __init__(
        self, distributions: Mapping[str, BaseDistribution], seed: int, first: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._distributions, self._first = distributions, first
        self._generator = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the settings of the best trial with a few changes, nothing where there is none."""
        parent: Mapping[str, Any] = {}
        if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            parent = study.best_trial.params
        elif any(other.number == 0 for other in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))):
            parent = self._first
        point = {key: value for key, value in parent.items() if key in search_space}
        names = list(search_space)
        chosen = [name for name in names if self._generator.random() < CHANGED / len(names)]
        for name in chosen or [names[self._generator.integers(len(names))]]:
            if name in point:
                point[name] = self._changed(point[name], search_space[name])
        return point

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value, of a setting that the best trial does not have."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _changed(self, value: Any, of: BaseDistribution) -> Any:
        if isinstance(of, CategoricalDistribution):
            others = [choice for choice in of.choices if choice is not value and choice != value]
            return others[self._generator.integers(len(others))] if others else value
        assert isinstance(of, FloatDistribution | IntDistribution)
        low, high, at = (math.log(x) if of.log else float(x) for x in (of.low, of.high, value))
        move = self._generator.normal(scale=STEP * (high - low))
        if value in (of.low, of.high):  # from an end there is one way
            move = math.copysign(move, 1 if value == of.low else -1)
        moved = math.exp(at + move) if of.log else at + move
        if of.step:
            places = round((moved - of.low) / of.step), round((value - of.low) / of.step)
            place = places[0] if places[0] != places[1] else places[1] + int(math.copysign(1, move))
            moved = of.low + of.step * place
        moved = min(max(moved, of.low), of.high)
        return round(moved) if isinstance(of, IntDistribution) else moved
