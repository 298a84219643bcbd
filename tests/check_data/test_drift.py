import numpy as np
import pytest

from fuxictr_mm.check_data.drift import population_stability


def test_population_stability_by_hand():
    # (9.5 + 0.5) / 20 and so on: fractions of 0.5, 0.5 and 0.25, 0.75
    psi = population_stability(np.array([9.5, 9.5]), np.array([4.5, 14.5]))
    assert psi == pytest.approx(-0.25 * np.log(0.25 / 0.5) + 0.25 * np.log(0.75 / 0.5))
