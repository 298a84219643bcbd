"""A layer of EST: feature tokens read the behaviours, which read those of similar content.

Shape letters: B rows, T feature tokens of a row, N behaviours of all rows, L behaviours of one row, W token dim,
H heads, E dim of a head, K neighbours of a behaviour, M candidates of one user.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged, multi_query_products, weighted_sum
from fuxictr_mm.layers.tokens import ALL, NORM_EPSILON, PerTokenLinear


class ESTLayer(nn.Module):
    r"""One layer of an Efficiently Scalable Transformer.

    Liu et al., "EST: Towards Efficient Scaling Laws in Click-Through Rate Prediction via Unified Modeling", 2026,
    https://arxiv.org/abs/2602.10811

    .. math::

        n'_t = n_t + O_t \, \mathrm{MHA}(Q_t \tilde n_t, K \tilde b, V \tilde b), \qquad
        n''_t = n'_t + \mathrm{FFN}_t(\tilde n'_t), \qquad
        b'_i = b_i + \textstyle\sum_j g_{ij} b_j, \qquad b''_i = b'_i + \mathrm{FFN}(\tilde b'_i)

    where a tilde is an RMSNorm. Feature tokens n have weights of their own, behaviours b share theirs. The matrix g of
    the similarities of the behaviours of a row is given. Keys and values are not computed for each behaviour: K is
    applied to the queries, V to the sums, which is the same since both are linear.

    Parameters
    ----------
    num_tokens : int
        T.
    dim : int
        W, a multiple of ``num_heads``.
    num_heads : int
        H.
    hidden_dim : int
        Of the feed-forward networks.
    norm_epsilon : float
        Epsilon of the norms; tokens that are much shorter stay so.

    Examples
    --------
    >>> layer = ESTLayer(3, 4, num_heads=2, hidden_dim=8)
    >>> behaviours = Jagged(torch.randn(2, 4), torch.tensor([0, 2, 2]))
    >>> near = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[1.0, 0.5], [1.0, 0.5]])
    >>> tokens, behaviours = layer(torch.randn(2, 3, 4), behaviours, *near)
    >>> tokens.shape, behaviours.values.shape
    (torch.Size([2, 3, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self, num_tokens: int, dim: int, num_heads: int, hidden_dim: int, norm_epsilon: float = NORM_EPSILON
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = (nn.RMSNorm(dim, norm_epsilon) for _ in range(2))
        self.query, self.output = (PerTokenLinear(num_tokens, dim, dim, bias=False) for _ in range(2))
        self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        self.token_ffn1 = PerTokenLinear(num_tokens, dim, hidden_dim)
        self.token_ffn2 = PerTokenLinear(num_tokens, hidden_dim, dim)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))

    def forward(self, tokens: Tensor, behaviours: Jagged, near: Tensor, similarities: Tensor) -> tuple[Tensor, Jagged]:
        """Return both after the layer.

        Parameters
        ----------
        tokens : Tensor
            ``(B, T, W)``.
        behaviours : Jagged
            ``(.., W)``.
        near : Tensor
            ``(N, K)`` numbers of the behaviours whose similarity to one is not zero, by ``neighbours``.
        similarities : Tensor
            ``(N, K)``.
        """
        normed = behaviours.map(self.norm1)
        query_BTHE = self.query(self.norm1(tokens)).unflatten(2, (self.num_heads, -1))
        key_HEW, value_HEW = (linear.weight.unflatten(0, (self.num_heads, -1)) for linear in (self.key, self.value))
        query_BTHW = torch.einsum("bthe,hew->bthw", query_BTHE, key_HEW) * query_BTHE.shape[3] ** -0.5
        scores = behaviours.with_values(multi_query_products(query_BTHW.flatten(1, 2), normed))
        pooled_BTHW = weighted_sum(normed, scores.softmax().values).unflatten(1, (-1, self.num_heads))
        attended = torch.einsum("bthw,hew->bthe", pooled_BTHW.to(value_HEW.dtype), value_HEW).flatten(2)
        return self._transform_tokens(tokens, attended, ALL), self._mix(behaviours, near, similarities)

    def _mix(self, behaviours: Jagged, near: Tensor, similarities: Tensor) -> Jagged:
        offsets = torch.arange(near.shape[0] + 1, device=near.device) * near.shape[1]
        values = behaviours.values
        mixed = values + weighted_sum(Jagged(values, offsets, near.flatten()), similarities.flatten())
        return behaviours.with_values(mixed + self.ffn(self.norm2(mixed)))

    def _transform_tokens(self, tokens: Tensor, attended: Tensor, part: slice) -> Tensor:
        tokens = tokens + self.output(attended, part)
        return tokens + self.token_ffn2(F.gelu(self.token_ffn1(self.norm2(tokens), part)), part)

    def encode(self, behaviours: Tensor, similarities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the behaviours ``(L, W)`` of one row after the layer, their keys and values ``(H, L, E)``.

        The similarities are the matrix ``(L, L)``.
        """
        normed = self.norm1(behaviours)
        keys, values = (
            linear(normed).unflatten(1, (self.num_heads, -1)).transpose(0, 1) for linear in (self.key, self.value)
        )
        mixed = behaviours + similarities @ behaviours
        return mixed + self.ffn(self.norm2(mixed)), keys, values

    def attend(self, tokens: Tensor, keys: Tensor, values: Tensor, part: slice) -> Tensor:
        """Return a part of the feature tokens ``(M, T, W)`` after the layer, behind one row by ``encode``."""
        size = keys.shape[2]
        query = self.query(self.norm1(tokens), part).flatten(0, 1).unflatten(1, (self.num_heads, size)).transpose(0, 1)
        # Head by head, which bounds the memory: the scores of one are (M T, L).
        heads = zip(query * size**-0.5, keys, values, strict=True)
        attended = torch.cat([(q @ k.t()).softmax(dim=1) @ v for q, k, v in heads], dim=1)
        return self._transform_tokens(tokens, attended.view_as(tokens), part)
