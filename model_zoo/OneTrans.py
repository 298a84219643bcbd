"""OneTrans: one transformer over the history and over tokens of all other features."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import OneTransBlock, first, newest
from fuxictr_mm.layers.tokens import NORM_EPSILON
from fuxictr_mm.model import DNNModel


class OneTrans(DNNModel):
    r"""One Transformer. Zhang et al., WWW 2026, https://arxiv.org/abs/2510.26104.

    .. math::

        x = [W s_1 .. W s_L, \mathrm{split}_M(\mathrm{SiLU}(W' [c, t] + b))], \qquad
        y = x + W_o \, \mathrm{MHA}(\mathrm{RMSNorm}(x)), \qquad z = y + \mathrm{FFN}(\mathrm{RMSNorm}(y))

        \hat y = \sigma(\mathrm{DNN}(\mathrm{RMSNorm}(z_{L+1} .. z_{L+M})))

    with context c, target t and history items s. A token sees itself and what is on its left. Queries, keys, values and
    the FFN are shared by the tokens of the history; each of the M others has its own. All tokens of a layer have keys
    and values, and the newest of the history have queries: those that the next layer reads, whose number falls evenly
    from ``max_len`` to ``last_len``.

    Departures: one kind of event, so no separators; positions have embeddings, from the newest item on, since histories
    have no times; the last layer reads ``last_len`` items, where in the paper so many have queries in it, and it reads
    those that had queries in the layer before; the norms have an epsilon of 1; the paper keeps keys and values of a
    user between requests.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_layers : int
        Number of layers.
    num_tokens : int
        M, number of tokens of the other features.
    token_dim : int
        Dim of a token.
    num_heads : int
        Attention heads; must divide ``token_dim``.
    hidden_factor : int
        Hidden dim of the feed-forward networks, as a multiple of the dim of a token.
    norm_epsilon : float
        Epsilon of the norms. Tokens that are much shorter than it stay so, as those of rare ids, whose embeddings stay
        near zero; with a small one, their noise is scaled to the length of all other tokens.
    last_len : int
        Number of newest items in the input of the last layer, if there are several layers; a single layer has all
        items.
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
        num_heads: PositiveInt = 1,
        hidden_factor: PositiveInt = 2,
        norm_epsilon: PositiveFloat = NORM_EPSILON,
        last_len: PositiveInt = 16,
        dnn_hidden_units: HiddenUnits = (64,),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        self.check_heads(num_heads, token_dim, "token_dim")
        self.item_token = nn.Linear(self.item_dim, token_dim)
        self.position = nn.Embedding(self.max_len, token_dim)
        self.feature_tokens = nn.Linear(self.context_dim + self.item_dim, num_tokens * token_dim)
        last = num_layers - 1
        falling = (round(self.max_len + (last_len - self.max_len) * i / max(last, 1)) for i in range(num_layers))
        self.kept = list(accumulate(falling, min))
        self.blocks = nn.ModuleList(
            OneTransBlock(num_tokens, token_dim, num_heads, hidden_factor * token_dim, i == last, norm_epsilon)
            for i in range(num_layers)
        )
        self.norm = nn.RMSNorm(token_dim, norm_epsilon)
        self.dnn = self.make_dnn(num_tokens * token_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        items = newest(e.history, self.max_len).map(self.item_token)
        from_end = items.lengths.index_select(0, items.rows) - items.positions - 1
        history = items.with_values(items.values + self.position(from_end.clamp(max=self.max_len - 1)))
        tokens = self.split(e.context, e.target)
        for kept, block in zip([*self.kept[1:], 0], self.blocks, strict=True):
            history, tokens = block(history, tokens, kept)
        return self.dnn(self.norm(tokens).flatten(1))

    def split(self, context: Tensor, target: Tensor) -> Tensor:
        """Return the tokens ``(B, M, W)`` of context and target."""
        tokens = F.silu(self.feature_tokens(torch.cat([context, target], dim=-1)))
        return tokens.unflatten(1, (-1, self.position.embedding_dim))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and the keys and values of the history in each layer, the newest item first."""
        age = torch.arange(history.shape[0], device=history.device).clamp(max=self.max_len - 1)
        tokens, state = self.item_token(history.flip(0)) + self.position(age), [context]
        for kept, block in zip(self.kept, self.blocks, strict=True):
            tokens, *keys_and_values = block.encode(tokens, kept)  # type: ignore[operator]
            state += keys_and_values
        return tuple(state)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, *parts = state
        tokens = self.split(context.expand(candidates.shape[0], -1), candidates)
        for kept, block, keys, values in zip(self.kept, self.blocks, parts[::2], parts[1::2], strict=True):
            tokens = block.attend(tokens, first(keys, kept), first(values, kept))  # type: ignore[operator]
        return self.dnn(self.norm(tokens).flatten(1))
