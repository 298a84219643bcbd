"""TWIN equals a padded re-computation, head by head."""

import pytest
import torch


def long_interest(model, p, best_mask):
    layer = model.long_attention
    dims = [model.field_dims[name] for name in model.item_fields]
    crossed = torch.tensor(layer.crossed).repeat_interleave(torch.tensor(dims))
    query, key = layer.W_q(p.t[:, ~crossed]), layer.W_h(p.s[..., ~crossed])
    bias = torch.zeros(*p.mask.shape, layer.num_heads) if layer.W_c is None else layer.W_c(p.s[..., crossed])
    size, heads = query.shape[1] // layer.num_heads, []
    for head in range(layer.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = torch.einsum("bd,bld->bl", query[:, part], key[..., part]) / size**0.5 + bias[..., head]
        found = best_mask(scores, p.mask, model.top_k)
        weights = torch.softmax(scores.masked_fill(~found, -1e30), dim=1) * found
        heads.append(torch.einsum("bl,bld->bd", weights, layer.W_v(p.s)[..., part]))
    return layer.W_o(torch.cat(heads, dim=1))


@pytest.mark.parametrize("settings", [{}, {"cross_features": [], "num_heads": 1, "top_k": 3}, {"top_k": 30}])
def test_equals_the_dense_model(equals_dense, target_attention, newest_mask, best_mask, settings):
    def dense(model, p):
        short = target_attention(model.short_attention, p.t, p.s, newest_mask(p.mask, model.short_len))
        return model.dnn(torch.cat([p.c, p.t, short, long_interest(model, p, best_mask)], dim=-1))

    equals_dense("TWIN_tiny", dense, **settings)
