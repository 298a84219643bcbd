"""SIM equals a padded re-computation: scores of all positions, the best of the real ones, two losses."""

import pytest
import torch
from torch.nn import functional as F


@pytest.mark.parametrize("settings", [{}, {"top_k": 30, "short_len": 0, "num_heads": 2, "search_weight": 0.3}])
def test_soft_search_equals_the_dense_model(equals_dense, target_attention, newest_mask, best_mask, settings):
    def dense(model, p):
        scores = torch.einsum("ba,bla->bl", model.W_a(p.t), model.W_b(p.s)) * p.mask
        aux = model.dnn_aux(torch.cat([p.c, p.t, torch.einsum("bl,bld->bd", scores, p.s)], dim=-1))
        short = target_attention(model.short_attention, p.t, p.s, newest_mask(p.mask, model.short_len))
        long = target_attention(model.long_attention, p.t, p.s, best_mask(scores, p.mask, model.top_k))
        logits = model.dnn(torch.cat([p.c, p.t, short, long], dim=-1))
        return logits, model.search_weight * F.binary_cross_entropy_with_logits(aux, p.label)

    equals_dense("SIM_tiny", dense, **settings)


def test_hard_search_equals_the_dense_model(equals_dense, target_attention, newest_mask):
    def dense(model, p):
        tags = model.items.stored("item_tags")
        of_target, of_items = tags[p.target], tags[p.ids]
        same = ((of_items[..., None] == of_target[:, None, None]) & (of_items != 0)[..., None]).flatten(2).any(
            2
        ) & p.mask
        assert same.sum() < p.mask.sum() or not p.mask.any()
        long = target_attention(model.long_attention, p.t, p.s, newest_mask(same, model.top_k))
        short = target_attention(model.short_attention, p.t, p.s, newest_mask(p.mask, model.short_len))
        return model.dnn(torch.cat([p.c, p.t, short, long], dim=-1))

    equals_dense("SIM_hard_tiny", dense)
