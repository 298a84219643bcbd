"""DHEN equals a re-computation token by token."""

from itertools import combinations

import pytest
import torch


def mapped(layer, tokens):
    """A linear map of tokens."""
    return [sum(w * x for w, x in zip(row, tokens, strict=True)) for row in layer.weight]


def dot(module, x):
    products = torch.stack([(a * b).sum(1) for a, b in combinations(x, 2)], dim=1)
    return list(module.mlp(products).split(x[0].shape[1], dim=1))


def cross(module, x):
    inputs = torch.cat(x, dim=1)
    (layer,) = module[0].module.cross_layers
    crossed = inputs * (inputs @ layer.weight.T + layer.bias) + inputs
    return mapped(module[1], crossed.split(x[0].shape[1], dim=1))


def attention(module, x):
    layer = module[0]
    query, key, value = (
        [part.chunk(layer.num_heads, 1) for part in parts]
        for parts in zip(*(layer.qkv(token).chunk(3, 1) for token in x), strict=True)
    )
    outputs = []
    for q in query:
        heads = []
        for h in range(layer.num_heads):
            scores = torch.stack([(q[h] * k[h]).sum(1) for k in key], dim=1) / q[h].shape[1] ** 0.5
            weights = torch.softmax(scores, dim=1)
            heads.append(sum(weights[:, i : i + 1] * v[h] for i, v in enumerate(value)))
        outputs.append(layer.output(torch.cat(heads, dim=1)))
    return mapped(module[1], outputs)


def convolution(module, x):
    kernel, count, dim = module[0].weight[0, 0], len(x), x[0].shape[1]
    outputs = []
    for t in range(count):
        columns = []
        for d in range(dim):
            near = [(i, j) for i in range(3) for j in range(3) if 0 <= t + i - 1 < count and 0 <= d + j - 1 < dim]
            columns.append(sum(kernel[i, j] * x[t + i - 1][:, d + j - 1] for i, j in near))
        outputs.append(torch.stack(columns, dim=1))
    return mapped(module[1], outputs)


FORMULAS = {"dot": dot, "cross": cross, "attention": attention, "linear": mapped, "convolution": convolution}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_layers": 1, "num_tokens": 3, "num_heads": 1, "interactions": ["convolution", "dot"]},
        {"num_tokens": 5, "interactions": ["attention", "cross", "linear"], "din_use_softmax": True},
    ],
    ids=["tiny", "convolution", "fewer tokens"],
)
def test_equals_the_dense_model(equals_dense, din, settings):
    def dense(model, p):
        inputs = torch.cat([p.c, p.t, din(model.attention, p.t, p.s, p.mask)], dim=1)
        x = list(inputs.split(model.embedding_dim, dim=1))
        for layer, shortcut, norm in zip(model.layers, model.shortcuts, model.norms, strict=True):
            parts = [FORMULAS[name](module, x) for name, module in layer.items()]
            parts.append(mapped(shortcut, x) if hasattr(shortcut, "weight") else x)
            x = [norm(sum(tokens)) for tokens in zip(*parts, strict=True)]
        return model.dnn(torch.cat(x, dim=1))

    equals_dense("DHEN_tiny", dense, **settings)
