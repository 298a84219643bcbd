"""HSTU equals a re-computation token by token."""

import torch
from torch.nn import functional as F


def layer_norm(x, epsilon):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + epsilon).sqrt()


def dense(model, p):
    inputs = []
    for context, target, items, _ in p.rows():
        x = model.token(torch.cat([items, target.unsqueeze(0)]))
        for layer in model.layers:
            u, v, q, k = F.silu(layer.uvqk(layer_norm(x, layer.norm_epsilon))).chunk(4, dim=1)
            heads = []
            for qh, kh, vh in zip(*(part.chunk(layer.num_heads, dim=1) for part in (q, k, v)), strict=True):
                tokens = []
                for i in range(len(x)):
                    bias = layer.distance_bias[: i + 1].flip(0)
                    tokens.append((F.silu(kh[: i + 1] @ qh[i] + bias) / layer.max_len) @ vh[: i + 1])
                heads.append(torch.stack(tokens))
            x = x + layer.output(layer_norm(torch.cat(heads, dim=1), layer.norm_epsilon) * u)
        inputs.append(torch.cat([context, target, x[-1]]))
    return model.dnn(torch.stack(inputs))


def test_equals_the_dense_model(equals_dense):
    equals_dense("HSTU_tiny", dense)
    equals_dense("HSTU_tiny", dense, num_layers=1, num_heads=1, token_dim=7, norm_epsilon=1e-5)


def test_order_counts(order_counts):
    assert order_counts("HSTU_tiny")
