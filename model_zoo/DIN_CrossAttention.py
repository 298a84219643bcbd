"""DIN_CrossAttention: DIN and cross-attention layers over the history."""

from __future__ import annotations

from typing import Any, cast

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import CrossAttentionLayer, DINAttention, mlp_of_shared
from fuxictr_mm.layers.tokens import NORM_EPSILON
from fuxictr_mm.model import DNNModel


class DIN_CrossAttention(DNNModel):
    r"""DIN with a stacked target-attention encoder. Gavin113, WWW 2025 challenge, https://github.com/Gavin113/WWW2025_MMCTR.

    .. math::

        q_0 = t, \quad q_{l+1} = \mathrm{CrossAttentionLayer}_l(q_l, s_1 .. s_L), \qquad
        \hat y = \sigma(\mathrm{DNN}([c, t, \mathrm{DIN}(t, s_1 .. s_L), q_{L_c}]))

    with context c, target t and history items s. Its experiments add to the baseline's features: the user id in the
    context, likes and views levels among the fields of every item.

    Departures: one projection each of query, keys and values, without bias, where the published code has two in a row
    with bias; an empty history adds nothing (there: NaN); the target's levels enter once, as the item's (there
    by the context too, embedded by the same table); the loss is taken on logits; the norms have an epsilon of 1
    (there: 1e-6).

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_layers : int
        Cross-attention layers.
    num_heads : int
        Attention heads of a cross-attention layer; must divide the dim of an item.
    feedforward_dim : int, optional
        Hidden dim of the feed-forward networks; by default the dim of an item.
    attention_hidden_units : sequence of int
        Dims of the hidden layers of DIN's activation unit.
    attention_hidden_activations : str
        Activation of DIN's activation unit.
    attention_dropout : float
        Dropout inside DIN's activation unit and inside the cross-attention layers.
    norm_epsilon : float
        Epsilon of the norms. Tokens that are much shorter than it stay so, as those of rare ids, whose embeddings stay
        near zero; with a small one, their noise is scaled to the length of all other tokens.
    din_use_softmax : bool
        Whether the weights of the activation unit sum to one.
    dnn_hidden_units : sequence of int
        Dims of the DNN's hidden layers.
    **params
        Those of DNNModel and MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_layers: PositiveInt = 2,
        num_heads: PositiveInt = 4,
        feedforward_dim: PositiveInt | None = None,
        attention_hidden_units: HiddenUnits = (64,),
        attention_hidden_activations: str = "ReLU",
        attention_dropout: Dropout = 0.0,
        norm_epsilon: PositiveFloat = NORM_EPSILON,
        din_use_softmax: bool = False,
        dnn_hidden_units: HiddenUnits = (1024, 512, 256, 64, 16),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        dim = self.item_dim
        self.check_heads(num_heads, dim, "the item dim")
        self.attention_layers = DINAttention(
            dim,
            attention_hidden_units,
            hidden_activations=attention_hidden_activations,
            dropout_rate=attention_dropout,
            use_softmax=din_use_softmax,
        )
        self.encoder = nn.ModuleList(
            CrossAttentionLayer(
                dim,
                num_heads,
                hidden_dim=feedforward_dim or dim,
                dropout_rate=attention_dropout,
                norm_epsilon=norm_epsilon,
            )
            for _ in range(num_layers)
        )
        self.dnn = self.make_dnn(self.context_dim + 3 * dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        query = e.target
        for layer in self.encoder:
            query = layer(query, e.history)
        return self.dnn(torch.cat([e.context, e.target, self.attention_layers(e.target, e.history), query], dim=-1))

    def _layers(self) -> list[CrossAttentionLayer]:
        return cast(list[CrossAttentionLayer], list(self.encoder))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, history, and the part of each attention that depends only on the history."""
        parts = [part for layer in self._layers() for part in layer.keys_and_values(history)]
        return context, history, self.attention_layers.keys(history), *parts

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, history, item_keys, *parts = state
        query = candidates
        for layer, keys, values in zip(self._layers(), parts[::2], parts[1::2], strict=True):
            query = layer.attend(query, keys, values)
        interest = self.attention_layers.attend(candidates, history, item_keys)
        return mlp_of_shared(self.dnn, context, candidates, interest, query)
