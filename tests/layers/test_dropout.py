"""The faster dropout is dropout: unbiased, the same entries dropped on the way back, nothing outside of training."""

import pytest
import torch
from torch import nn

from fuxictr_mm.layers.dropout import Dropout, apply_mask, keep_mask, replace_dropout


@pytest.mark.parametrize("p", [1e-4, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keeps_the_share_it_should_and_the_mean(p, dtype):
    x = torch.ones(2_000_003, dtype=dtype)
    y = Dropout(p)(x).double()
    share = (y == 0).double().mean().item()
    deviation = (p * (1 - p) / len(x)) ** 0.5
    assert abs(share - p) < 5 * deviation + 1 / 65536
    kept = y[y != 0]
    torch.testing.assert_close(
        kept, torch.full_like(kept, 1 / (1 - p)), rtol=1e-2 if dtype == torch.bfloat16 else 2e-4, atol=0
    )


def test_the_gradient_is_that_of_the_same_mask():
    x = torch.randn(37, 11, dtype=torch.float64, requires_grad=True)
    y = Dropout(0.3)(x)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    torch.testing.assert_close(x.grad, upstream * (y / x).detach())


def test_neighbours_and_lanes_are_independent():
    kept = (Dropout(0.5)(torch.ones(400_000)) != 0).double().view(-1, 4) - 0.5
    covariance = kept.T @ kept / len(kept)
    torch.testing.assert_close(covariance, 0.25 * torch.eye(4, dtype=torch.float64), rtol=0, atol=0.005)


def test_one_seed_one_mask_and_another_each_time():
    x = torch.ones(1000)
    torch.manual_seed(3)
    first, second = Dropout(0.5)(x), Dropout(0.5)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.5)(x), first)
    assert not torch.equal(first, second)


def test_does_nothing_outside_of_training_or_at_zero():
    x = torch.randn(5, 3)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros_like(x))
    assert Dropout(0.5)(torch.zeros(0, 3)).shape == (0, 3)


def test_takes_the_place_of_pytorchs_without_a_trace_in_the_state():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.4)))
    names = list(net.state_dict())
    replace_dropout(net)
    assert [type(net[1]), type(net[2][0])] == [Dropout, Dropout]
    assert (net[1].p, net[2][0].p) == (0.2, 0.4)
    assert list(net.state_dict()) == names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_of_two_bytes_are_integers_and_drop_the_same_entries(dtype):
    x = torch.randn(64, 3, 5)
    torch.manual_seed(3)
    expected, scale = keep_mask(x, 0.4)
    torch.manual_seed(3)
    mask, same_scale = keep_mask(x.to(dtype), 0.4)
    assert (mask.dtype, same_scale) == (torch.int16, scale)
    half = x.to(dtype)
    assert torch.equal(apply_mask(half, mask), half * expected.to(dtype))
    assert torch.equal(apply_mask(half[:, 1], mask[:, 1]), half[:, 1] * expected[:, 1].to(dtype))
    assert apply_mask(half, mask, out=half).data_ptr() == half.data_ptr()
    assert torch.equal(half, x.to(dtype) * expected.to(dtype))
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.4)(x.to(dtype)), x.to(dtype) * (expected * scale).to(dtype))
