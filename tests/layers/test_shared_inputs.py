"""An MLP of rows that begin alike is the MLP of the rows."""

import pytest
import torch
from fuxictr.pytorch.layers import MLP_Block

from fuxictr_mm.layers import SENet, mlp_of_shared, mlp_of_shared_fields, products_of_fields


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_units": [7, 3], "batch_norm": True},
        {"hidden_units": [7], "use_bias": False},
        {"hidden_units": [7], "batch_norm": True, "bn_only_once": True},
        {"hidden_units": []},
    ],
)
@pytest.mark.parametrize("shared_dim", [0, 4])
def test_equals_the_mlp_of_joined_rows(settings, shared_dim):
    generator = torch.Generator().manual_seed(0)
    mlp = MLP_Block(shared_dim + 5, output_dim=2, **settings).double().eval()
    for buffer in mlp.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2, generator=generator)
    shared, first, second = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((1, shared_dim), (6, 2), (6, 3))
    )
    expected = mlp(torch.cat([shared.expand(6, -1), first, second], dim=1))
    torch.testing.assert_close(mlp_of_shared(mlp, shared, first, second), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("senet", [SENet(5), SENet(5, excitation_activation="Sigmoid"), torch.nn.Identity()])
@pytest.mark.parametrize("count", [0, 2])
def test_equals_the_mlp_of_weighted_fields(senet, count):
    generator = torch.Generator().manual_seed(0)
    mlp = MLP_Block(5 * 3, hidden_units=[7, 4], output_dim=2, batch_norm=True).double().eval()
    shared, own = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((count, 3), (6, 5 - count, 3))
    )
    senet = senet.double()
    expected = mlp(senet(torch.cat([shared.expand(6, -1, -1), own], dim=1)).flatten(1))
    found = mlp_of_shared_fields(mlp, senet, shared, products_of_fields(mlp, shared), own)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
