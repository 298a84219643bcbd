"""Clipping equals that of torch."""

import pytest
import torch
from torch import nn

from fuxictr_mm.training.clipping import clip_gradients


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e6])
@pytest.mark.parametrize("broken", [False, True])
def test_clipping_is_that_of_torch(max_norm, broken):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2,))]
    theirs = [nn.Parameter(torch.zeros_like(p)) for p in ours]
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        one.grad = torch.randn_like(one)
        if broken:
            one.grad[0] = torch.nan
        other.grad = one.grad.clone()
    clip_gradients(ours, max_norm)
    nn.utils.clip_grad_norm_(theirs, max_norm)
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(one.grad, other.grad, equal_nan=True)
    assert ours[2].grad is None
    clip_gradients([], max_norm)
