"""TokenMixerLarge: tokens that are mixed and mixed back, with residuals and losses between deep layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from fuxictr.features import FeatureMap
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.layers import MultiHeadTargetAttention, SliceTokens, TokenMixerLargeBlock
from fuxictr_mm.model import DNNModel


class TokenMixerLarge(DNNModel):
    r"""TokenMixer-Large. Jiang et al., 2026, https://arxiv.org/abs/2602.06563.

    .. math::

        x^0 = [W a, \mathrm{SliceTokens}(a)], \quad a = [c, t, \mathrm{MHTA}(t, s)], \qquad
        x^l = \mathrm{TokenMixerLargeBlock}_l(x^{l-1}) \; (+ \; x^{l-r} \text{ if } r \mid l, \; l < N)

        \hat y = \sigma(\mathrm{DNN}(\bar x^N)), \qquad \mathcal{L} = \mathrm{BCE}(\hat y, y) + \alpha
        \textstyle\sum_{r \mid l, \; l < N} \mathrm{BCE}(\sigma(W_l \bar x^l + b_l), y)

    with context c, target t, history items s and the mean of the tokens of a layer. ``RankMixer`` is its predecessor.

    Departures: the paper's tokens are MLPs of features grouped by meaning, and one of all features; here linear maps of
    slices of their concatenation, in the order of the dataset, and of all of it. Its sparse experts are left out. Only
    its equations and others' accounts of it were at hand: that every second or third layer, but not the last, has a
    residual and a loss is from these; the heads and the weight of these losses, and the mean of the tokens as the
    output, are chosen here. The equations have biases, which some accounts leave out.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_layers : int
        N, number of layers.
    num_tokens : int
        T, number of tokens, one of them of all features.
    token_dim : int
        Dim of a token.
    num_mixed : int
        Number of mixed tokens; must divide ``token_dim``.
    hidden_factor : int
        Hidden dim of the MLPs, as a multiple of the dim of their tokens.
    token_dropout : float
        Dropout on the output of the MLPs.
    residual_interval : int
        r, number of layers that a residual spans; without effect if it is not below ``num_layers``.
    auxiliary_weight : float
        Alpha, the weight of the losses of the layers that a residual ends at; 0 disables them.
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
        num_layers: PositiveInt = 3,
        num_tokens: Annotated[int, Field(ge=2)] = 8,
        token_dim: PositiveInt = 64,
        num_mixed: PositiveInt = 8,
        hidden_factor: PositiveInt = 2,
        token_dropout: Dropout = 0.0,
        residual_interval: PositiveInt = 2,
        auxiliary_weight: NonNegativeFloat = 0.1,
        num_heads: PositiveInt = 1,
        dnn_hidden_units: HiddenUnits = (64,),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        dim = self.item_dim
        self.check_heads(num_heads, dim, "the item dim")
        if token_dim % num_mixed:
            raise ConfigError(f"{self.model_id}: num_mixed is {num_mixed}, expected a divisor of token_dim {token_dim}")
        self.attention = MultiHeadTargetAttention(dim, dim, num_heads)
        inputs = self.context_dim + 2 * dim
        self.global_token, self.tokens = nn.Linear(inputs, token_dim), SliceTokens(inputs, num_tokens - 1, token_dim)
        self.blocks = nn.ModuleList(
            TokenMixerLargeBlock(num_tokens, token_dim, num_mixed, hidden_factor, token_dropout)
            for _ in range(num_layers)
        )
        self.interval, self.auxiliary_weight = residual_interval, auxiliary_weight
        count = (num_layers - 1) // residual_interval if auxiliary_weight else 0
        self.auxiliary = nn.ModuleList(nn.Linear(token_dim, self.num_tasks) for _ in range(count))
        #: Of the last batch of training, of each layer with a loss.
        self.auxiliary_logits: list[Tensor] = []
        self.dnn = self.make_dnn(token_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        return self.head(torch.cat([e.context, e.target, self.attention(e.target, e.history)], dim=-1))

    def head(self, inputs: Tensor) -> Tensor:
        """Return the logits ``(B, 1)`` of context, target and interest, concatenated."""
        tokens = torch.cat([self.global_token(inputs).unsqueeze(1), self.tokens(inputs)], dim=1)
        kept, means = tokens, []
        for layer, block in enumerate(self.blocks, 1):
            tokens = block(tokens)
            if layer % self.interval == 0 and layer < len(self.blocks):
                kept = tokens = tokens + kept
                means.append(tokens.mean(dim=1))
        self.auxiliary_logits = []
        if self.training:
            self.auxiliary_logits = [map_(mean) for map_, mean in zip(self.auxiliary, means, strict=False)]
        return self.dnn(tokens.mean(dim=1))

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the last scored batch, in training with those of the layers between."""
        loss = super().add_loss(return_dict, y_true)
        logits, self.auxiliary_logits = self.auxiliary_logits, []  # otherwise it keeps the graph of the batch in memory
        for logit in logits:
            logit = logit.to(return_dict["logit"].dtype)
            outputs = {"logit": logit, "y_pred": self.output_activation(logit)}
            loss = loss + self.auxiliary_weight * super().add_loss(outputs, y_true)
        return loss

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, keys and values."""
        return context, *self.attention.keys_and_values(history)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, keys, values = state
        interest = self.attention.attend(candidates, keys, values)
        return self.head(torch.cat([context.expand(candidates.shape[0], -1), candidates, interest], dim=-1))
