"""The padded reference of DIN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import DIN_Attention
from torch import Tensor

from benchmarks.reference.padded import PaddedBatch, PaddedModel, make_dnn


class PaddedDIN(PaddedModel):
    """The challenge's baseline: FuxiCTR's DIN attention, then a DNN."""

    def __init__(self, feature_map: FeatureMap, params: Mapping[str, Any]) -> None:
        super().__init__(feature_map, params)
        self.attention_layers = DIN_Attention(
            self.item_dim,
            attention_units=params["attention_hidden_units"],
            hidden_activations=params["attention_hidden_activations"],
            dropout_rate=params["attention_dropout"],
        )
        self.dnn = make_dnn(self.context_dim + 2 * self.item_dim, self.output_activation, params)
        self.build(params)

    def forward(self, batch: PaddedBatch) -> dict[str, Tensor]:
        """Return the probability of a click, ``y_pred`` ``(B, 1)``."""
        context, target, history, mask = self.embed(batch)
        interest = self.attention_layers(target, history, mask)
        return {"y_pred": self.dnn(torch.cat([context, target, interest], dim=-1))}
