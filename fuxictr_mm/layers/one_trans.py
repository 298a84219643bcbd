"""A causal transformer layer over history tokens with shared weights and feature tokens with weights of their own.

Shape letters: B rows, N history tokens of all rows, L tokens of one history, M feature tokens of a row, W token dim,
H heads, E dim of a head, R rows of a bucket, Q queries of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fuxictr_mm.jagged import Jagged, is_exporting
from fuxictr_mm.layers.history_search import newest
from fuxictr_mm.layers.tokens import NORM_EPSILON, PerTokenLinear
from fuxictr_mm.layers.transformer import Buckets, append


class OneTransBlock(nn.Module):
    """A layer: history tokens ``(N, W)`` with shared weights, feature tokens ``(B, M, W)`` each with its own."""

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        last: bool,
        norm_epsilon: float = NORM_EPSILON,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = (nn.RMSNorm(dim, norm_epsilon) for _ in range(2))
        self.qkv, self.token_qkv = nn.Linear(dim, 3 * dim, bias=False), PerTokenLinear(num_tokens, dim, 3 * dim, False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.token_ffn = nn.Sequential(
            PerTokenLinear(num_tokens, dim, hidden_dim), nn.GELU(), PerTokenLinear(num_tokens, hidden_dim, dim)
        )
        # Nothing reads the history after the last layer.
        self.ffn = None if last else nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))

    def forward(self, history: Jagged, tokens: Tensor, kept: int) -> tuple[Jagged, Tensor]:
        """Return the newest ``kept`` items of each history and the tokens after the layer."""
        joined = append(history.with_values(self.qkv(self.norm1(history.values))), self.token_qkv(self.norm1(tokens)))
        asking = newest(joined, kept + tokens.shape[1])
        attended = self.output(attend_last(joined, kept + tokens.shape[1], self.num_heads))
        of_token = asking.positions >= asking.lengths.index_select(0, asking.rows) - tokens.shape[1]
        tokens = self._transform(tokens + attended[of_token].view_as(tokens), self.token_ffn)
        history = newest(history, kept)
        if self.ffn is not None:
            history = history.with_values(self._transform(history.values + attended[~of_token], self.ffn))
        return history, tokens

    def _transform(self, tokens: Tensor, ffn: nn.Module) -> Tensor:
        return tokens + ffn(self.norm2(tokens))

    def encode(self, tokens: Tensor, seen: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens ``(L, W)`` of one history, newest first, after the layer, and its keys and values.

        Of those beyond the ``seen`` newest, which no token sees, the tokens mean nothing.
        """
        qkv = self.qkv(self.norm1(tokens))
        query, key, value = qkv.unflatten(1, (3, self.num_heads, -1)).permute(1, 2, 0, 3)
        age = torch.arange(tokens.shape[0], device=tokens.device)
        visible = (age >= age.unsqueeze(1)) & (age < seen)
        scores = query @ key.transpose(1, 2) * query.shape[2] ** -0.5
        weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=2)
        tokens = tokens + self.output((weights @ value).transpose(0, 1).flatten(1))
        _, keys, values = qkv.chunk(3, dim=1)
        return tokens if self.ffn is None else self._transform(tokens, self.ffn), keys, values

    def attend(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the feature tokens ``(B, M, W)`` after the layer, behind one history of ``(L, W)`` by ``encode``."""
        attended = attend_behind(self.token_qkv(self.norm1(tokens)), keys, values, self.num_heads)
        return self._transform(tokens + self.output(attended), self.token_ffn)


def attend_last(joined: Jagged, count: int, num_heads: int) -> Tensor:
    """Return what the last ``count`` tokens of each row see, themselves and those before, row after row.

    Of queries, keys and values ``(N, 3 W)``, concatenated.
    """
    parts, entries = [], []
    buckets = Buckets.of(joined.offsets)
    for token, mask in zip(buckets.tokens, buckets.masks, strict=True):
        ends, longest = mask.sum(dim=1, keepdim=True), mask.shape[1]
        asking = torch.arange(count if is_exporting() else min(count, longest), device=mask.device)
        place_RQ = (ends - count).clamp(min=0) + asking
        real = (place_RQ < ends).flatten().nonzero().squeeze(1)
        place_RQ = place_RQ.clamp(max=longest - 1)
        qkv = joined.values.index_select(0, token.flatten()).view(*token.shape, 3, num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query = query.gather(2, place_RQ[:, None, :, None].expand(-1, num_heads, -1, query.shape[3]))
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
        # Padding is on the right, so that no token sees it.
        later = torch.arange(longest, device=mask.device) > place_RQ.unsqueeze(2)
        weights = scores.masked_fill(later.unsqueeze(1), -torch.inf).softmax(dim=3)
        parts.append((weights @ value).transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, real))
        entries.append(token.gather(1, place_RQ).flatten().index_select(0, real))
    return torch.cat(parts).index_select(0, torch.cat(entries).argsort())


def attend_behind(own: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """Return what feature tokens ``(B, M, W)`` see behind one history of keys and values ``(L, W)``.

    ``own`` are the queries, keys and values ``(B, M, 3 W)`` of the tokens, concatenated.
    """
    size = keys.shape[1] // num_heads
    qkv = own.unflatten(2, (3, num_heads, size)).permute(2, 3, 0, 1, 4)
    of_history = (x.unflatten(1, (num_heads, size)).transpose(0, 1) for x in (keys, values))
    # Head by head, which bounds the memory: the scores of one are (B, M, L).
    return torch.cat([_attend_head(*head) for head in zip(*qkv, *of_history, strict=True)], dim=2)


def _attend_head(query: Tensor, own_keys: Tensor, own_values: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return what feature tokens ``(B, M, E)`` see: themselves, those before, and one history ``(L, E)``."""
    count, query = query.shape[1], query * query.shape[2] ** -0.5
    # One product for all rows: a product of each would read the keys again.
    of_history = (query.flatten(0, 1) @ keys.t()).unflatten(0, (-1, count))
    later = torch.ones(count, count, dtype=torch.bool, device=query.device).triu(1)
    own = (query @ own_keys.transpose(1, 2)).masked_fill(later, -torch.inf)
    weights = torch.cat([own, of_history], dim=2).softmax(dim=2)
    seen = (weights[..., count:].flatten(0, 1) @ values).unflatten(0, (-1, count))
    return weights[..., :count] @ own_values + seen
