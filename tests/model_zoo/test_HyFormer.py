"""HyFormer equals a re-computation row by row, query by query."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fuxictr_mm.experiment import Experiment
from fuxictr_mm.layers import Jagged
from tests.paths import ROOT


def own(layer, tokens):
    return torch.stack([x @ w + b for x, w, b in zip(tokens, layer.weight, layer.bias, strict=True)])


def attention(layer, query, items):
    """Return what a query (W,) reads of items (n, W), head by head."""
    parts = zip(
        *(x.chunk(layer.num_heads, -1) for x in (layer.W_q(query), layer.W_k(items), layer.W_v(items))), strict=True
    )
    return layer.W_o(torch.cat([torch.softmax(k @ q / len(q) ** 0.5, dim=0) @ v for q, k, v in parts]))


def after(layer, tokens, items):
    """Return the tokens (T, W) of a row after a layer."""
    encoder, (first, act, second) = layer.encoder, layer.ffn
    items = encoder.second(F.silu(encoder.gate(items)) * encoder.first(items))
    decoded = [attention(layer.attention, query, items) for query in tokens[: layer.num_queries]]
    tokens = torch.stack([*decoded, *tokens[layer.num_queries :]])
    mixed = torch.stack([torch.cat(part) for part in zip(*(x.chunk(len(tokens)) for x in tokens), strict=True)])
    return tokens + own(second, act(own(first, mixed)))


def dense(model, p):
    inputs = []
    for context, target, items, _ in p.rows():
        history, slices = model.item_token(items), model.tokens
        count = slices.num_tokens
        features = own(slices.linear, F.pad(torch.cat([context, target]), (0, slices.missing)).view(count, -1))
        mean = history.sum(dim=0) / max(len(history), 1)
        first, act, _, second = model.queries
        hidden = act(first(torch.cat([features.flatten(), mean])))
        tokens = torch.cat([own(second, hidden.view(second.weight.shape[0], -1)), features])
        for layer in model.layers:
            tokens = after(layer, tokens, history)
        inputs.append(tokens.flatten())
    return model.dnn(torch.stack(inputs))


@pytest.mark.parametrize(
    "given_settings",
    [
        {},
        {"num_queries": 3, "num_tokens": 1, "num_layers": 3, "num_heads": 1},
        {"num_queries": 2, "num_tokens": 3, "token_dim": 10, "num_heads": 2, "hidden_factor": 1, "num_layers": 1},
    ],
)
def test_equals_the_dense_model(equals_dense, given_settings):
    equals_dense("HyFormer_tiny", dense, **given_settings)


def test_settings_reach_the_layers(build):
    sizes = {"num_queries": 2, "num_tokens": 2, "token_dim": 8, "hidden_factor": 3}
    model, _ = build("HyFormer_tiny", num_layers=1, num_heads=2, token_dropout=0.3, **sizes)
    (layer,) = model.layers
    assert (layer.attention.num_heads, layer.dropout.p, layer.ffn[0].weight.shape) == (2, 0.3, (4, 8, 24))
    assert (layer.encoder.first.weight.shape, model.queries[0].weight.shape[0]) == ((24, 8), 2 * 24)


def test_dropout_is_on_the_output_of_the_mlps(build):
    model, _ = build("HyFormer_tiny", num_queries=2, num_tokens=2)
    layer, tokens = model.layers[0].train(), torch.randn(3, 4, 32)
    layer.dropout.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
    history = Jagged(torch.randn(5, 32), torch.tensor([0, 2, 2, 5]))
    assert torch.equal(layer(tokens, history)[:, 2:], tokens[:, 2:])


def test_a_layer_of_rows_of_any_length(build, float64):
    model, _ = build("HyFormer_tiny", num_queries=2, num_tokens=2)
    layer = model.layers[0].double()

    @settings(max_examples=8, deadline=None)
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(1, 6))
    def check(lengths, num_distinct):
        index = torch.randint(num_distinct, (sum(lengths),))
        items = torch.randn(num_distinct, 32, dtype=torch.float64, requires_grad=True)
        tokens = torch.randn(len(lengths), 4, 32, dtype=torch.float64, requires_grad=True)
        found = layer(tokens, Jagged(items, torch.tensor([0, *lengths]).cumsum(0), index))
        rows = zip(tokens, items[index].split(lengths), strict=True)
        expected = torch.stack([after(layer, *row) for row in rows])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        direction = torch.randn_like(found)
        of = [items, tokens, *layer.parameters()]
        ours, theirs = (
            torch.autograd.grad(x, of, direction, allow_unused=True, materialize_grads=True) for x in (found, expected)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)

    check()


def test_order_does_not_count(order_counts):
    assert not order_counts("HyFormer_tiny")


@pytest.mark.slow
def test_learns_the_planted_taste(tmp_path):
    run = {"model_root": str(tmp_path), "verbose": 0, "epochs": 6, "seed": 1}
    assert Experiment.load("HyFormer_tiny", ROOT, **run).fit().valid["AUC"] > 0.7
