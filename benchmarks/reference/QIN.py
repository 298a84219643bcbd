"""The padded reference of QIN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fuxictr.features import FeatureMap
from torch import Tensor, nn

from benchmarks.reference.padded import PaddedBatch, PaddedModel


class SparseTargetAttention(nn.Module):
    """Attention of the target to every position, padding included; scores by ReLU, masked by multiplication."""

    def __init__(self, input_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.W_q = nn.Linear(input_dim, attention_dim, bias=False)
        self.W_k = nn.Linear(input_dim, attention_dim, bias=False)
        self.W_v = nn.Linear(input_dim, attention_dim, bias=False)
        self.W_o = nn.Linear(attention_dim, input_dim, bias=False)
        self.scale = attention_dim**0.5

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """Return the interest ``(B, D)`` of a target ``(B, D)`` in a history ``(B, L, D)`` with its mask ``(B, L)``."""
        query, key, value = self.W_q(target).unsqueeze(1), self.W_k(history), self.W_v(history)
        scores = torch.matmul(query, key.transpose(1, 2)) / self.scale * mask.unsqueeze(1)
        return self.W_o(torch.matmul(torch.relu(scores), value).squeeze(1)) + target


class QuadraticLayer(nn.Module):
    """Sum of R linear projections, each times the input."""

    def __init__(self, input_dim: int, num_row: int, net_dropout: float) -> None:
        super().__init__()
        self.num_row = num_row
        self.linear = nn.Sequential(nn.Linear(input_dim, input_dim * num_row), nn.Dropout(net_dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, D)`` to ``(B, D)``."""
        projected = self.linear(x).unflatten(1, (self.num_row, -1))
        return torch.einsum("bd,brd->bd", x, projected)


class QuadraticNetwork(nn.Module):
    """Quadratic layers, each with batch norm, PReLU, dropout and residual, then a linear logit."""

    def __init__(self, input_dim: int, params: Mapping[str, Any]) -> None:
        super().__init__()
        layers, dropout = range(params["num_layers"]), params["net_dropout"]
        self.layer = nn.ModuleList(QuadraticLayer(input_dim, params["num_row"], dropout) for _ in layers)
        self.norm = nn.ModuleList(nn.BatchNorm1d(input_dim) for _ in layers)
        self.activation = nn.ModuleList(nn.PReLU() for _ in layers)
        self.dropout = nn.ModuleList(nn.Dropout(dropout) for _ in layers)
        self.fc = nn.Linear(input_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit ``(B, 1)``."""
        for layer, norm, activation, dropout in zip(self.layer, self.norm, self.activation, self.dropout, strict=True):
            x = x + dropout(activation(norm(layer(x))))
        return self.fc(x)


class PaddedQIN(PaddedModel):
    """QIN as its paper and code have it: keys and values of every position, R projections in every quadratic layer."""

    def __init__(self, feature_map: FeatureMap, params: Mapping[str, Any]) -> None:
        super().__init__(feature_map, params)
        self.attention_layers = SparseTargetAttention(self.item_dim, 2 * self.item_dim)
        self.qnn = QuadraticNetwork(self.context_dim + 2 * self.item_dim, params)
        self.build(params)

    def forward(self, batch: PaddedBatch) -> dict[str, Tensor]:
        """Return the probability of a click, ``y_pred`` ``(B, 1)``."""
        context, target, history, mask = self.embed(batch)
        interest = self.attention_layers(target, history, mask)
        logit = self.qnn(torch.cat([context, target, interest], dim=-1))
        return {"y_pred": self.output_activation(logit)}
