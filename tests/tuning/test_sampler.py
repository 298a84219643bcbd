"""Points of a random search and of TPE."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.tuning import sampler
from fuxictr_mm.tuning.sampler import Sampler
from fuxictr_mm.tuning.space import Range, number_of_points, point_key
from tests.tuning.points import draw_all

optuna = pytest.importorskip("optuna")


@settings(max_examples=12, deadline=None)
@given(
    high=st.integers(2, 6),
    step=st.sampled_from([1, 2]),
    seed=st.integers(0, 9),
    search=st.sampled_from(["random", "tpe"]),
)
def test_points_differ_and_cover_a_finite_space(high, step, seed, search):
    space = {"a": Range(0, high * step, step, whole=True), "b": [[1], "[1]", None, True, 1], "c": [{"x": 1}]}
    size = number_of_points(space)
    assert size == (high + 1) * 5
    points = draw_all(space, search, seed, size if high == 2 else 8)
    assert len({point_key(point) for point in points}) == len(points)
    assert all(point["a"] % step == 0 and point["c"] == {"x": 1} for point in points)
    assert draw_all(space, search, seed, 8) == points[:8]


@pytest.mark.parametrize("search", ["random", "tpe"])
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


def test_tpe_goes_where_it_is_good():
    points = draw_all({"a": Range(0.0, 1.0), "b": [1, 2]}, "tpe", 0, 40)
    assert sum(point["a"] for point in points[20:]) / 20 > 0.7
