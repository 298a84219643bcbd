from itertools import combinations

import pytest
import torch
from fuxictr.pytorch import layers as fuxictr_layers

from fuxictr_mm.layers import BilinearInteraction
from tests.errors import raises_naming
from tests.layers.conftest import same_weights

TYPES = ["field_all", "field_each", "field_interaction"]


@pytest.mark.parametrize("bilinear_type", TYPES)
@pytest.mark.parametrize(("batch", "fields"), [(1, 4), (5, 4), (3, 2)])
def test_equals_fuxictr_and_the_formula(assert_same, bilinear_type, batch, fields):
    ours, theirs = same_weights(BilinearInteraction, fuxictr_layers.BilinearInteraction, fields, 3, bilinear_type)
    inputs = torch.randn(batch, fields, 3, dtype=torch.float64, requires_grad=True)
    assert_same(ours(inputs), theirs(inputs), [inputs], ours, theirs)

    expected = []
    for pair, (i, j) in enumerate(combinations(range(fields), 2)):
        place = {"field_all": ..., "field_each": i, "field_interaction": pair}[bilinear_type]
        expected.append((inputs[:, i] @ ours.bilinear_W[place]) * inputs[:, j])
    assert_same(ours(inputs), torch.stack(expected, dim=1), [inputs], ours, ours)


def test_unknown_type_is_named():
    with raises_naming(ValueError, "bilinear_type='field_al'", "field_each"):
        BilinearInteraction(4, 3, "field_al")


def test_one_field_has_no_partner():
    with raises_naming(ValueError, "num_fields=1"):
        BilinearInteraction(1, 3)
