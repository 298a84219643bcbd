"""In float32 the models say what they say in float64; that they say it there, each model's own test tells."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

NAMES = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "model_zoo").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_predictions_agree(build, make_batch, monkeypatch, name):
    model, dataset = build(f"{name}_tiny")
    generator = torch.Generator().manual_seed(0)
    size = 0.02 if name.startswith("Transformer") else 0.1  # a cross network of large weights has large numbers
    for parameter in model.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    batch = make_batch(dataset.splits["train"], range(100))
    found = model.eval()(batch)["y_pred"]
    # FuxiCTR's feature embedding calls float().
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    expected = model.double()(batch)["y_pred"]
    assert (found.dtype, expected.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
