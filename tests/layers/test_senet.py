import pytest
import torch
from fuxictr.pytorch.layers import SqueezeExcitation

from fuxictr_mm.layers import SENet
from tests.errors import raises_naming
from tests.layers.conftest import same_weights


@pytest.mark.parametrize("activation", ["ReLU", "Sigmoid"])
@pytest.mark.parametrize("batch", [1, 5])
def test_equals_fuxictr_and_the_formula(assert_same, activation, batch):
    ours, theirs = same_weights(SENet, SqueezeExcitation, 7, 3, activation)
    fields = torch.randn(batch, 7, 4, dtype=torch.float64, requires_grad=True)
    result = ours(fields)
    assert_same(result, theirs(fields), [fields], ours, theirs)

    reduce, expand = ours.excitation[0].weight, ours.excitation[2].weight
    assert reduce.shape == (2, 7)
    weights = torch.relu(fields.mean(2) @ reduce.t()) @ expand.t()
    weights = weights.relu() if activation == "ReLU" else weights.sigmoid()
    assert_same(ours(fields), fields * weights[:, :, None], [fields], ours, ours)


def test_more_reduction_than_fields_leaves_one():
    assert SENet(2, reduction_ratio=8).excitation[0].weight.shape == (1, 2)


def test_unknown_activation_is_named():
    with raises_naming(ValueError, "excitation_activation='Tanh'", "'Sigmoid'"):
        SENet(4, excitation_activation="Tanh")
