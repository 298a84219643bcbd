"""Points of a study."""

import pytest

from fuxictr_mm.tuning.sampler import Sampler

optuna = pytest.importorskip("optuna")


def draw_all(space, search, seed, trials, value=lambda point: point["a"], first=None):
    """The points of a study that nothing disturbs, in memory."""
    memory = optuna.create_study(direction="maximize")
    sampler, points = Sampler(space, search, seed, first), []
    for number in range(trials):
        trial = memory.ask()
        given = first if number == 0 else None
        points.append(given or sampler.sample(memory, memory.trials[number], list(points)))
        for key, choice in sampler.dimensions.sampled(points[-1]).items():
            distribution = sampler.dimensions.distributions[key]
            memory._storage.set_trial_param(trial._trial_id, key, distribution.to_internal_repr(choice), distribution)
        memory.tell(number, value(points[-1]))
    return points
