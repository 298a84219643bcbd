"""OneTrans: one transformer over the history and over tokens of all other features."""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.config import HiddenUnits
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.jagged import Jagged, is_exporting
from fuxictr_mm.layers import Buckets, PerTokenLinear, append, newest
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
    those that had queries in the layer before; the paper keeps keys and values of a user between requests.

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
        self.kept = [round(self.max_len + (last_len - self.max_len) * i / max(last, 1)) for i in range(num_layers)]
        self.blocks = nn.ModuleList(
            OneTransBlock(num_tokens, token_dim, num_heads, hidden_factor * token_dim, i == last)
            for i in range(num_layers)
        )
        self.norm = nn.RMSNorm(token_dim)
        self.dnn = self.make_dnn(num_tokens * token_dim)
        self.build()

    def logits(self, batch: Batch) -> Tensor:
        """Return the logit of each row, ``(B, 1)``."""
        e = self.embed(batch)
        items = newest(e.history, self.max_len).map(self.item_token)
        from_end = items.lengths.index_select(0, items.rows) - items.positions - 1
        history = items.with_values(items.values + self.position(from_end.clamp(max=self.max_len - 1)))
        tokens = F.silu(self.feature_tokens(torch.cat([e.context, e.target], dim=-1)))
        tokens = tokens.unflatten(1, (-1, self.position.embedding_dim))
        for kept, block in zip([*self.kept[1:], 0], self.blocks, strict=True):
            history, tokens = block(history, tokens, kept)
        return self.dnn(self.norm(tokens).flatten(1))


class OneTransBlock(nn.Module):
    """A layer: history tokens ``(N, W)`` with shared weights, feature tokens ``(B, M, W)`` each with its own."""

    def __init__(self, num_tokens: int, dim: int, num_heads: int, hidden_dim: int, last: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
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
        attended = self.output(self._attend(joined, kept + tokens.shape[1]))
        of_token = asking.positions >= asking.lengths.index_select(0, asking.rows) - tokens.shape[1]
        tokens = tokens + attended[of_token].view_as(tokens)
        tokens = tokens + self.token_ffn(self.norm2(tokens))
        history = newest(history, kept)
        if self.ffn is not None:
            values = history.values + attended[~of_token]
            history = history.with_values(values + self.ffn(self.norm2(values)))
        return history, tokens

    def _attend(self, joined: Jagged, count: int) -> Tensor:
        """Return what the last ``count`` tokens of each row see, themselves and those before, row after row."""
        parts, entries = [], []
        buckets = Buckets.of(joined.offsets)
        for token, mask in zip(buckets.tokens, buckets.masks, strict=True):
            ends, longest = mask.sum(dim=1, keepdim=True), mask.shape[1]
            asking = torch.arange(count if is_exporting() else min(count, longest), device=mask.device)
            place_RQ = (ends - count).clamp(min=0) + asking
            real = (place_RQ < ends).flatten().nonzero().squeeze(1)
            place_RQ = place_RQ.clamp(max=longest - 1)
            qkv = joined.values.index_select(0, token.flatten()).view(*token.shape, 3, self.num_heads, -1)
            query, key, value = qkv.permute(2, 0, 3, 1, 4)
            query = query.gather(2, place_RQ[:, None, :, None].expand(-1, self.num_heads, -1, query.shape[3]))
            scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
            # Padding is on the right, so that no token sees it.
            later = torch.arange(longest, device=mask.device) > place_RQ.unsqueeze(2)
            weights = scores.masked_fill(later.unsqueeze(1), -torch.inf).softmax(dim=3)
            parts.append((weights @ value).transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, real))
            entries.append(token.gather(1, place_RQ).flatten().index_select(0, real))
        return torch.cat(parts).index_select(0, torch.cat(entries).argsort())
