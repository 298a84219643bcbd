"""Attention of TWIN to the items with its own largest scores.

Shape letters: B rows, U distinct items, D input dim, H heads, K dim of a head, M candidates of a user, L items of its
history.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged, segment_products, weighted_sum
from fuxictr_mm.layers.history_search import InnerProduct, search_user, softmax_of_found


class TopKAttention(nn.Module):
    """Attention of each head to the items with its own largest scores; fields of ``dims`` (sum D) may be crossed."""

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
        """Return queries and keys of each head, of targets ``(B, D)`` and items ``(U, D)``."""
        return [InnerProduct(*pair) for pair in zip(self._keys(items), self._queries(target), strict=True)]

    def _queries(self, target: Tensor) -> list[Tensor]:
        queries = self.W_q(self._fields(target, False)).chunk(self.num_heads, dim=1)
        return [F.pad(q / q.shape[1] ** 0.5, (0, 1), value=1.0) for q in queries]

    def _keys(self, items: Tensor) -> list[Tensor]:
        """Return the keys of each head, the bias their last column."""
        keys, cross = self.W_h(self._fields(items, False)), self._fields(items, True)
        bias = keys.new_zeros(len(items), self.num_heads) if self.W_c is None else self.W_c(cross)
        columns = zip(keys.chunk(self.num_heads, dim=1), bias.split(1, dim=1), strict=True)
        return [torch.cat(pair, dim=1) for pair in columns]

    def keys_and_values(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys ``(H, K + 1, L)`` and values ``(H, L, K)`` of the history ``(L, D)`` of one user."""
        values = self.W_v(history).unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        return torch.stack(self._keys(history)).transpose(1, 2), values

    def attend(self, target: Tensor, keys: Tensor, values: Tensor, top_k: int) -> Tensor:
        """Return search and ``forward`` of many targets ``(M, D)`` and one history, the newest item first."""
        scores = torch.stack(self._queries(target)) @ keys
        _, found = search_user(scores, top_k)
        return self.W_o((softmax_of_found(scores, found) @ values).transpose(0, 1).flatten(1))

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
