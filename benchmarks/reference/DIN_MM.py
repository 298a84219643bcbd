"""The padded reference of DIN_MM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MultiHeadTargetAttention, SqueezeExcitation
from torch import Tensor

from benchmarks.reference.padded import PaddedBatch, PaddedModel, make_dnn
from fuxictr_mm.data.feature_map import unify_dims


class PaddedDINMM(PaddedModel):
    """DIN_MM of FuxiCTR's layers: multi-head target attention, squeeze and excitation over all fields, a DNN."""

    def __init__(self, feature_map: FeatureMap, params: Mapping[str, Any]) -> None:
        super().__init__(unify_dims(feature_map, params["embedding_dim"]), params)
        self.embedding_dim = params["embedding_dim"]
        self.attention = MultiHeadTargetAttention(self.item_dim, self.item_dim, params["num_heads"])
        flat_dim = self.context_dim + 2 * self.item_dim
        self.senet = SqueezeExcitation(flat_dim // self.embedding_dim, 3, "Sigmoid")
        self.dnn = make_dnn(flat_dim, self.output_activation, params)
        self.build(params)

    def forward(self, batch: PaddedBatch) -> dict[str, Tensor]:
        """Return the probability of a click, ``y_pred`` ``(B, 1)``."""
        context, target, history, mask = self.embed(batch)
        interest = self.attention(target, history, mask)
        fields = torch.cat([context, target, interest], dim=-1).unflatten(1, (-1, self.embedding_dim))
        return {"y_pred": self.dnn(self.senet(fields).flatten(1))}
