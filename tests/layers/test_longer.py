"""LONGER's layers against loops over groups, rows and tokens."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import LONGERLayer, TokenMerge

LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@given(LENGTHS, st.integers(1, 5), st.booleans(), st.booleans())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_groups_equal_a_loop(make_history, assert_same, lengths, size, inner, repeated):
    torch.manual_seed(0)
    ours, history = TokenMerge(4, size, 6, inner).double(), make_history(lengths, 4, repeated=repeated)
    theirs, rows, counts = copy.deepcopy(ours), [torch.zeros(0, 4 * size, dtype=torch.float64)], []
    # torch's own layer, of the same parameters: one group at a time, without padding.
    layer = nn.TransformerEncoderLayer(4, 1, 6, 0.0, layer_norm_eps=1.0, batch_first=True).double() if inner else None
    for row in history.values.split(lengths):
        groups = []
        while len(row):
            group, row = row[-size:], row[:-size]
            if layer is not None:
                group = torch.func.functional_call(layer, dict(theirs.layer.named_parameters()), (group.unsqueeze(0),))
            groups.insert(0, F.pad(group.flatten(), (4 * size - group.numel(), 0)))
        rows += [group.unsqueeze(0) for group in groups]
        counts.append(len(groups))
    found = ours(history)
    assert found.lengths.tolist() == counts
    if sum(lengths):
        assert_same(found.values, torch.cat(rows), [history.distinct], ours, theirs)


def loop(layer, history, count):
    rows = []
    for tokens in history.values.split(history.lengths.tolist()):
        q, k, v = layer.qkv(layer.norm1(tokens)).unflatten(1, (3, layer.num_heads, -1)).unbind(1)
        for i in range(max(len(tokens) - count, 0), len(tokens)):
            heads = [
                torch.softmax(k[: i + 1, h] @ q[i, h] / q.shape[2] ** 0.5, dim=0) @ v[: i + 1, h]
                for h in range(layer.num_heads)
            ]
            token = tokens[i] + layer.output(torch.cat(heads))
            rows.append(token + layer.ffn(layer.norm2(token)))
    return torch.stack(rows)


@given(LENGTHS, st.integers(1, 11), st.sampled_from([1, 2, 4]))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_a_loop(make_history, assert_same, lengths, count, heads):
    torch.manual_seed(0)
    lengths = [length + 1 for length in lengths]  # the global tokens
    ours, history = LONGERLayer(8, heads, 6).double(), make_history(lengths, 8)
    theirs = copy.deepcopy(ours)
    found = ours(history, count)
    assert found.lengths.tolist() == [min(length, count) for length in lengths]
    assert_same(found.values, loop(theirs, history, count), [history.distinct], ours, theirs)


@pytest.mark.parametrize(("length", "count"), [(1, 3), (7, 3), (7, 1), (4, 4)])
@pytest.mark.parametrize("beyond", [0, 2])
def test_tokens_at_the_end_of_an_encoded_row(make_history, length, count, beyond):
    layer, row = LONGERLayer(8, 2, 6).double(), make_history([length], 8).values
    given = torch.cat([row.flip(0), torch.full((beyond, 8), 5.0, dtype=torch.float64)])
    encoded, keys, values = layer.encode(given, count, length)
    kept = min(length, count)
    expected = loop(layer, Jagged(row, torch.tensor([0, length])), count).flip(0)
    assert (encoded.shape, keys.shape) == ((count, 8), given.shape)
    torch.testing.assert_close(encoded[:kept], expected, rtol=1e-12, atol=1e-12)
    own = torch.randn(3, 2, 8, dtype=torch.float64)
    rows = Jagged(torch.cat([torch.cat([row, tokens]) for tokens in own]), torch.arange(4) * (length + 2))
    expected = loop(layer, rows, 2).unflatten(0, (3, 2))
    torch.testing.assert_close(layer.attend(own, keys[:length], values[:length]), expected, rtol=1e-12, atol=1e-12)
