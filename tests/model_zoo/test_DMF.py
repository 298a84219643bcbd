"""DMF equals a padded re-computation."""

import pytest
import torch
from torch.nn import functional as F


@pytest.mark.parametrize(
    "settings", [{}, {"num_heads": 1, "num_tiers": 3, "enhanced_weight": 0.9, "tier_hidden_units": [8, 8]}]
)
def test_equals_the_dense_model(equals_dense, settings):
    def dense(model, p):
        content, layer = F.normalize(model.items[model.content], dim=1), model.attention
        cosines = torch.einsum("bd,bld->bl", content[p.target], content[p.ids])
        tier = torch.ceil((cosines + 1) * layer.num_tiers / 2).long().clamp(0, layer.num_tiers)
        key, value = layer.W_k(p.s) + layer.tier_keys[tier], layer.W_v(p.s) + layer.tier_values[tier]
        heads = []
        parts = zip(*(x.chunk(layer.num_heads, -1) for x in (layer.W_q(p.t), key, value)), strict=True)
        for q, k, v in parts:
            scores = torch.einsum("bd,bld->bl", q, k) / q.shape[1] ** 0.5
            weights = torch.softmax(scores.masked_fill(~p.mask, -1e30), dim=1) * p.mask
            heads.append(torch.einsum("bl,bld->bd", weights, v))
        counts = torch.stack([((tier == j) & p.mask).sum(1) for j in range(layer.num_tiers + 1)], dim=1)
        centric = model.tier_mlp(torch.log1p(counts.double()) * model.tiers.weight)
        interest = model.enhanced_weight * torch.cat(heads, dim=1) + (1 - model.enhanced_weight) * centric
        return model.dnn(torch.cat([p.c, p.t, interest], dim=-1))

    equals_dense("DMF_tiny", dense, **settings)


def test_the_order_does_not_matter(order_counts):
    assert not order_counts("DMF_tiny")
