"""SIM: search a long history by category or by trained embeddings, then attend to what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout, HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged, segment_products, weighted_sum
from fuxictr_mm.layers import (
    InnerProduct,
    MultiHeadTargetAttention,
    SameCategory,
    mlp_of_shared,
    search,
    search_user,
    take,
)
from fuxictr_mm.model import DNNModel


class SIM(DNNModel):
    r"""Search-based Interest Model. Pi et al., CIKM 2020, https://arxiv.org/abs/2006.05639.

    .. math::

        r_l = (W_a t) \cdot (W_b s_l), \qquad S = \mathrm{top}_K \, r_l, \qquad
        \hat y = \sigma(\mathrm{DNN}([c, t, \mathrm{MHTA}(t, s_{L-k+1} .. s_L), \mathrm{MHTA}(t, S)])),

        \hat y_{\mathrm{search}} = \sigma(\mathrm{DNN}_2([c, t, \textstyle\sum_l r_l s_l])), \qquad
        \mathcal L = \mathrm{BCE}(\hat y, y) + \alpha \, \mathrm{BCE}(\hat y_{\mathrm{search}}, y)

    with context c, target t and history items s. ``search_by: soft`` is this; ``hard`` takes for S the newest K items
    of a category of the target, and has no second loss. Parameters are named and shaped as in LongCTR's code.

    Searching costs ``attention_dim`` products per item of a history (soft), or comparisons of categories (hard). Soft
    search embeds all items, for its loss; hard search embeds only what it finds and the newest k.

    Departures: no time intervals in the attention, since histories have no times. Of LongCTR's code: padding has no
    score there 0, so that it is found before items of negative score; the short part is one item shorter there.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    search_by : {"soft", "hard"}
        Search by trained embeddings (``soft``) or by category (``hard``).
    category : str, optional
        For ``hard``, which requires it: column of the items with the category, or several columns, such as tags.
    top_k : int
        K, number of items that the search finds.
    short_len : int
        k, number of newest items.
    search_weight : float
        For ``soft``: alpha, the weight of the search loss.
    attention_dim : int
        Dim of both attentions and of the search.
    num_heads : int
        Heads of both attentions; must divide ``attention_dim``.
    attention_dropout : float
        Dropout on the weights of both attentions.
    dnn_hidden_units : sequence of int
        Dims of the hidden layers of both DNNs.
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
        search_by: Literal["soft", "hard"] = "soft",
        category: str | None = None,
        top_k: PositiveInt = 50,
        short_len: NonNegativeInt = 50,
        search_weight: NonNegativeFloat = 1.0,
        attention_dim: PositiveInt = 64,
        num_heads: PositiveInt = 1,
        attention_dropout: Dropout = 0.0,
        dnn_hidden_units: HiddenUnits = (512, 128, 64),
        **params: Any,
    ) -> None:
        super().__init__(feature_map, dnn_hidden_units=dnn_hidden_units, **params)
        self.check_heads(num_heads, attention_dim, "attention_dim")
        self.top_k, self.short_len, self.search_weight = top_k, short_len, search_weight
        self.soft, self.search_logit = search_by == "soft", None
        dim = self.item_dim
        if self.soft:
            self.W_a = nn.Linear(dim, attention_dim, bias=False)
            self.W_b = nn.Linear(dim, attention_dim, bias=False)
            self.dnn_aux = self.make_dnn(self.context_dim + 2 * dim)
        else:
            category = self.item_column("category", category, "fuxictr-mm embed quantize --method vq", "codes")
            self.per_item_codes = (category,)
        self.short_attention = MultiHeadTargetAttention(dim, attention_dim, num_heads, attention_dropout)
        self.long_attention = MultiHeadTargetAttention(dim, attention_dim, num_heads, attention_dropout)
        self.dnn = self.make_dnn(self.context_dim + 3 * dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        context = self.embed_context(batch)
        target, long, short = self._search_soft(batch, context) if self.soft else self._search_hard(batch)
        interests = [self.short_attention(target, short), self.long_attention(target, long)]
        return self.dnn(torch.cat([context, target, *interests], dim=-1))

    def _search_soft(self, batch: Batch, context: Tensor) -> tuple[Tensor, Jagged, Jagged]:
        target, (history, short) = self.embed_histories(batch, batch.history, self.newest_items(batch, self.short_len))
        queries, keys = self.W_a(target), history.map(self.W_b)
        self.search_logit = None
        if self.training:
            pooled = weighted_sum(history, segment_products(queries, keys))
            self.search_logit = self.dnn_aux(torch.cat([context, target, pooled], dim=-1))
        found = search(history, InnerProduct(keys.distinct, queries), self.top_k)
        return target, take(history, found), short

    def _search_hard(self, batch: Batch) -> tuple[Tensor, Jagged, Jagged]:
        ids, categories = batch.history, self.history_codes(batch)
        same = SameCategory(categories.distinct, categories.distinct.index_select(0, batch.target.long()))
        found = search(categories, None, self.top_k, allowed=same)
        target, (long, short) = self.embed_histories(batch, take(ids, found), self.newest_items(batch, self.short_len))
        return target, long, short

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and history, what is searched, and keys and values, the newest item first."""
        history = history.flip(0)
        searched = self.W_b(history) if self.soft else self.code_table().index_select(0, ids).flip(0)
        return context, history, searched, *self.long_attention.keys_and_values(history)

    def candidate_columns(self, ids: Tensor) -> tuple[Tensor, ...]:
        """Return the categories of a hard search."""
        return () if self.soft else (self.code_table().index_select(0, ids),)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        *categories, context, history, searched, keys, values = state
        if self.soft:
            _, found = search_user(self.W_a(candidates) @ searched.t(), self.top_k)
        else:
            same = SameCategory(searched, *categories).of_all()
            found = same & (same.cumsum(dim=1) <= self.top_k)
        short = self.short_attention.attend_to_first(candidates, history, self.short_len)
        long = self.long_attention.attend(candidates, keys, values, found)
        return mlp_of_shared(self.dnn, context, candidates, short, long)

    def add_loss(self, return_dict: Mapping[str, Tensor], y_true: Tensor) -> Tensor:
        """Return the loss of the last scored batch, in training of a soft search with the loss of the search."""
        loss = super().add_loss(return_dict, y_true)
        logit, self.search_logit = self.search_logit, None
        if logit is None:
            return loss
        logit = logit.float()
        of_search = super().add_loss({"logit": logit, "y_pred": self.output_activation(logit)}, y_true)
        return loss + self.search_weight * of_search
