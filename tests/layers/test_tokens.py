"""Tokens with weights of their own against a loop over tokens."""

import copy

import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.layers import PerTokenLinear, SliceTokens, SwiGLU, TokenMixerLargeBlock, TokenMixing, mix_tokens


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


def mixed_one_by_one(tokens, num_mixed):
    size = tokens.shape[2] // num_mixed
    parts = [[tokens[:, t, h * size : (h + 1) * size] for t in range(tokens.shape[1])] for h in range(num_mixed)]
    return torch.stack([torch.cat(part, dim=1) for part in parts], dim=1)


@pytest.mark.parametrize("num_mixed", [1, 2, 3, 6])
def test_mixed_tokens_are_mixed_back(num_mixed):
    tokens = torch.randn(2, 5, 6)
    mixed = mix_tokens(tokens, num_mixed)
    assert torch.equal(mixed, mixed_one_by_one(tokens, num_mixed))
    assert torch.equal(mix_tokens(mixed, 5), tokens)


def test_mixing(assert_same):
    ours = TokenMixing(3, 6, 7).double()
    theirs = copy.deepcopy(ours)
    tokens = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    y = theirs.norm1(tokens + mixed_one_by_one(tokens, 3))
    expected = theirs.norm2(y + one_by_one(theirs.second, F.gelu(one_by_one(theirs.first, y))))
    assert_same(ours(tokens), expected, [tokens], ours, theirs)


def gated_one_by_one(layer, tokens):
    hidden = one_by_one(layer.gate, tokens), one_by_one(layer.first, tokens)
    return one_by_one(layer.second, hidden[0] * torch.sigmoid(hidden[0]) * hidden[1])


def test_a_gated_mlp(assert_same):
    ours = SwiGLU(4, 6, num_tokens=3).double()
    theirs = copy.deepcopy(ours)
    tokens = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert_same(ours(tokens), gated_one_by_one(theirs, tokens), [tokens], ours, theirs)
    shared = SwiGLU(4, 6).double()
    for name, layer in shared.named_children():
        of_tokens = getattr(ours, name)
        of_tokens.weight.data.copy_(layer.weight.t().expand_as(of_tokens.weight))
        of_tokens.bias.data.copy_(layer.bias.expand_as(of_tokens.bias))
    torch.testing.assert_close(shared(tokens), ours(tokens), rtol=1e-12, atol=1e-12)


def test_dropout_is_on_the_output_of_both_mlps():
    block, seen = TokenMixerLargeBlock(3, 6, 2, dropout=0.5), []
    block.dropout.register_forward_hook(lambda module, given, output: seen.append(given[0].shape))
    block(torch.randn(4, 3, 6))
    assert seen == [(4, 2, 9), (4, 3, 6)]


@pytest.mark.parametrize(("num_tokens", "num_mixed"), [(3, 2), (3, 3), (1, 6), (4, 1)])
def test_mixing_and_mixing_back(assert_same, num_tokens, num_mixed):
    ours = TokenMixerLargeBlock(num_tokens, 6, num_mixed, hidden_factor=3).double()
    tokens = torch.randn(2, num_tokens, 6, dtype=torch.float64, requires_grad=True)
    assert (ours(tokens) - tokens).abs().max() < 0.1  # it starts near the identity
    for parameter in ours.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    theirs = copy.deepcopy(ours)
    mixed = mixed_one_by_one(tokens, num_mixed)
    mixed = mixed + gated_one_by_one(theirs.mixed_mlp, theirs.norm1(mixed))
    back = mixed_one_by_one(mixed, num_tokens)
    assert_same(ours(tokens), tokens + gated_one_by_one(theirs.token_mlp, theirs.norm2(back)), [tokens], ours, theirs)
