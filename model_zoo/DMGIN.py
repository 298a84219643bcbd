"""DMGIN: a history as groups of items of like content."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from fuxictr_mm.config import Dropout
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged, weighted_sum
from fuxictr_mm.layers import Buckets, HSTULayer, MultiHeadTargetAttention, mlp_of_shared, newest, take
from fuxictr_mm.model import DNNModel


class DMGIN(DNNModel):
    r"""Deep Multimodal Group Interest Network. Wei et al., 2025, https://arxiv.org/abs/2508.21801.

    .. math::

        g_j = W [\textstyle\sum_{l \in G_j} \mathrm{softmax}_{l \in G_j}(w \cdot \tanh(V s_l)) \, s_l, \; z_j], \qquad
        h_1 .. h_k = \mathrm{HSTULayers}(g_{J-k+1} .. g_J), \qquad
        \hat y = \sigma(\mathrm{DNN}([c, t, \mathrm{MHTA}(W' t, h)]))

    with context c, target t and history items s. The items of a row with the same code are a group G, such as those of
    a cluster of k-means over content. Statistics z of a group are the logarithms of its size, of one plus its share of
    the history, and of how long ago its newest and its oldest items were, in items. Groups are ordered by their newest
    item; the newest k are taken. Nothing of the groups depends on the target.

    Departures: only clicks, and no times: no durations, spendings or kinds of behaviour among the statistics;
    attention pooling in place of a transformer inside of each group.

    Parameters
    ----------
    feature_map : FeatureMap
        Features and items.
    groups : str
        Column of the items with one code each, 0 for none; all items without a code form one group.
    num_groups : int
        k, number of newest groups.
    num_layers : int
        Number of HSTU layers.
    group_dim : int
        Dim of a group.
    num_heads : int
        Heads of the layers and of the attention; must divide ``group_dim``.
    attention_dropout : float
        Dropout in the layers.
    **params
        Those of DNNModel and MultimodalModel.
    """

    attends_to_history = False  # but to groups

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        groups: str | None = None,
        num_groups: PositiveInt = 50,
        num_layers: NonNegativeInt = 1,
        group_dim: PositiveInt = 64,
        num_heads: PositiveInt = 1,
        attention_dropout: Dropout = 0.0,
        **params: Any,
    ) -> None:
        super().__init__(feature_map, **params)
        self.check_heads(num_heads, group_dim, "group_dim")
        self.per_item_codes = (self.item_column("groups", groups, "fuxictr-mm embed quantize --method vq", "code"),)
        self.num_groups = num_groups
        self.pooling = nn.Sequential(
            nn.Linear(self.item_dim, group_dim), nn.Tanh(), nn.Linear(group_dim, 1, bias=False)
        )
        self.group = nn.Linear(self.item_dim + 4, group_dim)
        self.layers = nn.ModuleList(
            HSTULayer(group_dim, num_heads, num_groups, attention_dropout) for _ in range(num_layers)
        )
        self.target = nn.Linear(self.item_dim, group_dim)
        self.attention = MultiHeadTargetAttention(group_dim, group_dim, num_heads)
        self.dnn = self.make_dnn(self.context_dim + self.item_dim + group_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        codes = self.code_table()[:, 0].index_select(0, batch.history.values.long())
        interest = self.attention(self.target(e.target), self._encode(e.history, codes))
        return self.dnn(torch.cat([e.context, e.target, interest], dim=-1))

    def user_state(self, context: Tensor, history: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        """Return context, and keys and values of the groups."""
        offsets = torch.cat([ids.new_zeros(1), ids.new_full((1,), ids.shape[0])])
        codes = self.code_table()[:, 0].index_select(0, ids)
        groups = self._encode(Jagged(history, offsets), codes)
        return context, *self.attention.keys_and_values(groups.values)

    def score_candidates(self, candidates: Tensor, *state: Tensor) -> Tensor:
        """Return the logits ``(M, 1)``."""
        context, keys, values = state
        interest = self.attention.attend(self.target(candidates), keys, values)
        return mlp_of_shared(self.dnn, context, candidates, interest)

    def _encode(self, history: Jagged, codes: Tensor) -> Jagged:
        """Return the newest groups of each row after the layers, by the codes ``(N,)`` of the items."""
        members, offsets, counts = group_by(codes, history)
        items = take(history, members)
        weights = items.map(lambda distinct: self.pooling(distinct).squeeze(1)).softmax().values
        size, length, newer, older = counts.to(weights.dtype).unbind(1)
        statistics = torch.stack([size.log(), (size / length).log1p(), newer.log(), older.log()], dim=1)
        groups = self.group(torch.cat([weighted_sum(items, weights), statistics], dim=1))
        groups = newest(Jagged(groups, offsets), self.num_groups)
        encoded, buckets = groups.values, Buckets.of(groups.offsets)
        for layer in self.layers:
            encoded = layer(encoded, buckets)
        return groups.with_values(encoded)


def group_by(codes: Tensor, history: Jagged) -> tuple[Jagged, Tensor, Tensor]:
    """Group the entries of each row by their codes ``(N,)``; groups are ordered by row and by newest member.

    Returns
    -------
    members : Jagged
        Entry numbers ``(N,)``, a row per group.
    offsets : Tensor
        ``(B + 1,)`` the first group of each row.
    counts : Tensor
        ``(G, 4)`` entries of the group, of the row, and of the row from its newest and from its oldest member on.
    """
    by_code_N = _argsort(codes.long())
    entry_N = by_code_N.index_select(0, _argsort(history.rows.index_select(0, by_code_N)))  # group after group
    is_first_N = torch.zeros_like(entry_N, dtype=torch.bool)
    for keys in (history.rows, codes.long()):
        keys = keys.index_select(0, entry_N)
        is_first_N |= keys != torch.cat([keys.new_full((1,), -1), keys])[:-1]
    start_G = is_first_N.nonzero().squeeze(1)
    size_G = torch.cat([start_G, start_G.new_full((1,), entry_N.shape[0])]).diff()
    first_G, last_G = entry_N.index_select(0, start_G), entry_N.index_select(0, start_G + size_G - 1)
    order_G = last_G.argsort()  # entries are numbered row by row
    rank_N = order_G.argsort().index_select(0, is_first_N.cumsum(0) - 1)
    size_G, first_G, last_G = (x.index_select(0, order_G) for x in (size_G, first_G, last_G))
    row_G = history.rows.index_select(0, last_G)
    end_G, length_G = (x.index_select(0, row_G) for x in (history.offsets[1:], history.lengths))
    per_row = torch.zeros_like(history.lengths).index_add(0, row_G, torch.ones_like(row_G))
    members, offsets = (torch.cat([n.new_zeros(1), n.cumsum(0)]) for n in (size_G, per_row))
    counts = torch.stack([size_G, length_G, end_G - last_G, end_G - first_G], dim=1)
    return Jagged(entry_N.index_select(0, _argsort(rank_N)), members), offsets, counts


def _argsort(keys: Tensor) -> Tensor:
    """Return what sorts integers ``(N,)``, equal ones in their order; ONNX has no stable sort."""
    count = keys.shape[0]
    return (keys * count + torch.arange(count, device=keys.device)).argsort()
