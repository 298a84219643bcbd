"""Ranges of a search space and their points."""

from fuxictr_mm.tuning.space import Range, check_points, read_range


def test_ranges():
    assert read_range({"low": 1, "high": 4}, int, "x") == Range(1, 4, whole=True)
    assert read_range({"low": 0, "high": 1}, float, "x") == Range(0, 1)
    assert read_range({"low": 0, "high": 1, "step": 0.1}, float, "x").size == 11
    assert read_range({"low": 2, "high": 8, "step": 2}, int, "x").values() == [2, 4, 6, 8]
    assert check_points({"a": Range(1, 4), "b": [1, 2, 3]}) == [{"a": 1, "b": 1}, {"a": 4, "b": 2}, {"a": 1, "b": 3}]
