"""BST: a transformer over the history and the target."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import Buckets, JaggedTransformerLayer, append, mlp_of_shared
from fuxictr_mm.model import DNNModel


class BST(DNNModel):
    r"""Behavior Sequence Transformer. Chen et al., DLP-KDD 2019, https://arxiv.org/abs/1905.06874.

    .. math::

        h_0 .. h_L = \mathrm{Encoder}([t, p_0], [s_L, p_1], .., [s_1, p_L]), \qquad
        \hat y = \sigma(\mathrm{DNN}([c, h_0, .., h_{K-1}]))

    with context c, target t, history items s from the newest on, and a learned embedding p of the distance to the
    target. Every token attends to all tokens of its row.

    Departures: distances are counted in items, not in time, because the challenge's data has no time; all beyond
    ``max_len`` share an embedding; the feed-forward layers use ReLU (the paper: leaky ReLU); there is no dropout unless
    ``transformer_dropout`` is set (the paper: 0.2).

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_layers : int
        Encoder layers; one was best in the paper.
    num_heads : int
        Attention heads of an encoder layer; must divide the dim of a token.
    feedforward_dim : int, optional
        Hidden dim of the feed-forward networks; by default the dim of a token.
    position_dim : int, optional
        Dim of the position embedding p; by default ``embedding_dim``.
    num_outputs : int
        K, number of outputs that are kept: the target's and those of the newest items; missing ones are zero.
    transformer_dropout : float
        Dropout inside the encoder.
    dnn_activations : str
        Activation of the DNN.
    **params
        Those of DNNModel and MultimodalModel.
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
        dnn_activations: str = "LeakyReLU",
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_activations=dnn_activations, **params)
        position_dim = position_dim or self.embedding_dim
        dim = self.item_dim + position_dim
        self.check_heads(num_heads, dim, f"a token's dim (item {self.item_dim}, position {position_dim})")
        self.num_outputs = num_outputs
        self.has_user_state = num_layers == 1  # the input of a second layer depends on the target
        self.position_embedding = nn.Embedding(self.max_len + 1, position_dim)
        self.encoder = nn.ModuleList(
            JaggedTransformerLayer(dim, num_heads, feedforward_dim or dim, transformer_dropout)
            for _ in range(num_layers)
        )
        self.dnn = self.make_dnn(self.context_dim + num_outputs * dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        tokens = append(e.history, e.target)
        last = tokens.offsets[1:] - 1
        from_target = last.index_select(0, tokens.rows) - torch.arange(tokens.num_values, device=last.device)
        encoded = torch.cat([tokens.values, self._positions(from_target)], dim=1)
        buckets = Buckets.of(tokens.offsets)
        for layer in self.encoder:
            encoded = layer(encoded, buckets)
        kept = last.unsqueeze(1) - torch.arange(self.num_outputs, device=last.device)
        kept = kept.masked_fill(kept < tokens.offsets[:-1].unsqueeze(1), -1)
        nothing = encoded.new_zeros(1, encoded.shape[1])
        outputs = torch.cat([nothing, encoded]).index_select(0, kept.flatten() + 1).unflatten(0, kept.shape).flatten(1)
        return self.dnn(torch.cat([e.context, outputs], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and what the encoder's layer reads of the history, newest item first."""
        distance = torch.arange(history.shape[0], device=history.device) + 1
        tokens = torch.cat([history.flip(0), self._positions(distance)], dim=1)
        return context, *self.encoder[0].encode_first(tokens, self.num_outputs - 1)  # type: ignore[operator]

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        nearest = self.position_embedding.weight[:1].expand(candidates.shape[0], -1)
        tokens = torch.cat([candidates, nearest], dim=1)
        outputs = self.encoder[0].attend_first(tokens, *state[1:])  # type: ignore[operator]
        return mlp_of_shared(self.dnn, state[0], outputs.flatten(1))

    def _positions(self, distance: Tensor) -> Tensor:
        return self.position_embedding(distance.clamp(max=self.position_embedding.num_embeddings - 1))
