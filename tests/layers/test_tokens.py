"""Tokens with weights of their own against a loop over tokens."""

import copy

import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.layers import PerTokenLinear, SliceTokens, TokenMixing


def one_by_one(layer, tokens):
    outputs = [tokens[:, t] @ layer.weight[t] for t in range(tokens.shape[1])]
    return torch.stack(outputs, 1) if layer.bias is None else torch.stack(outputs, 1) + layer.bias


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(assert_same, rows, bias):
    ours = PerTokenLinear(3, 4, 5, bias).double()
    theirs = copy.deepcopy(ours)
    tokens = torch.randn(rows, 3, 4, dtype=torch.float64, requires_grad=True)
    assert_same(ours(tokens), one_by_one(theirs, tokens), [tokens], ours, theirs)


@pytest.mark.parametrize("bias", [True, False])
def test_a_part_of_the_tokens(bias):
    layer, tokens = PerTokenLinear(3, 4, 5, bias), torch.randn(2, 3, 4)
    for part in (slice(1), slice(1, None), slice(0)):
        torch.testing.assert_close(layer(tokens[:, part], part), layer(tokens)[:, part])


@pytest.mark.parametrize("dim", [12, 10, 9, 3])
def test_slices(assert_same, dim):
    ours = SliceTokens(dim, 4, 5).double()
    theirs = copy.deepcopy(ours)
    inputs = torch.randn(2, dim, dtype=torch.float64, requires_grad=True)
    size = -(-dim // 4)
    padded = torch.cat([inputs, torch.zeros(2, 4 * size - dim, dtype=torch.float64)], dim=1)
    expected = torch.stack([padded[:, t * size : (t + 1) * size] for t in range(4)], dim=1)
    assert_same(ours(inputs), one_by_one(theirs.linear, expected), [inputs], ours, theirs)


def test_mixing(assert_same):
    ours = TokenMixing(3, 6, 7).double()
    theirs = copy.deepcopy(ours)
    tokens = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    mixed = [torch.cat([tokens[:, t, 2 * h : 2 * h + 2] for t in range(3)], dim=1) for h in range(3)]
    y = theirs.norm1(tokens + torch.stack(mixed, dim=1))
    expected = theirs.norm2(y + one_by_one(theirs.second, F.gelu(one_by_one(theirs.first, y))))
    assert_same(ours(tokens), expected, [tokens], ours, theirs)
