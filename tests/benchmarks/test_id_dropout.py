"""Dropout of item ids helps in one planted world and hurts in the other."""

import statistics

import pytest

from benchmarks.id_dropout import aucs

#: Seeds enough for the mean of the differences to be beyond their noise, and the sign of that mean.
EXPECTED = {"memorised": (range(1, 6), 1), "informative": (range(1, 4), -1)}


@pytest.mark.slow
@pytest.mark.parametrize("world", EXPECTED)
def test_dropout_helps_where_ids_are_memorised_and_hurts_where_they_are_all_there_is(tmp_path, world):
    seeds, sign = EXPECTED[world]
    without, with_dropout = (aucs(tmp_path, world, dropout, seeds) for dropout in (0.0, 0.5))
    assert sign * (statistics.mean(with_dropout) - statistics.mean(without)) > 0
