"""RankMixer: tokens of equal slices, mixed without parameters, each with its own MLP."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.layers import MultiHeadTargetAttention, SliceTokens, TokenMixing
from fuxictr_mm.model import DNNModel


class RankMixer(DNNModel):
    r"""RankMixer. Zhu et al., 2025, https://arxiv.org/abs/2507.15551.

    .. math::

        x_1 .. x_T = \mathrm{SliceTokens}([c, t, \mathrm{MHTA}(t, s)]), \qquad
        \hat y = \sigma(\mathrm{DNN}(\tfrac{1}{T} \textstyle\sum_t \mathrm{TokenMixing}^N(x)_t))

    with context c, target t and history items s.

    Departures: the paper's tokens are slices of features grouped by meaning; here of their concatenation, in the order
    of the dataset. Its sparse experts are left out.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_layers : int
        N, number of layers.
    num_tokens : int
        T, number of tokens; must divide ``token_dim``.
    token_dim : int
        Dim of a token.
    hidden_factor : int
        Hidden dim of the MLPs, as a multiple of the dim of a token.
    token_dropout : float
        Dropout on the output of the MLPs.
    num_heads : int
        Heads of the attention to the history; must divide the dim of an item.
    dnn_hidden_units : sequence of int
        Dims of the hidden layers of the head.
    **params
        Those of DNNModel and MultimodalModel.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_layers: PositiveInt = 2,
        num_tokens: PositiveInt = 8,
        token_dim: PositiveInt = 64,
        hidden_factor: PositiveInt = 2,
        token_dropout: Dropout = 0.0,
        num_heads: PositiveInt = 1,
        dnn_hidden_units: HiddenUnits = (64,),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        dim = self.item_dim
        self.check_heads(num_heads, dim, "the item dim")
        if token_dim % num_tokens:
            raise ConfigError(
                f"{self.model_id}: num_tokens is {num_tokens}, expected a divisor of token_dim {token_dim}"
            )
        self.attention = MultiHeadTargetAttention(dim, dim, num_heads)
        self.tokens = SliceTokens(self.context_dim + 2 * dim, num_tokens, token_dim)
        self.mixing = nn.Sequential(
            *(TokenMixing(num_tokens, token_dim, hidden_factor * token_dim, token_dropout) for _ in range(num_layers))
        )
        self.dnn = self.make_dnn(token_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        return self.head(torch.cat([e.context, e.target, self.attention(e.target, e.history)], dim=-1))

    def head(self, inputs: Tensor) -> Tensor:
        """Return the logits ``(B, 1)`` of context, target and interest, concatenated."""
        return self.dnn(self.mixing(self.tokens(inputs)).mean(dim=1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, keys and values."""
        return context, *self.attention.keys_and_values(history)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, keys, values = state
        interest = self.attention.attend(candidates, keys, values)
        return self.head(torch.cat([context.expand(candidates.shape[0], -1), candidates, interest], dim=-1))
