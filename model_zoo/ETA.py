"""ETA: search a long history by the hashes of its embeddings, then attend to what was found."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from fuxictr_mm.config import Dropout
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.layers import (
    InnerProduct,
    MultiHeadTargetAttention,
    mlp_of_shared,
    search,
    search_user,
    signs,
    take,
)
from fuxictr_mm.model import DNNModel


class ETA(DNNModel):
    r"""Efficient Target Attention. Chen et al., 2021, https://arxiv.org/abs/2108.04468.

    .. math::

        S = \mathrm{top}_K \; -\mathrm{Hamming}(\mathrm{sign}(t R), \mathrm{sign}(s_l R)), \qquad
        \hat y = \sigma(\mathrm{DNN}([c, t, \mathrm{MHTA}(t, s_{L-k+1} .. s_L), \mathrm{MHTA}(t, S)]))

    with context c, target t, history items s, and random projections R that are sampled once and saved. Parameters are
    named and shaped as in LongCTR's code.

    Searching hashes each distinct item once per batch and costs ``hash_bits`` products of signs per item of a history;
    only items that are found, and the newest k, are trained.

    Departures: where distances are equal, the newer item is found; LongCTR's code can also sample R for every batch.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    hash_bits : int
        Number of bits of a hash, the columns of R.
    top_k : int
        K, number of items that the search finds.
    short_len : int
        k, number of newest items.
    attention_dim : int
        Dim of both attentions.
    num_heads : int
        Heads of both attentions; must divide ``attention_dim``.
    attention_dropout : float
        Dropout on the weights of both attentions.
    **params
        Those of DNNModel and MultimodalModel.
    """

    #: Its attention weights the newest items and those that are found.
    attends_to_history = False
    reads_short_history = True
    random_rotations: Tensor

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        hash_bits: PositiveInt = 32,
        top_k: PositiveInt = 50,
        short_len: NonNegativeInt = 50,
        attention_dim: PositiveInt = 64,
        num_heads: PositiveInt = 1,
        attention_dropout: Dropout = 0.0,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self.check_heads(num_heads, attention_dim, "attention_dim")
        self.top_k, self.short_len = top_k, short_len
        dim = self.item_dim
        self.register_buffer("random_rotations", torch.randn(1, dim, hash_bits))  # LongCTR's shape
        self.short_attention = MultiHeadTargetAttention(dim, attention_dim, num_heads, attention_dropout)
        self.long_attention = MultiHeadTargetAttention(dim, attention_dim, num_heads, attention_dropout)
        self.dnn = self.make_dnn(self.context_dim + 3 * dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        ids = batch.history
        with torch.no_grad():
            target, (history,) = self.embed_histories(batch, ids)
            keys, queries = (signs(items @ self.random_rotations[0]) for items in (history.distinct, target))
            found = search(history, InnerProduct(keys, queries), self.top_k)
        target, (long, short) = self.embed_histories(batch, take(ids, found), self.newest_items(batch, self.short_len))
        interests = [self.short_attention(target, short), self.long_attention(target, long)]
        return self.dnn(torch.cat([self.embed_context(batch), target, *interests], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and history, hashes and keys and values, the newest item first."""
        history = history.flip(0)
        return (
            context,
            history,
            signs(history @ self.random_rotations[0]),
            *self.long_attention.keys_and_values(history),
        )

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, history, hashes, keys, values = state
        queries = signs(candidates @ self.random_rotations[0]).to(candidates.dtype)
        _, found = search_user(queries @ hashes.to(queries.dtype).t(), self.top_k)
        short = self.short_attention.attend_to_first(candidates, history, self.short_len)
        long = self.long_attention.attend(candidates, keys, values, found)
        return mlp_of_shared(self.dnn, context, candidates, short, long)
