"""SDIM: attention to long histories by hash collisions."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from fuxictr.features import FeatureMap
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fuxictr_mm.config import Dropout
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.layers import HashAttention, MultiHeadTargetAttention, mlp_of_shared, newest
from fuxictr_mm.model import DNNModel


class SDIM(DNNModel):
    r"""Sampling-based Deep Interest Modeling. Cao et al., CIKM 2022, https://arxiv.org/abs/2205.10249.

    .. math::

        \hat y = \sigma(\mathrm{DNN}([c, t, \mathrm{HashAttention}(t, s_1 .. s_L), \mathrm{MHTA}(t, s_{L-k+1} .. s_L)]))

    with context c, target t and history items s: all of them by collisions of hashes, the newest k by attention with
    learned projections. Within either part the order does not matter.

    Departures: the paper serves the long part from a server that keeps a bucket per hash; here items are hashed once
    per batch. The short part is multi-head target attention, as in FuxiCTR. Sums of colliding items are normalized,
    which FuxiCTR does only with ``l2_norm``.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    num_hashes : int
        Number of hash functions; a multiple of ``hash_width``.
    hash_width : int
        Number of hash functions that must agree for a collision.
    short_len : int
        k, number of newest items.
    num_heads : int
        Heads of the attention to the newest items; must divide ``attention_dim``.
    attention_dim : int, optional
        Dim of the attention to the newest items; by default the dim of an item.
    attention_dropout : float
        Dropout on the weights of the attention to the newest items.
    **params
        Those of DNNModel and MultimodalModel.
    """

    #: Its attention weights the newest items; the others are found by hashes.
    attends_to_history = False

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_hashes: PositiveInt = 48,
        hash_width: Annotated[int, Field(ge=1, le=63)] = 3,
        short_len: NonNegativeInt = 16,
        num_heads: PositiveInt = 1,
        attention_dim: PositiveInt | None = None,
        attention_dropout: Dropout = 0.0,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        dim = attention_dim or self.item_dim
        if num_hashes % hash_width:
            raise ConfigError(
                f"{self.model_id}: num_hashes is {num_hashes}, expected a multiple of hash_width {hash_width}"
            )
        self.check_heads(num_heads, dim, "attention_dim")
        self.short_len = short_len
        self.long_attention = HashAttention(self.item_dim, num_hashes // hash_width, hash_width)
        self.short_attention = MultiHeadTargetAttention(self.item_dim, dim, num_heads, attention_dropout)
        self.dnn = self.make_dnn(self.context_dim + 3 * self.item_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        long = self.long_attention(e.target, e.history)
        short = self.short_attention(e.target, newest(e.history, self.short_len))
        return self.dnn(torch.cat([e.context, e.target, long, short], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, history and its hashes."""
        return context, history, self.long_attention.signatures(history)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, history, signatures = state
        long = self.long_attention.attend(candidates, history, signatures)
        newest_items = history[torch.arange(history.shape[0]) >= history.shape[0] - self.short_len]
        short = self.short_attention.attend(candidates, *self.short_attention.keys_and_values(newest_items))
        return mlp_of_shared(self.dnn, context, candidates, long, short)
