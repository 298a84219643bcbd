"""EST's layer against a loop over rows that writes the matrix of similarities out."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import ESTLayer, neighbours


def loop(layer, tokens, history, contents, top_k):
    """Return the tokens of every row, and the behaviours of all rows."""
    all_tokens, all_behaviours = [], []
    lengths = history.lengths.tolist()
    rows = zip(tokens, history.values.split(lengths), contents.values.split(lengths), strict=True)
    for tokens_of_row, behaviours, content in rows:
        products = content @ content.T
        found = products.topk(min(top_k, len(content)), dim=1).indices
        mixing = products * torch.zeros_like(products).scatter(1, found, 1.0)
        normed, row = layer.norm1(behaviours), []
        for t, token in enumerate(tokens_of_row):
            parts = layer.norm1(token) @ layer.query.weight[t], layer.key(normed), layer.value(normed)
            heads = zip(*(x.unflatten(-1, (layer.num_heads, -1)).unbind(-2) for x in parts), strict=True)
            seen = torch.cat([torch.softmax(k @ q / len(q) ** 0.5, dim=0) @ v for q, k, v in heads])
            token = token + seen @ layer.output.weight[t]
            first, second = layer.token_ffn1, layer.token_ffn2
            hidden = F.gelu(layer.norm2(token) @ first.weight[t] + first.bias[t])
            row.append(token + hidden @ second.weight[t] + second.bias[t])
        behaviours = behaviours + mixing @ behaviours
        all_behaviours.append(behaviours + layer.ffn(layer.norm2(behaviours)))
        all_tokens.append(torch.stack(row))
    return torch.stack(all_tokens), torch.cat(all_behaviours)


def make_layer(heads):
    layer = ESTLayer(3, 8, heads, 6).double()
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    return layer


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 6), st.sampled_from([1, 2, 4]), st.booleans()
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_a_loop(make_history, assert_same, lengths, top_k, heads, repeated):
    torch.manual_seed(0)
    ours = make_layer(heads)
    theirs = copy.deepcopy(ours)
    history, contents = make_history(lengths, 8, repeated=repeated), make_history(lengths, 4, repeated=False)
    tokens = torch.randn(len(lengths), 3, 8, dtype=torch.float64, requires_grad=True)
    found = ours(tokens, history, *neighbours(contents, top_k))
    expected = loop(theirs, tokens, history, contents, top_k)
    joined = [torch.cat([x.flatten(), y.flatten()]) for x, y in ((found[0], found[1].values), expected)]
    assert_same(*joined, [tokens, history.distinct], ours, theirs)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_parts_of_a_user_and_of_candidates_are_the_rows(make_history, length):
    layer, contents = make_layer(2), make_history([length], 4, repeated=False)
    history = make_history([length], 8)
    tokens = torch.randn(5, 3, 8, dtype=torch.float64)
    rows = Jagged(history.values.repeat(5, 1), torch.arange(6) * length)
    near = neighbours(Jagged(contents.values.repeat(5, 1), rows.offsets), 3)
    expected, behaviours = layer(tokens, rows, *near)
    mixing = torch.zeros(length, length, dtype=torch.float64).scatter_add(1, near[0][:length], near[1][:length])
    encoded, keys, values = layer.encode(history.values, mixing)
    found = [layer.attend(tokens[:, part], keys, values, part) for part in (slice(1), slice(1, None))]
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(encoded, behaviours.values[:length], rtol=1e-12, atol=1e-12)


def test_tokens_near_zero_stay_there():
    """Embeddings of rare ids do, whose noise would count as much as the embeddings of the others."""
    layer, tokens = ESTLayer(3, 8, 2, 6), 1e-4 * torch.randn(2, 3, 8)
    for norm in (layer.norm1, layer.norm2):
        torch.testing.assert_close(norm(tokens), tokens)


def test_a_candidate_of_no_feature_tokens(make_history):
    _, keys, values = (layer := make_layer(1)).encode(make_history([4], 8).values, torch.zeros(4, 4).double())
    assert layer.attend(torch.zeros(1, 0, 8).double(), keys, values, slice(0)).shape == (1, 0, 8)
