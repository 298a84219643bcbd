"""MUSE equals a padded re-computation; its content need not be a field."""

import pytest
import torch
from torch.nn import functional as F


def mean_of(items, mask):
    return (items * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def tier_counts(cosines, mask, layer):
    tier = torch.ceil(cosines * layer.num_tiers / 2).long() + layer.num_tiers // 2
    return (
        torch.stack([torch.log1p(((tier == j) & mask).sum(1).double()) for j in range(len(layer.weight))], 1)
        * layer.weight
    )


def attend(scores, values, mask):
    weights = torch.softmax(scores.masked_fill(~mask, -1e30), dim=1) * mask
    return torch.einsum("bl,bld->bd", weights, values)


@pytest.mark.parametrize(
    "settings", [{}, {"form": "code"}, {"top_k": 30, "num_tiers": 4}, {"form": "code", "top_k": 2, "short_len": 1}]
)
def test_equals_the_dense_model(equals_dense, newest_mask, best_mask, settings):
    def dense(model, p):
        content = F.normalize(model.items[model.content], dim=1)
        cosines = torch.einsum("bd,bld->bl", content[p.target], content[p.ids])
        near, new = best_mask(cosines, p.mask, model.top_k), newest_mask(p.mask, model.short_len)
        ta, sata = model.short_attention, model.long_attention
        key = ta.W_k(p.s)
        scores = torch.einsum("bd,bld->bl", ta.W_q(p.t), key)
        if sata.code:
            short = attend(scores, key, new)
            x = torch.einsum("bd,bld->bl", F.silu(sata.W_q(p.t)), F.silu(sata.W_k(p.s)))
            r, value = cosines / sata.temperature, F.silu(sata.W_v(p.s))
        else:
            short = attend(scores / p.t.shape[1] ** 0.5, ta.W_v(p.s), new)
            x = torch.einsum("bd,bld->bl", sata.W_q(p.t), sata.W_k(p.s)) / p.t.shape[1] ** 0.5
            r, value = cosines, sata.W_v(p.s)
        one, two, three = sata.gamma.squeeze(1)
        long = attend(one * x + two * r + three * x * r, value, near)
        tiers = [tier_counts(cosines, new, model.short_tiers), tier_counts(cosines, near, model.long_tiers)]
        parts = [p.c, p.t, short, long, mean_of(p.s, new), mean_of(p.s, near), *tiers]
        return model.dnn(torch.cat(parts, dim=-1))

    equals_dense("MUSE_tiny", dense, **settings)


def test_content_is_no_field_unless_it_is_listed_as_one(build):
    assert "item_emb_d16" not in build("MUSE_tiny")[0].item_fields
    assert "item_emb_d16" in build("MUSE_tiny", feature_specs=None)[0].item_fields


def test_bytes_are_searched_as_floats_are(pair):
    model, batch = pair("MUSE_tiny")
    model.eval()
    table = model.items.get_buffer("column_item_emb_d16")
    whole = (table / table.abs().max() * 127).round()
    model.items.column_item_emb_d16 = whole
    expected = model(batch)["logit"]
    model.items.column_item_emb_d16 = whole.to(torch.int8)
    torch.testing.assert_close(model(batch)["logit"], expected, rtol=1e-12, atol=1e-12)
