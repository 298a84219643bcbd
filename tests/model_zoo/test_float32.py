"""In float32 the models say what they say in float64; that they say it there, each model's own test tells."""

import pytest
import torch
from torch import Tensor

NAMES = [
    "BST", "DHEN", "DIEN", "DIN_CrossAttention", "DMF", "DMGIN", "ETA", "HSTU", "INFNet", "InterFormer", "LateFusion",
    "MIND", "MUSE", "OneTrans", "RankMixer", "SDIM", "SEMINAR", "SIM", "SimCEN", "TWIN",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_predictions_agree(build, make_batch, monkeypatch, name):
    model, dataset = build(f"{name}_tiny")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    batch = make_batch(dataset.splits["train"], range(100))
    found = model.eval()(batch)["y_pred"]
    # FuxiCTR's feature embedding calls float().
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    expected = model.double()(batch)["y_pred"]
    assert (found.dtype, expected.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
