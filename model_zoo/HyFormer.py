"""HyFormer: queries that read the history and are mixed with the features, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.jagged import mean_pooling
from fuxictr_mm.layers import Jagged, MultiHeadTargetAttention, PerTokenLinear, SliceTokens, SwiGLU, mix_tokens
from fuxictr_mm.model import DNNModel


class HyFormer(DNNModel):
    r"""HyFormer. Huang et al., 2026, https://arxiv.org/abs/2601.12681.

    .. math::

        f_1 .. f_M = \mathrm{SliceTokens}([c, t]), \qquad h_n = W s_n, \qquad
        q_i = \mathrm{FFN}_i([f_1 .. f_M, \mathrm{mean}(h)]), \quad i = 1 .. N

        \tilde q_i = \mathrm{MHA}(q_i, \mathrm{SwiGLU}(h)), \qquad x = [\tilde q_1 .. \tilde q_N, f_1 .. f_M], \qquad
        [q', f'] = x + \mathrm{FFN}_t(\mathrm{mix}_T(x)), \qquad \hat y = \sigma(\mathrm{DNN}([q', f']))

    with context c, target t and history items s. The second line is a layer; q' and f' are the q and f of the next one.
    Each of the T = N + M tokens has its own FFN. A layer transforms each distinct item of the history by itself, free
    of the target.

    Departures: one history; the paper has queries for each of several. Of its three encoders of the history, the one
    without attention between items. Where it leaves things open: the FFNs have one hidden layer with GELU, the
    feature tokens go through the layers with the queries, and the head reads all tokens. UniRank's code of it has an
    encoder with attention, norms and a residual around the attention of the queries, and a mean of the queries.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_layers : int
        Number of layers.
    num_queries : int
        N, number of queries.
    num_tokens : int
        M, number of tokens of context and target; N + M must divide ``token_dim``.
    token_dim : int
        Dim of queries and tokens.
    num_heads : int
        Heads of the attention to the history; must divide ``token_dim``.
    hidden_factor : int
        Hidden dim of the MLPs, as a multiple of the dim of a token.
    token_dropout : float
        Dropout on the output of the FFNs of the layers.
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
        num_queries: PositiveInt = 1,
        num_tokens: PositiveInt = 7,
        token_dim: PositiveInt = 64,
        num_heads: PositiveInt = 1,
        hidden_factor: PositiveInt = 2,
        token_dropout: Dropout = 0.0,
        dnn_hidden_units: HiddenUnits = (64,),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        self.check_heads(num_heads, token_dim, "token_dim")
        total, hidden_dim = num_queries + num_tokens, hidden_factor * token_dim
        if token_dim % total:
            raise ConfigError(
                f"{self.model_id}: num_queries is {num_queries} and num_tokens is {num_tokens}, expected a sum that "
                f"divides token_dim {token_dim}"
            )
        self.item_token = nn.Linear(self.item_dim, token_dim)
        self.tokens = SliceTokens(self.context_dim + self.item_dim, num_tokens, token_dim)
        self.queries = nn.Sequential(
            nn.Linear((num_tokens + 1) * token_dim, num_queries * hidden_dim),
            nn.GELU(),
            nn.Unflatten(1, (num_queries, hidden_dim)),
            PerTokenLinear(num_queries, hidden_dim, token_dim),
        )
        self.layers = nn.ModuleList(
            HyFormerLayer(num_queries, total, token_dim, num_heads, hidden_dim, token_dropout)
            for _ in range(num_layers)
        )
        self.dnn = self.make_dnn(total * token_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        history = e.history.map(self.item_token)
        tokens = self.first_tokens(torch.cat([e.context, e.target], dim=-1), mean_pooling(history))
        for layer in self.layers:
            tokens = layer(tokens, history)
        return self.dnn(tokens.flatten(1))

    def first_tokens(self, features: Tensor, mean: Tensor) -> Tensor:
        """Return queries and feature tokens ``(B, N + M, W)``, of features and the mean of the history ``(B, W)``."""
        tokens = self.tokens(features)
        return torch.cat([self.queries(torch.cat([tokens.flatten(1), mean], dim=1)), tokens], dim=1)

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, the mean of the history, and its keys and values in each layer."""
        tokens = self.item_token(history)
        state = [context, mean_pooling(Jagged.of_row(tokens))]
        for layer in self.layers:
            state += layer.keys_and_values(tokens)  # type: ignore[operator]
        return tuple(state)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, mean, *parts = state
        context, mean = (part.expand(candidates.shape[0], -1) for part in (context, mean))
        tokens = self.first_tokens(torch.cat([context, candidates], dim=-1), mean)
        for layer, keys, values in zip(self.layers, parts[::2], parts[1::2], strict=True):
            tokens = layer.attend(tokens, keys, values)  # type: ignore[operator]
        return self.dnn(tokens.flatten(1))


class HyFormerLayer(nn.Module):
    """A layer of tokens ``(B, T, W)``, whose first N are the queries, and history tokens ``(.., W)``."""

    def __init__(
        self, num_queries: int, num_tokens: int, dim: int, num_heads: int, hidden_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_queries, self.num_tokens = num_queries, num_tokens
        self.encoder, self.attention = SwiGLU(dim, hidden_dim), MultiHeadTargetAttention(dim, dim, num_heads)
        self.ffn = nn.Sequential(
            PerTokenLinear(num_tokens, dim, hidden_dim), nn.GELU(), PerTokenLinear(num_tokens, hidden_dim, dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, history: Jagged) -> Tensor:
        """Return the tokens after the layer."""
        encoded = history.map(self.encoder)
        return self._boost(tokens, lambda query: self.attention(query, encoded))

    def keys_and_values(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the history tokens ``(L, W)`` of one user."""
        return self.attention.keys_and_values(self.encoder(history))

    def attend(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the tokens after the layer, of one history by ``keys_and_values``."""
        return self._boost(tokens, lambda query: self.attention.attend(query, keys, values))

    def _boost(self, tokens: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the tokens after the layer; ``read`` returns what a query ``(B, W)`` attends to."""
        features = tokens[:, self.num_queries :]
        decoded = torch.stack([read(query) for query in tokens[:, : self.num_queries].unbind(1)], dim=1)
        tokens = torch.cat([decoded.to(features.dtype), features], dim=1)
        return tokens + self.dropout(self.ffn(mix_tokens(tokens, self.num_tokens)))
