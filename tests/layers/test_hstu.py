"""HSTU layer against a loop over rows and pairs of tokens."""

import copy

import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.layers import Buckets, HSTULayer


@pytest.mark.parametrize("lengths", [[3, 0, 1, 6], [1], [9, 2]])
@pytest.mark.parametrize(("heads", "epsilon"), [(1, 1e-5), (2, 1.0)])
def test_equals_a_loop(assert_same, lengths, heads, epsilon):
    ours = HSTULayer(8, heads, max_len=5, norm_epsilon=epsilon).double()
    torch.nn.init.normal_(ours.distance_bias)
    theirs = copy.deepcopy(ours)
    tokens = torch.randn(sum(lengths), 8, dtype=torch.float64, requires_grad=True)
    rows = []
    for x in tokens.split(lengths):
        u, v, q, k = F.silu(theirs.uvqk(F.layer_norm(x, (8,), eps=epsilon))).chunk(4, dim=1)
        sums = torch.zeros(len(x), 8, dtype=torch.float64)
        for i in range(len(x)):
            for j in range(i + 1):
                for part in torch.arange(8).chunk(heads):
                    # Tokens that are further apart than n share the last bias.
                    score = q[i, part] @ k[j, part] + theirs.distance_bias[min(i - j, 4)]
                    sums[i, part] = sums[i, part] + F.silu(score) / 5 * v[j, part]
        rows.append(x + theirs.output(F.layer_norm(sums, (8,), eps=epsilon) * u) if len(x) else x)
    found = ours(tokens, Buckets.of(torch.tensor([0, *lengths]).cumsum(0)))
    assert_same(found, torch.cat(rows), [tokens], ours, theirs)


def test_no_tokens():
    layer = HSTULayer(4, 1, max_len=3)
    assert layer(torch.zeros(0, 4), Buckets.of(torch.tensor([0, 0]))).shape == (0, 4)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_last_token_after_an_encoded_history(length):
    layer = HSTULayer(8, 2, max_len=5).double()
    torch.nn.init.normal_(layer.distance_bias)
    history, last = torch.randn(length, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    encoded, keys, values = layer.encode(history)
    rows = torch.cat([torch.cat([history, token[None]]) for token in last])
    expected = layer(rows, Buckets.of(torch.arange(4) * (length + 1))).unflatten(0, (3, length + 1))
    torch.testing.assert_close(layer.attend(last, keys, values), expected[:, -1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoded.expand(3, -1, -1), expected[:, :-1], rtol=1e-12, atol=1e-12)
