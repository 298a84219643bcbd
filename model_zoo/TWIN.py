"""TWIN: the scores that search a long history are those that attend to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from fuxictr_mm.config import Dropout
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError, nearest
from fuxictr_mm.layers import MultiHeadTargetAttention, mlp_of_shared, search, take
from fuxictr_mm.layers.top_k_attention import TopKAttention
from fuxictr_mm.model import DNNModel


class TWIN(DNNModel):
    r"""Two-stage Interest Network. Chang et al., KDD 2023, https://arxiv.org/abs/2302.02352.

    .. math::

        \alpha_l = \frac{(W_h h_l) \cdot (W_q t)}{\sqrt d} + \sum_j \beta_j \cdot x_{l, j}, \qquad
        S = \mathrm{top}_K \, \alpha_l, \qquad
        o = W_o \sum_{l \in S} \mathrm{softmax}_{l \in S}(\alpha_l) \, W_v s_l

        \hat y = \sigma(\mathrm{DNN}([c, t, \mathrm{MHTA}(t, s_{L-k+1} .. s_L), o]))

    with context c, target t (in the scores its inherent features), and history items s of inherent features h and
    cross features x. Each head has its own scores, and therefore finds its own items. Parameters are named and
    shaped as in LongCTR's code.

    Each distinct item is projected once per batch; searching costs ``attention_dim`` products per item of a history.
    Only items that are found, and the newest k, are trained.

    Departures: the paper caches the projections of items between batches; its cross features are of user and item
    (such as the time of a view), which histories do not have here: ``cross_features`` names fields of the items.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    cross_features : sequence of str
        Fields of the items that are the cross features x; the others are h.
    top_k : int
        K, number of items that the search finds.
    short_len : int
        k, number of newest items.
    attention_dim : int
        Dim of both attentions; d is the dim of a head.
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

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        cross_features: Sequence[str] = (),
        top_k: PositiveInt = 50,
        short_len: NonNegativeInt = 50,
        attention_dim: PositiveInt = 64,
        num_heads: PositiveInt = 1,
        attention_dropout: Dropout = 0.0,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self.check_heads(num_heads, attention_dim, "attention_dim")
        for name in cross_features:
            if name not in self.item_fields or set(self.item_fields) <= set(cross_features):
                raise ConfigError(
                    f"{self.model_id}: cross_features has {name}{nearest(name, self.item_fields)}, expected some, not "
                    f"all, of the fields of the items: {', '.join(self.item_fields)}"
                )
        self.top_k, self.short_len = top_k, short_len
        dims = [self.field_dims[name] for name in self.item_fields]
        crossed = [name in cross_features for name in self.item_fields]
        self.long_attention = TopKAttention(dims, crossed, attention_dim, num_heads, attention_dropout)
        self.short_attention = MultiHeadTargetAttention(self.item_dim, attention_dim, num_heads, attention_dropout)
        self.dnn = self.make_dnn(self.context_dim + 3 * self.item_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        ids = batch.history
        with torch.no_grad():
            target, (history,) = self.embed_histories(batch, ids)
            scores = self.long_attention.project(target, history.distinct)
            found = [take(ids, search(history, score, self.top_k)) for score in scores]
        target, (*longs, short) = self.embed_histories(batch, *found, self.newest_items(batch, self.short_len))
        interests = [self.short_attention(target, short), self.long_attention(target, longs)]
        return self.dnn(torch.cat([self.embed_context(batch), target, *interests], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and history and its keys and values, the newest item first."""
        history = history.flip(0)
        return context, history, *self.long_attention.keys_and_values(history)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, history, keys, values = state
        short = self.short_attention.attend_to_first(candidates, history, self.short_len)
        long = self.long_attention.attend(candidates, keys, values, self.top_k)
        return mlp_of_shared(self.dnn, context, candidates, short, long)
