"""An MLP of rows that begin alike is the MLP of the rows."""

import pytest
import torch
from fuxictr.pytorch.layers import MLP_Block

from fuxictr_mm.layers import mlp_of_shared


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
