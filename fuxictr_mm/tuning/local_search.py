"""A sampler of Optuna that changes a few settings of the best trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    finished trial, the point is random.

    Parameters
    ----------
    distributions : mapping of str to BaseDistribution
        Those of the settings with more than one value.
    seed : int
        Seed of the changes.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], seed: int) -> None:
        self._distributions = distributions
        self._generator = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space."""
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the settings of the best trial with a few changes, nothing where none has finished."""
        if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return {}
        point = {key: value for key, value in study.best_trial.params.items() if key in search_space}
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
        at += self._generator.normal(scale=STEP * (high - low))
        moved = math.exp(at) if of.log else at
        if of.step:
            moved = of.low + of.step * round((moved - of.low) / of.step)
        moved = min(max(moved, of.low), of.high)
        return round(moved) if isinstance(of, IntDistribution) else moved
