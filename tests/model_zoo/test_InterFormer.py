"""InterFormer equals a re-computation row by row, with complex numbers for the rotary positions."""

import pytest
import torch


def rotated(x, start=0):
    half = x.shape[1] // 2
    angles = torch.arange(start, start + len(x))[:, None] * 10_000.0 ** (
        -torch.arange(half, dtype=torch.float64) / half
    )
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=1)


def gated(gate, x):
    return x * torch.sigmoid(gate.linear(x))


def of_fields(layer, x):
    """The summary of the fields of a row."""
    return gated(layer.gate, (x.T @ layer.linear.weight.T + layer.linear.bias).T)


def summary(layer, cls, items):
    """The three parts of the summary of a row."""
    tokens, dim = torch.cat([cls, items]), cls.shape[1]
    pooled = [torch.softmax(layer.key(tokens) @ q / dim**0.5, 0) @ layer.value(tokens) for q in layer.queries]
    recent = items[-layer.num_recent :] if layer.num_recent else items[:0]
    zeros = torch.zeros(layer.num_recent - len(recent), dim, dtype=torch.float64)
    return gated(layer.gate, torch.cat([cls, torch.stack(pooled), zeros, recent]))


def dense(model, p):
    rows = []
    for context, target, items, _ in p.rows():
        x = torch.cat([context, target]).view(-1, model.embedding_dim)
        s = model.project(gated(model.mask, items))
        first = model.layers[0]
        cls = of_fields(first.summarize, x)
        count = len(cls)
        for layer in model.layers:
            x_sum = of_fields(layer.summarize, x)
            s_sum = summary(layer.summary, cls, s)
            inputs = torch.cat([x, s_sum]).flatten()
            (cross,) = layer.interaction.cross_layers
            crossed = (inputs + inputs * cross(inputs)).view(-1, x.shape[1])
            x = (crossed.T @ layer.to_fields.weight.T + layer.to_fields.bias).T
            tokens = torch.cat([cls, s]) @ layer.personal(x_sum.flatten()).view(x.shape[1], -1)
            heads = []
            parts = zip(*(t.chunk(layer.num_heads, 1) for t in layer.qkv(tokens).chunk(3, 1)), strict=True)
            for q, k, v in parts:
                heads.append(torch.softmax(rotated(q) @ rotated(k).T / q.shape[1] ** 0.5, 1) @ v)
            tokens = layer.output(torch.cat(heads, dim=1))
            cls, s = tokens[:count], tokens[count:]
        rows.append(torch.cat([of_fields(model.summarize, x), summary(model.summary, cls, s)]).flatten())
    return model.dnn(torch.stack(rows))


@pytest.mark.parametrize(
    "settings", [{}, {"num_layers": 1, "num_heads": 1, "num_cls": 3, "num_queries": 1, "num_recent": 0}]
)
def test_equals_the_dense_model(equals_dense, settings):
    equals_dense("InterFormer_tiny", dense, **settings)


def test_order_counts(order_counts):
    assert order_counts("InterFormer_tiny")
