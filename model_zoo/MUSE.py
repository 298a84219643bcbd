"""MUSE: search a long history by content, and let attention know how similar the contents are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged, mean_pooling, segment_products, weighted_sum
from fuxictr_mm.layers import (
    InnerProduct,
    SemanticAttention,
    SimTier,
    first,
    mlp_of_shared,
    newest,
    search,
    search_user,
    take,
)
from fuxictr_mm.model import DNNModel


class MUSE(DNNModel):
    r"""Multimodal Search-based framework. Wu et al., 2025, https://arxiv.org/abs/2512.07216.

    .. math::

        r_l = \cos(x_t, x_l), \qquad S = \mathrm{top}_K \, r_l, \qquad N = s_{L-k+1} .. s_L

        \hat y = \sigma(\mathrm{DNN}([c, t, \mathrm{TA}(t, N), \mathrm{SATA}(t, S, r), \bar N, \bar S,
        \mathrm{SimTier}(r_N), \mathrm{SimTier}(r_S)]))

    with context c, target t, history items s and their frozen content x, which need not be a field. TA is target
    attention, SATA fuses its scores with r, SimTier is a histogram of r.

    Contents are normalised once per distinct item; searching costs their dim in products per item of a history. Only
    the items that are found, and the newest k, are embedded.

    Departures: one logit, where the code takes a softmax of two; means, attention and tiers count real items only, not
    padding, and the code adds 1e-7 to every attention weight. ``form: code`` has the code's attentions: biases; TA
    with one projection for keys and values; for SATA see ``SemanticAttention``.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    content : str
        Column of the items with the content x, of floats or 8-bit integers.
    form : {"paper", "code"}
        Version of the attentions: the paper's or the published code's.
    top_k : int
        K, number of items that the search finds.
    short_len : int
        k, number of newest items.
    num_tiers : int
        Intervals of the cosine between -1 and 1 in SimTier.
    num_heads : int
        Heads of SATA; must divide the dim of an item.
    dnn_hidden_units : sequence of int
        Dims of the DNN's hidden layers.
    dnn_activations : str
        Their activation.
    **params
        Those of DNNModel and MultimodalModel.
    """

    #: Its attention weights the newest items and those that are found.
    attends_to_history = False
    reads_short_history = True

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        content: str | None = None,
        form: Literal["paper", "code"] = "paper",
        top_k: PositiveInt = 50,
        short_len: NonNegativeInt = 50,
        num_tiers: PositiveInt = 20,
        num_heads: PositiveInt = 1,
        dnn_hidden_units: HiddenUnits = (256, 128, 64),
        dnn_activations: str = "Dice",
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, dnn_activations=dnn_activations, **params)
        dim = self.item_dim
        self.check_heads(num_heads, dim, "the item dim")
        self.content = self.item_column("content", content, "fuxictr-mm embed reduce", "embedding")
        self.per_item_contents = (self.content,)
        self.top_k, self.short_len = top_k, short_len
        self.short_attention = TargetAttention(dim, form == "code")
        self.long_attention = SemanticAttention(dim, dim, num_heads, form)
        self.short_tiers, self.long_tiers = SimTier(num_tiers), SimTier(num_tiers)
        self.dnn = self.make_dnn(self.context_dim + 5 * dim + 2 * (num_tiers + 1))
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        ids = batch.history
        queries, contents = self.contents(batch, self.content)
        found = search(contents, InnerProduct(contents.distinct, queries), self.top_k)
        new_ids = self.newest_items(batch, self.short_len)
        if self.short_history is None:
            recent = newest(contents, self.short_len)
        else:
            recent = self.contents(replace(batch, history=new_ids), self.content)[1]
        near, new = (part.with_values(segment_products(queries, part)) for part in (take(contents, found), recent))
        target, (long, short) = self.embed_histories(batch, take(ids, found), new_ids)
        interests = [self.short_attention(target, short), self.long_attention(target, long, near.values)]
        means, tiers = [mean_pooling(short), mean_pooling(long)], [self.short_tiers(new), self.long_tiers(near)]
        return self.dnn(torch.cat([self.embed_context(batch), target, *interests, *means, *tiers], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and history, contents and keys and values, the newest item first."""
        history, contents = history.flip(0), self.content_of(self.content, ids).flip(0)
        return context, history, contents, *self.long_attention.keys_and_values(history)

    def candidate_columns(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Return the contents."""
        return (self.content_of(self.content, ids),)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        queries, context, history, contents, keys, values = state
        cosines, short = queries @ contents.t(), first(history, self.short_len)
        near, found = search_user(cosines, self.top_k)
        new = queries @ first(contents, self.short_len).t()
        weights = [torch.ones_like(new), found.to(candidates.dtype)]
        means = [
            one @ items / one.sum(dim=1, keepdim=True).clamp(min=1)
            for one, items in zip(weights, (short, history), strict=True)
        ]
        interests = [
            self.short_attention.attend(candidates, short),
            self.long_attention.attend(candidates, keys, values, cosines, found),
        ]
        tiers = [self.short_tiers.of_user(new), self.long_tiers.of_user(near)]
        return mlp_of_shared(self.dnn, context, candidates, *interests, *means, *tiers)


class TargetAttention(nn.Module):
    """Attention of a target ``(B, D)`` to a history; the code has one projection for keys and values, and no root."""

    def __init__(self, dim: int, code: bool) -> None:
        super().__init__()
        self.scale = 1.0 if code else dim**-0.5
        self.W_q = nn.Linear(dim, dim, bias=code)
        self.W_k = nn.Linear(dim, dim, bias=code)
        self.W_v = None if code else nn.Linear(dim, dim, bias=False)

    def forward(self, target: Tensor, history: Jagged) -> Tensor:
        """Return the interest ``(B, D)``."""
        key = history.map(self.W_k)
        weights = history.with_values(self.scale * segment_products(self.W_q(target), key)).softmax().values
        return weighted_sum(key if self.W_v is None else history.map(self.W_v), weights)

    def attend(self, target: Tensor, history: Tensor) -> Tensor:
        """Return ``forward`` of many targets ``(M, D)`` and one history ``(L, D)``."""
        key = self.W_k(history)
        weights = (self.scale * self.W_q(target) @ key.t()).softmax(dim=1)
        return weights @ (key if self.W_v is None else self.W_v(history))
