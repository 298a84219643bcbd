"""Norms of embeddings, and the setting that brings them near 1."""

import numpy as np
import pytest

from fuxictr_mm.data.norms import Norms


@pytest.mark.parametrize(
    ("norms", "setting"),
    [
        (np.full(40, 1.0), None),
        (np.full(40, 2.9), None),
        (np.full(40, 22.0), ("norm", "l2")),
        (np.full(40, 0.02), ("norm", "l2")),
        (np.r_[np.full(38, 22.0), 900.0], ("norm", "l2")),  # one of many
        (np.r_[np.zeros(400), np.full(40, 22.0)], ("norm", "l2")),  # zeros are missing embeddings
        (np.r_[np.full(9, np.inf), np.full(40, 22.0)], ("norm", "l2")),
        (np.geomspace(2, 200, 41), ("scale", 0.05)),
        (np.geomspace(0.001, 0.4, 41), ("scale", 50.0)),
    ],
)
def test_the_setting_follows_from_the_norms(norms, setting):
    found = Norms.of(norms)
    assert found is not None
    assert found.setting == setting


def test_zeros_have_no_norms():
    assert Norms.of(np.zeros(3)) is None
