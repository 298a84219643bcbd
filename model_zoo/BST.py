"""BST, a transformer over the history and the target."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from pydantic import PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import Buckets, Jagged, JaggedTransformerLayer
from fuxictr_mm.model import MultimodalModel


class BST(MultimodalModel):
    r"""Behavior Sequence Transformer. Chen et al., DLP-KDD 2019, https://arxiv.org/abs/1905.06874.

    .. math::

        h_0 .. h_L = \mathrm{Encoder}([t, p_0], [s_L, p_1], .., [s_1, p_L]), \qquad
        \hat y = \sigma(\mathrm{DNN}([c, h_0, .., h_{K-1}]))

    with context c, target t, history items s from the newest on, and a learned vector p of the distance to the target.
    Every token sees all of its row.

    Departures: distances are counted in items, not in time, for the challenge's data has none; all beyond ``max_len``
    share a vector; the feed-forward layers use ReLU (the paper: leaky ReLU).

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_layers : int
        Encoder layers; one was best in the paper.
    num_heads : int
        Their heads; must divide the width of a token.
    feedforward_dim : int, optional
        Width inside their feed-forward networks; that of a token by default.
    position_dim : int, optional
        Width of p; ``embedding_dim`` by default.
    num_outputs : int
        K, outputs kept, the target's and those of the newest items; missing ones are zero.
    transformer_dropout : float
        Dropout inside the encoder.
    dnn_hidden_units : sequence of int
        Widths of the DNN.
    dnn_activations : str
        Its activation.
    net_dropout : float
        Its dropout.
    batch_norm : bool
        Its batch norm.
    **params
        Those of MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_layers: PositiveInt = 1,
        num_heads: PositiveInt = 8,
        feedforward_dim: PositiveInt | None = None,
        position_dim: PositiveInt | None = None,
        num_outputs: PositiveInt = 20,
        transformer_dropout: Dropout = 0.0,
        dnn_hidden_units: HiddenUnits = (1024, 512, 256),
        dnn_activations: str = "LeakyReLU",
        net_dropout: Dropout = 0.0,
        batch_norm: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        position_dim = position_dim or self.embedding_dim
        width = self.item_dim + position_dim
        self.check_heads(num_heads, width, f"a token's width (item {self.item_dim}, position {position_dim})")
        self.num_outputs = num_outputs
        self.position_embedding = nn.Embedding(self.max_len + 1, position_dim)
        self.encoder = nn.ModuleList(
            JaggedTransformerLayer(width, num_heads, feedforward_dim or width, transformer_dropout)
            for _ in range(num_layers)
        )
        self.dnn = MLP_Block(
            input_dim=self.context_dim + num_outputs * width,
            output_dim=1,
            hidden_units=list(dnn_hidden_units),
            hidden_activations=dnn_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        tokens = append(e.history, e.target)
        last = tokens.offsets[1:] - 1
        from_target = last.index_select(0, tokens.rows) - torch.arange(tokens.num_values, device=last.device)
        positions = self.position_embedding(from_target.clamp(max=self.position_embedding.num_embeddings - 1))
        encoded, buckets = torch.cat([tokens.values, positions], dim=1), Buckets.of(tokens.offsets)
        for layer in self.encoder:
            encoded = layer(encoded, buckets)
        kept = last.unsqueeze(1) - torch.arange(self.num_outputs, device=last.device)
        kept = kept.masked_fill(kept < tokens.offsets[:-1].unsqueeze(1), -1)
        nothing = encoded.new_zeros(1, encoded.shape[1])
        outputs = torch.cat([nothing, encoded]).index_select(0, kept.flatten() + 1).view(len(batch), -1)
        return self.dnn(torch.cat([e.context, outputs], dim=-1))


def append(history: Jagged, target: Tensor) -> Jagged:
    """Put ``target`` ``(B, D)`` at the end of each row of ``history`` ``(N, D)``; returns rows of N + B entries."""
    rows = torch.arange(history.num_rows + 1, device=target.device)
    places = torch.cat([torch.arange(history.num_values, device=target.device) + history.rows,
                        history.offsets[1:] + rows[:-1]])  # fmt: skip
    return Jagged(torch.cat([history.values, target]).index_select(0, places.argsort()), history.offsets + rows)
