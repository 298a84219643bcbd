"""Ranges of a search space and their points."""

import pytest

from fuxictr_mm.tuning.space import Dimensions, Range, check_points, point_of, read_range


def test_ranges():
    assert read_range({"low": 1, "high": 4}, int, "x") == Range(1, 4, whole=True)
    assert read_range({"low": 0, "high": 1}, float, "x") == Range(0, 1)
    assert read_range({"low": 0, "high": 1, "step": 0.1}, float, "x").size == 11
    assert read_range({"low": 2, "high": 8, "step": 2}, int, "x").values() == [2, 4, 6, 8]
    assert check_points({"a": Range(1, 4), "b": [1, 2, 3]}) == [{"a": 1, "b": 1}, {"a": 4, "b": 2}, {"a": 1, "b": 3}]


@pytest.mark.parametrize(
    ("values", "setting", "expected"),
    [
        ([0.0, 0.1], 0, 0.0),
        ([[64], [32]], (64,), [64]),
        ([1, True], True, True),
        ([False, 0.1], 0, "none"),
        ([1, 2], True, "none"),
        ([None, 8], None, None),
        (Range(1e-6, 1e-3, log=True), "l2(1.e-4)", "none"),
        (Range(0, 2, whole=True), True, "none"),
        (Range(1, 8, whole=True), 2.5, "none"),
        (Range(0, 2**31, whole=True), 2025, 2025),
        (Range(10, 50, 20, whole=True), 16, "none"),
        (Range(0.0, 0.3, 0.1), 0.3, 0.3),
        (Range(0.0, 1.0, 0.05), 0.15, 0.05 * 3),
        (Range(0.0, 1.0), 0.15, 0.15),
        (Range(0.0, 1.0), None, "none"),
    ],
)
def test_a_setting_has_the_value_of_the_space_that_it_equals(values, setting, expected):
    space = {"a": values}
    found = point_of(space, {"a": setting})
    assert repr(found) == repr(None if expected == "none" else {"a": expected})
    if found is not None:  # Optuna has it, too
        pytest.importorskip("optuna")
        dimensions = Dimensions(space)
        assert dimensions.point(dimensions.sampled(found)) == found
