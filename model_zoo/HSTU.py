"""HSTU: layers of attention without softmax over the history and the target, as a ranker."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers import Buckets, HSTULayer, append, mlp_of_shared
from fuxictr_mm.layers.tokens import NORM_EPSILON
from fuxictr_mm.model import DNNModel


class HSTU(DNNModel):
    r"""Hierarchical Sequential Transduction Units. Zhai et al., ICML 2024, https://arxiv.org/abs/2402.17152.

    .. math::

        x_1 .. x_L, x_t = \mathrm{HSTULayers}(W s_1 .. W s_L, W t), \qquad
        \hat y = \sigma(\mathrm{DNN}([c, t, x_t]))

    with context c, target t and history items s. The target is the last token and sees all others.

    Departures: histories have no times, so the bias of a pair of tokens depends on their distance; it starts at 0, and
    items have no embedding of their position besides (the public code: standard deviation 0.02; has one); histories are
    clicks alone, so there are no tokens of actions between the items; a DNN ranks, where the paper has heads of its
    tasks; all four projections have the same dim; the norms have an epsilon of 1.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_layers : int
        Number of layers.
    num_heads : int
        Attention heads; must divide ``token_dim``.
    token_dim : int
        Dim of a token, the output of W.
    attention_dropout : float
        Dropout in each layer.
    norm_epsilon : float
        Epsilon of the norms. Tokens that are much shorter than it stay so, as those of rare ids, whose embeddings stay
        near zero; with a small one, their noise is scaled to the length of all other tokens.
    **params
        Those of DNNModel and MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_layers: PositiveInt = 2,
        num_heads: PositiveInt = 1,
        token_dim: PositiveInt = 64,
        attention_dropout: Dropout = 0.0,
        norm_epsilon: PositiveFloat = NORM_EPSILON,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self.check_heads(num_heads, token_dim, "token_dim")
        self.token = nn.Linear(self.item_dim, token_dim)
        self.layers = nn.ModuleList(
            HSTULayer(token_dim, num_heads, self.max_len + 1, attention_dropout, norm_epsilon)
            for _ in range(num_layers)
        )
        self.dnn = self.make_dnn(self.context_dim + self.item_dim + token_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        history: Jagged = e.history.map(self.token)
        tokens = append(history, self.token(e.target))
        encoded, buckets = tokens.values, Buckets.of(tokens.offsets)
        for layer in self.layers:
            encoded = layer(encoded, buckets)
        return self.dnn(torch.cat([e.context, e.target, encoded[tokens.offsets[1:] - 1]], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and the keys and values of the history in each layer, which no target changes."""
        state, encoded = [context], self.token(history)
        for layer in self.layers:
            encoded, *keys_and_values = layer.encode(encoded)  # type: ignore[operator]
            state += keys_and_values
        return tuple(state)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, *parts = state
        encoded = self.token(candidates)
        for layer, keys, values in zip(self.layers, parts[::2], parts[1::2], strict=True):
            encoded = layer.attend(encoded, keys, values)  # type: ignore[operator]
        return mlp_of_shared(self.dnn, context, candidates, encoded)
