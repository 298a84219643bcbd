"""TWIN: the scores that search a long history are those that attend to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import Dropout
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.errors import ConfigError, nearest
from fuxictr_mm.jagged import Jagged, segment_products, weighted_sum
from fuxictr_mm.layers import InnerProduct, MultiHeadTargetAttention, newest, search, take
from fuxictr_mm.model import DNNModel


class TWIN(DNNModel):
    r"""Two-stage Interest Network. Chang et al., KDD 2023, https://arxiv.org/abs/2302.02352.

    .. math::

        \alpha_l = \frac{(W_h h_l) \cdot (W_q t)}{\sqrt d} + \sum_j \beta_j \cdot x_{l, j}, \qquad
        S = \mathrm{top}_K \, \alpha_l, \qquad
        o = W_o \sum_{l \in S} \mathrm{softmax}_{l \in S}(\alpha_l) \, W_v s_l

        \hat y = \sigma(\mathrm{DNN}([c, t, \mathrm{MHTA}(t, s_{L-k+1} .. s_L), o]))

    with context c, target t (in the scores its inherent features), and history items s of inherent features h and
    cross features x. Each head has scores of its own, and therefore finds items of its own. Parameters are named and
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
        Fields of the items that are x; the others are h.
    top_k : int
        K.
    short_len : int
        k.
    attention_dim : int
        Dim of both attentions; d is that of a head.
    num_heads : int
        Heads of both attentions; must divide ``attention_dim``.
    attention_dropout : float
        Dropout on their weights.
    **params
        Those of DNNModel and MultimodalModel.
    """

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
        target, (*longs, short) = self.embed_histories(batch, *found, newest(ids, self.short_len))
        interests = [self.short_attention(target, short), self.long_attention(target, longs)]
        return self.dnn(torch.cat([self.embed_context(batch), target, *interests], dim=-1))


class TopKAttention(nn.Module):
    """Attention of each head to the items of its own largest scores; fields of ``dims`` (D in all) may be crossed."""

    def __init__(self, dims: Sequence[int], crossed: Sequence[bool], dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.dims, self.crossed, self.num_heads = list(dims), list(crossed), num_heads
        cross_dim = sum(d for d, cross in zip(dims, crossed, strict=True) if cross)
        self.W_q = nn.Linear(sum(dims) - cross_dim, dim, bias=False)
        self.W_h = nn.Linear(sum(dims) - cross_dim, dim, bias=False)
        self.W_v = nn.Linear(sum(dims), dim, bias=False)
        self.W_o = nn.Linear(dim, sum(dims), bias=False)
        self.W_c = nn.Linear(cross_dim, num_heads, bias=False) if cross_dim else None
        self.dropout = nn.Dropout(dropout)

    def project(self, target: Tensor, items: Tensor) -> list[InnerProduct]:
        """Return queries and keys of each head, of targets ``(B, D)`` and items ``(U, D)``; the bias is in the keys."""
        inherent, cross = self._fields(items, False), self._fields(items, True)
        queries = self.W_q(self._fields(target, False)).chunk(self.num_heads, dim=1)
        keys = self.W_h(inherent).chunk(self.num_heads, dim=1)
        bias = inherent.new_zeros(len(items), self.num_heads) if self.W_c is None else self.W_c(cross)
        return [
            InnerProduct(torch.cat([k, b.unsqueeze(1)], dim=1), F.pad(q / q.shape[1] ** 0.5, (0, 1), value=1.0))
            for q, k, b in zip(queries, keys, bias.unbind(1), strict=True)
        ]

    def _fields(self, items: Tensor, cross: bool) -> Tensor:
        parts = zip(items.split(self.dims, dim=1), self.crossed, strict=True)
        return torch.cat([part for part, crossed in parts if crossed == cross] or [items[:, :0]], dim=1)

    def forward(self, target: Tensor, found: Sequence[Jagged]) -> Tensor:
        """Attend to the found items of each head, which are index into the same distinct ones; ``(B, D)``."""
        heads = []
        values = self.W_v.weight.chunk(self.num_heads)
        for score, value, items in zip(self.project(target, found[0].distinct), values, found, strict=True):
            scores = segment_products(score.queries, Jagged(score.keys, items.offsets, items.index))
            weights = self.dropout(items.with_values(scores).softmax().values)
            heads.append(weighted_sum(items, weights) @ value.t())
        return self.W_o(torch.cat(heads, dim=1))
