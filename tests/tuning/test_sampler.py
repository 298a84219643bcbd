"""Points of a random search, of TPE and of a local search."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.tuning import sampler
from fuxictr_mm.tuning.sampler import Sampler
from fuxictr_mm.tuning.space import Range, number_of_points, point_key, point_of
from fuxictr_mm.tuning.tuner_file import read_tuner
from tests.paths import ROOT
from tests.tuning.points import draw_all

optuna = pytest.importorskip("optuna")
LocalSampler = pytest.importorskip("fuxictr_mm.tuning.local_search").LocalSampler


@settings(max_examples=12, deadline=None)
@given(
    high=st.integers(2, 6),
    step=st.sampled_from([1, 2]),
    seed=st.integers(0, 9),
    search=st.sampled_from(["random", "tpe", "local"]),
)
def test_points_differ_and_cover_a_finite_space(high, step, seed, search):
    space = {"a": Range(0, high * step, step, whole=True), "b": [[1], "[1]", None, True, 1], "c": [{"x": 1}]}
    size = number_of_points(space)
    assert size == (high + 1) * 5
    points = draw_all(space, search, seed, size if high == 2 else 8)
    assert len({point_key(point) for point in points}) == len(points)
    assert all(point["a"] % step == 0 and point["c"] == {"x": 1} for point in points)
    assert draw_all(space, search, seed, 8) == points[:8]


@pytest.mark.parametrize("search", ["random", "tpe", "local"])
def test_the_last_points_of_a_range_with_steps_end_at_high(search, monkeypatch):
    monkeypatch.setattr(sampler, "RANDOM_TRIES", 0)  # those that are left are enumerated
    points = draw_all({"a": Range(0.1, 0.3, 0.1)}, search, 0, 3)
    assert sorted(point["a"] for point in points) == [0.1, 0.2, 0.3]


def test_a_point_of_a_random_search_needs_no_other_trial():
    space = {"a": Range(1e-4, 1e-1, log=True), "b": [1, 2, 3]}
    points = draw_all(space, "random", 5, 8)
    memory = optuna.create_study()
    for _ in range(8):
        memory.ask()
    assert Sampler(space, "random", 5).sample(memory, memory.trials[7], []) == points[7]
    assert Sampler(space, "random", 6).sample(memory, memory.trials[7], []) != points[7]
    logs = [point["a"] for point in draw_all({"a": space["a"]}, "random", 0, 200)]
    assert all(1e-4 <= value <= 1e-1 for value in logs)
    assert 0.3 < sum(value < 10**-2.5 for value in logs) / 200 < 0.7  # even by the logarithm


@pytest.mark.parametrize("search", ["tpe", "local"])
def test_a_guided_search_goes_where_it_is_good(search):
    points = draw_all({"a": Range(0.0, 1.0), "b": [1, 2]}, search, 0, 40)
    assert sum(point["a"] for point in points[20:]) / 20 > 0.7


def test_a_local_search_changes_a_few_settings_of_the_best_trial():
    """About two of nine; each step of a range is 0.15 of its width, on the logarithm where it is sampled on it."""
    space = {
        "a": Range(0.0, 1.0), "log": Range(1e-4, 1.0, log=True), "whole": Range(1, 64, whole=True, log=True),
        "step": Range(0.0, 10.0, 0.5), **{name: [[1], None, "x"] for name in "vwxyz"},
    }  # fmt: skip
    first = {"a": 0.5, "log": 1e-2, "whole": 8, "step": 5.0, **dict.fromkeys("vwxyz")}
    changes, steps = [], []
    for seed in range(200):
        memory = optuna.create_study(direction="maximize")
        sampler = Sampler(space, "local", seed)
        memory.add_trial(
            optuna.trial.create_trial(
                params=sampler.dimensions.sampled(first), distributions=sampler.dimensions.distributions, value=1.0
            )
        )
        memory.ask()
        point = sampler.sample(memory, memory.trials[1], [first])
        assert point == sampler.sample(memory, memory.trials[1], [first])
        assert point_of(space, point) == point
        assert isinstance(point["whole"], int)
        assert point["step"] % 0.5 == 0
        changes.append(sum(point[key] != first[key] for key in space))
        steps += [math.log(point["log"] / first["log"]) / math.log(1e4)] * (point["log"] != first["log"])
    assert min(changes) == 1
    assert 1.6 < sum(changes) / 200 < 2.4
    assert 0.1 < (sum(step**2 for step in steps) / len(steps)) ** 0.5 < 0.2


def test_a_local_search_begins_with_the_base_experiment(tmp_path):
    path = tmp_path / "local.yaml"
    for values, first in (
        ("embedding_dim: [16, 32]", {"embedding_dim": 16}),
        ("embedding_dim: [8, 32]", None),
        ("embedding_dim: 8", {"embedding_dim": 8}),
        ("embedding_dim: {low: 4, high: 64}", {"embedding_dim": 16}),
        ("label_smoothing: [0.1, 0.0]", {"label_smoothing": 0.0}),  # the defaults of settings that it does not have
        ("din_use_softmax: [True, False]", {"din_use_softmax": False}),
    ):
        path.write_text(
            f"{{base_config: {ROOT}, base_expid: DIN_tiny, search: local, trials: 3, tuner_space: {{{values}}}}}\n"
        )
        assert read_tuner(path).first == first


@pytest.mark.parametrize("values", [Range(1, 2, whole=True), Range(0.0, 0.2, 0.1), Range(0.0, 1.0), [True, False]])
def test_a_local_search_changes_every_chosen_setting(values):
    """Also by less than half a step, and from an end."""
    low = values[0] if isinstance(values, list) else values.low
    memory = optuna.create_study(direction="maximize")
    dimensions = Sampler({"a": values}, "local", 0).dimensions
    sampled = dimensions.sampled({"a": low})
    memory.add_trial(optuna.trial.create_trial(params=sampled, distributions=dimensions.distributions, value=1.0))
    for seed in range(20):
        sampler = LocalSampler(dimensions.distributions, seed)
        point = sampler.sample_relative(memory, None, dimensions.distributions)["a"]
        assert point != low
        assert point_of({"a": values}, {"a": point}) == {"a": point}


def test_workers_change_the_first_trial_while_it_runs():
    space = {name: Range(0.0, 1.0) for name in "abcdefgh"}
    first = dict.fromkeys(space, 0.5)
    memory = optuna.create_study(direction="maximize")
    for _ in range(2):
        memory.ask()

    def unchanged(given):
        point = Sampler(space, "local", 0, given).sample(memory, memory.trials[1], [first])
        return sum(value == 0.5 for value in point.values())

    assert 4 <= unchanged(first) < 8
    assert unchanged(None) == 0
    memory.tell(0, state=optuna.trial.TrialState.FAIL)
    assert unchanged(first) == 0
