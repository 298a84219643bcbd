"""Dropout of item ids helps in one planted world and hurts in the other."""

import statistics

import pytest

from benchmarks.id_dropout import aucs

#: Seeds that the worlds were not chosen by, and the sign of the difference.
EXPECTED = {"memorised": (range(11, 16), 1), "informative": (range(11, 14), -1)}


@pytest.mark.slow
@pytest.mark.parametrize("world", EXPECTED)
def test_dropout_helps_where_ids_are_memorised_and_hurts_where_they_are_all_there_is(tmp_path, world):
    seeds, sign = EXPECTED[world]
    without, with_dropout = (aucs(tmp_path, world, dropout, seeds) for dropout in (0.0, 0.5))
    gains = [sign * (one - other) for one, other in zip(with_dropout, without, strict=True)]
    assert statistics.mean(gains) > 2 * statistics.stdev(gains) / len(gains) ** 0.5
