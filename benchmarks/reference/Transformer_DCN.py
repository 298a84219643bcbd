"""The padded reference of Transformer_DCN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNetV2, MLP_Block
from torch import Tensor, nn

from benchmarks.reference.padded import PaddedBatch, PaddedModel


class PaddedTransformer(nn.Module):
    """PyTorch's encoder over every position, each joined with the target; outputs of padding are zero."""

    def __init__(self, dim: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            dim,
            params["num_heads"],
            dim_feedforward=params["dim_feedforward"],
            dropout=params["transformer_dropout"],
            batch_first=True,
        )
        self.transformer_encoder = nn.TransformerEncoder(
            layer, params["transformer_layers"], enable_nested_tensor=False
        )
        self.out_linear = nn.Linear(dim, dim)
        self.num_slots = params["first_k_cols"]

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """Return the last outputs and their maximum ``(B, (K + 1) 2 D)`` of a history ``(B, L, D)``."""
        padding = mask == 0
        # An empty history is one padding item: a softmax over nothing has no value.
        padding[padding.all(dim=1), -1] = False
        tokens = torch.cat([history, target.unsqueeze(1).expand_as(history)], dim=-1)
        encoded = self.transformer_encoder(tokens, src_key_padding_mask=padding)
        last = encoded.masked_fill(padding.unsqueeze(-1), 0.0)[:, -self.num_slots :].flatten(1)
        peak = encoded.masked_fill(padding.unsqueeze(-1), -1e9).max(dim=1).values
        return torch.cat([last, self.out_linear(peak)], dim=1)


class PaddedTransformerDCN(PaddedModel):
    """A transformer encoder, then FuxiCTR's CrossNetV2 in parallel with a DNN, then an MLP."""

    def __init__(self, feature_map: FeatureMap, params: Mapping[str, Any]) -> None:
        super().__init__(feature_map, params)
        self.transformer_encoder = PaddedTransformer(2 * self.item_dim, params)
        dim = self.context_dim + self.item_dim + (params["first_k_cols"] + 1) * 2 * self.item_dim
        self.crossnet = CrossNetV2(dim, params["dcn_cross_layers"])
        self.parallel_dnn = MLP_Block(dim, params["dcn_hidden_units"], dropout_rates=params["net_dropout"])
        self.mlp = MLP_Block(
            dim + params["dcn_hidden_units"][-1],
            params["mlp_hidden_units"],
            output_dim=1,
            output_activation=self.output_activation,
        )
        self.build(params)

    def forward(self, batch: PaddedBatch) -> dict[str, Tensor]:
        """Return the probability of a click, ``y_pred`` ``(B, 1)``."""
        context, target, history, mask = self.embed(batch)
        x = torch.cat([context, target, self.transformer_encoder(target, history, mask)], dim=-1)
        return {"y_pred": self.mlp(torch.cat([self.crossnet(x), self.parallel_dnn(x)], dim=-1))}
