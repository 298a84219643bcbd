"""DIN_MM equals a padded re-computation from its formulas."""

from itertools import combinations

import pytest
import torch

from fuxictr_mm.layers import CrossNet, CrossNetMix, CrossNetV2

CROSS = {None: torch.nn.Identity, "v1": CrossNet, "v2": CrossNetV2, "mix": CrossNetMix}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"interest": "din"},
        {"interest": "mean", "senet": False},
        {"cross": "v1"},
        {"cross": "v2", "bilinear": "field_interaction"},
        {"cross": "mix", "bilinear": "field_all"},
        {"senet": False, "bilinear": "field_each"},
    ],
)
def test_equals_the_dense_model(equals_dense, din, target_attention, settings):
    def pooled(model, p):
        if settings.get("interest") == "mean":
            return (p.s * p.mask.unsqueeze(2)).sum(dim=1) / p.mask.sum(dim=1, keepdim=True).clamp(min=1)
        return (din if "interest" in settings else target_attention)(model.attention, p.t, p.s, p.mask)

    def dense(model, p):
        fields = torch.cat([p.c, p.t, pooled(model, p)], dim=-1).view(len(p.c), -1, model.embedding_dim)
        if settings.get("senet", True):
            first, last = model.senet.excitation[0], model.senet.excitation[2]
            fields = fields * torch.sigmoid(last(first(fields.mean(dim=2)).relu())).unsqueeze(2)
        assert type(model.cross) is CROSS[settings.get("cross")]
        parts = [model.cross(fields.flatten(1))]
        if kind := settings.get("bilinear"):
            for pair, (i, j) in enumerate(combinations(range(fields.shape[1]), 2)):
                place = {"field_all": ..., "field_each": i, "field_interaction": pair}[kind]
                parts.append(fields[:, i] @ model.bilinear.bilinear_W[place] * fields[:, j])
        return model.dnn(torch.cat(parts, dim=1))

    equals_dense("DIN_MM_tiny", dense, **settings)
