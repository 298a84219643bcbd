import numpy as np
import pytest

from fuxictr_mm.check_data.drift import histograms, population_stability


def test_population_stability_by_hand():
    # (9.5 + 0.5) / 20 and so on: fractions of 0.5, 0.5 and 0.25, 0.75
    psi = population_stability(np.array([9.5, 9.5]), np.array([4.5, 14.5]))
    assert psi == pytest.approx(-0.25 * np.log(0.25 / 0.5) + 0.25 * np.log(0.75 / 0.5))


def test_bins_of_a_histogram_are_bounded_by_values_of_the_first_sample():
    """Of the first nine values of ten in ten, each has a bin; the tenth has that of all larger ones."""
    first, other = np.arange(0, 100, 10), np.array([0, 10, 15, 90, 500])
    counts, others = histograms(first, other)
    assert counts.tolist() == [1] * 10
    assert others.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 2]
