"""Layers of LONGER: neighbours in a history merged into one token, and causal attention of the newest tokens.

Shape letters: B rows, N items of all rows, G groups of all rows, K items of a group, D item token dim, W = K D token
dim, L tokens of one row, C tokens with queries, H heads, M candidates of one user, T tokens of a candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged, is_exporting
from fuxictr_mm.layers.history_search import newest
from fuxictr_mm.layers.one_trans import attend_behind, attend_last
from fuxictr_mm.layers.tokens import NORM_EPSILON
from fuxictr_mm.layers.transformer import Buckets, JaggedTransformerLayer


class TokenMerge(nn.Module):
    r"""K neighbouring tokens of a history as one: an inner transformer, then concatenation.

    Chai et al., "LONGER: Scaling Up Long Sequence Modeling in Industrial Recommenders", RecSys 2025,
    https://arxiv.org/abs/2505.04421

    .. math:: g_j = [\mathrm{TransformerLayer}(s_{jK + 1} .. s_{jK + K})]

    Groups are counted from the newest item on. Missing items of the oldest group of a row are zeros.

    Parameters
    ----------
    dim : int
        D, of an item's token.
    group_size : int
        K.
    hidden_dim : int
        Of the feed-forward network of the transformer.
    inner : bool
        Whether there is a transformer; without, tokens are concatenated.
    norm_epsilon : float
        Epsilon of the norms of the transformer; tokens that are much shorter stay so.

    Examples
    --------
    >>> history = Jagged(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 3, 3]))
    >>> groups = TokenMerge(1, 2, 4, inner=False)(history)
    >>> groups.values.tolist(), groups.lengths.tolist()
    ([[0.0, 1.0], [2.0, 3.0]], [2, 0])
    """

    def __init__(
        self, dim: int, group_size: int, hidden_dim: int, inner: bool = True, norm_epsilon: float = NORM_EPSILON
    ) -> None:
        super().__init__()
        self.group_size = group_size
        self.layer = JaggedTransformerLayer(dim, 1, hidden_dim, 0.0, norm_epsilon) if inner else None

    def forward(self, history: Jagged) -> Jagged:
        """Return groups ``(G, W)`` of items ``(.., D)``."""
        size, tokens = self.group_size, history.values
        from_end = history.offsets[1:].index_select(0, history.rows) - torch.arange(
            history.num_values, device=history.offsets.device
        )
        is_first_N = (from_end % size == 0) | (history.positions == 0)
        start_G = is_first_N.nonzero().squeeze(1)
        offsets = torch.cat([start_G, start_G.new_full((1,), history.num_values)])
        if self.layer is not None and (is_exporting() or history.num_values > 0):
            tokens = self.layer(tokens, Buckets.of(offsets, longest=size))
        merged = tokens.new_zeros(start_G.shape[0] * size, tokens.shape[1]).index_copy(
            0, (is_first_N.cumsum(0) - 1) * size + size - 1 - (from_end - 1) % size, tokens
        )
        counts = (history.lengths + size - 1) // size
        return Jagged(merged.view(-1, size * tokens.shape[1]), torch.cat([history.offsets[:1], counts.cumsum(0)]))


class LONGERLayer(nn.Module):
    r"""A causal layer in which the last tokens of each row have queries, and all have keys and values.

    .. math::
        y_i = x_i + W_o \, \mathrm{MHA}(W_q \tilde x_i, W_k \tilde x_{\le i}, W_v \tilde x_{\le i}), \qquad
        z_i = y_i + \mathrm{FFN}(\tilde y_i)

    where a tilde is an RMSNorm.

    Parameters
    ----------
    dim : int
        W, a multiple of ``num_heads``.
    num_heads : int
        H.
    hidden_dim : int
        Of the feed-forward network.
    norm_epsilon : float
        Epsilon of the norms; tokens that are much shorter stay so.

    Examples
    --------
    >>> tokens = Jagged(torch.randn(5, 4), torch.tensor([0, 4, 5]))
    >>> LONGERLayer(4, num_heads=2, hidden_dim=8)(tokens, 3).lengths
    tensor([3, 1])
    """

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, norm_epsilon: float = NORM_EPSILON) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = (nn.RMSNorm(dim, norm_epsilon) for _ in range(2))
        self.qkv, self.output = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))

    def forward(self, tokens: Jagged, count: int) -> Jagged:
        """Return the last ``count`` tokens ``(.., W)`` of each row after the layer."""
        last, projected = newest(tokens, count), tokens.map(self.norm1).map(self.qkv)
        return last.with_values(self._transform(last.values, attend_last(projected, count, self.num_heads)))

    def _transform(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = tokens + self.output(attended)
        return tokens + self.ffn(self.norm2(tokens))

    def encode(self, tokens: Tensor, count: int, real: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first ``count`` tokens of one row, the newest first, after the layer.

        Parameters
        ----------
        tokens : Tensor
            ``(L, W)``.
        count : int
            C.
        real : int
            Number of tokens of the row; those of ``tokens`` beyond it mean nothing, before and after the layer.

        Returns
        -------
        tokens : Tensor
            ``(C, W)``.
        keys, values : Tensor
            ``(L, W)``.
        """
        query, keys, values = self.qkv(self.norm1(tokens)).chunk(3, dim=1)
        query, tokens = (F.pad(x, (0, 0, 0, count))[:count] for x in (query, tokens))
        heads = (x.unflatten(1, (self.num_heads, -1)).transpose(0, 1) for x in (query, keys, values))
        query_HCE, key_HLE, value_HLE = heads
        scores = query_HCE @ key_HLE.transpose(1, 2) * query_HCE.shape[2] ** -0.5
        place_C, place_L = (torch.arange(x.shape[0], device=x.device) for x in (tokens, keys))
        visible = (place_L >= place_C.unsqueeze(1)) & (place_L < real)
        weights = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(dim=2)
        return self._transform(tokens, (weights @ value_HLE).transpose(0, 1).flatten(1)), keys, values

    def attend(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return tokens ``(M, T, W)`` after the layer, at the end of one row by ``encode``."""
        return self._transform(tokens, attend_behind(self.qkv(self.norm1(tokens)), keys, values, self.num_heads))
