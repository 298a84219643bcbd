"""Attention by collisions of hashes, for long histories.

Shape letters: B rows, N history items of a batch, U distinct items, D dim, G groups of hashes, T hashes of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged, weighted_sum


class HashAttention(nn.Module):
    r"""Sum of the history items whose hash is the target's, averaged over several hashes.

    Cao et al., "Sampling Is All You Need on Modeling Long-Term User Behaviors for CTR Prediction", CIKM 2022,
    https://arxiv.org/abs/2205.10249; the hash is SimHash, Charikar, STOC 2002,
    https://doi.org/10.1145/509907.509965

    .. math::
        o_b = \frac{1}{G} \sum_{g=1}^{G} \frac{z_{b, g}}{\|z_{b, g}\|}, \qquad
        z_{b, g} = \sum_{n \in b} [\mathrm{sign}(R_g s_n) = \mathrm{sign}(R_g t_b)] \, s_n

    With T rows in each :math:`R_g` an item counts with probability :math:`(1 - \angle(s_n, t_b) / \pi)^T`: an attention
    of G integer comparisons per item. An item is hashed once per batch. The hyperplanes :math:`R_g` are
    sampled once and saved in the state dict; nothing is learned.

    Parameters
    ----------
    dim : int
        D.
    num_groups : int
        G.
    hash_width : int
        T, at most 63; the larger, the more similar an item must be.

    Examples
    --------
    >>> history = Jagged(torch.tensor([[3.0, 4.0], [-3.0, -4.0]]), torch.tensor([0, 2, 2]))
    >>> attention = HashAttention(2, num_groups=5, hash_width=2)
    >>> interest = attention(torch.tensor([[6.0, 8.0], [1.0, 0.0]]), history)  # the first item and the target agree
    >>> [[round(x, 4) for x in row] for row in interest.tolist()]
    [[0.6, 0.8], [0.0, 0.0]]
    """

    hyperplanes: Tensor
    powers: Tensor

    def __init__(self, dim: int, num_groups: int = 16, hash_width: int = 3) -> None:
        super().__init__()
        self.register_buffer("hyperplanes", torch.randn(dim, num_groups * hash_width))
        self.register_buffer("powers", 2 ** torch.arange(hash_width), persistent=False)

    @torch.no_grad()
    def signatures(self, items: Tensor) -> Tensor:
        """Return the hashes of items ``(.., D)`` as integers, ``(.., G)`` int64."""
        sides = (items @ self.hyperplanes) > 0
        return (sides.unflatten(-1, (-1, self.powers.numel())) * self.powers).sum(dim=-1)

    def forward(self, target: Tensor, history: Jagged) -> Tensor:
        """Sum the entries ``(.., D)`` that collide with targets ``(B, D)``: ``(B, D)``, zero where none does."""
        of_target_NG = self.signatures(target).index_select(0, history.rows)
        collides_NG = history.map(self.signatures).values == of_target_NG
        pooled_BGD = weighted_sum(history, collides_NG.to(history.distinct.dtype))
        return F.normalize(pooled_BGD, dim=-1).mean(dim=1)

    def attend(self, target: Tensor, history: Tensor, signatures: Tensor) -> Tensor:
        """Return ``forward`` of many targets ``(M, D)`` and one history ``(L, D)`` with its hashes, ``(M, D)``."""
        collides_MGL = self.signatures(target).unsqueeze(2) == signatures.t()
        return F.normalize(collides_MGL.to(history.dtype) @ history, dim=-1).mean(dim=1)
