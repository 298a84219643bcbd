"""DMGIN equals a re-computation group by group."""

import math

import pytest
import torch
from torch.nn import functional as F


def layer_norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def hstu(layer, x):
    u, v, q, k = F.silu(layer.uvqk(layer_norm(x))).chunk(4, dim=1)
    distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
    heads = [
        F.silu(qh @ kh.T + layer.distance_bias[distance.clamp(min=0)]) / layer.max_len * (distance >= 0) @ vh
        for qh, kh, vh in zip(*(part.chunk(layer.num_heads, dim=1) for part in (q, k, v)), strict=True)
    ]
    return x + layer.output(layer_norm(torch.cat(heads, dim=1)) * u)


@pytest.mark.parametrize("settings", [{}, {"num_groups": 2, "num_layers": 2, "num_heads": 1}, {"num_layers": 0}])
def test_equals_the_dense_model(equals_dense, settings):
    def dense(model, p):
        codes, rows = model.items.stored("codes_vq_text")[:, 0], []
        for context, target, items, ids in p.rows():
            of_items, groups = codes[ids].tolist(), []
            for code in sorted(set(of_items), key=lambda c, o=of_items: max(i for i, x in enumerate(o) if x == c)):
                places = [i for i, x in enumerate(of_items) if x == code]
                weights = torch.softmax(model.pooling(items[places]).squeeze(1), dim=0)
                n = len(items)
                z = [
                    math.log(len(places)),
                    math.log1p(len(places) / n),
                    math.log(n - places[-1]),
                    math.log(n - places[0]),
                ]
                groups.append(model.group(torch.cat([weights @ items[places], torch.tensor(z, dtype=torch.float64)])))
            interest = torch.zeros(model.target.out_features, dtype=torch.float64)
            if groups:
                x = torch.stack(groups[-model.num_groups :])
                for layer in model.layers:
                    x = hstu(layer, x)
                attention, heads = model.attention, []
                q, k, v = attention.W_q(model.target(target)), attention.W_k(x), attention.W_v(x)
                for qh, kh, vh in zip(*(t.chunk(attention.num_heads, -1) for t in (q, k, v)), strict=True):
                    heads.append(torch.softmax(kh @ qh / len(qh) ** 0.5, dim=0) @ vh)
                interest = attention.W_o(torch.cat(heads))
            rows.append(torch.cat([context, target, interest]))
        return model.dnn(torch.stack(rows))

    equals_dense("DMGIN_tiny", dense, **settings)
