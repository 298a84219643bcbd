"""The faster dropout is dropout: unbiased, the same entries dropped on the way back, nothing outside of training."""

import contextlib
import copy

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


def behind_relu(dtype: torch.dtype) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.4), nn.Linear(5, 2)).to(dtype)
    replace_dropout(net)
    return net


def outputs_and_gradients(net, x):
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    output = net(x)
    return [output, *torch.autograd.grad(output.square().sum(), [x, *net.parameters()])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_behind_a_relu_it_is_the_same_function_and_takes_no_memory(dtype):
    net, x = behind_relu(dtype), torch.randn(64, 3, dtype=dtype)
    found = outputs_and_gradients(net, x)
    relu_output = net[:2](x)
    dropped = net[2](relu_output)
    assert dropped.untyped_storage().data_ptr() == relu_output.untyped_storage().data_ptr()
    net[2].relu = ()
    expected = outputs_and_gradients(net, x)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("way", [torch.autograd.graph.save_on_cpu, contextlib.nullcontext])
def test_tensors_that_are_saved_elsewhere_stay_as_they_are(way):
    """A ReLU whose output was copied before dropout does not know which entries were dropped."""
    net, x = behind_relu(torch.float64), torch.randn(64, 3, dtype=torch.float64)
    with way():
        found = outputs_and_gradients(net, x)
    net[2].relu = ()
    assert all(torch.equal(*pair) for pair in zip(found, outputs_and_gradients(net, x), strict=True))


def test_an_output_of_relu_that_a_hook_reads_stays_as_it_is():
    net, seen = behind_relu(torch.float32), []
    net[1].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].relu(), output)))
    net(torch.randn(64, 3))
    assert torch.equal(*seen[0])


def test_a_copy_of_a_module_has_its_own_relu():
    net = copy.deepcopy(behind_relu(torch.float32))
    assert net[2].relu[0] is net[1]
    assert len(list(net.modules())) == 5


def test_only_a_relu_right_before_it_counts():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 5), nn.Dropout(0.4))
    replace_dropout(net)
    assert net[3].relu == ()
