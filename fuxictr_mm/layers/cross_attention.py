"""Layers of attention whose query is the target item.

Shape letters: B rows, N history items of a batch, U distinct items, D dim, H heads.
"""

from __future__ import annotations

from torch import Tensor, nn

from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers.target_attention import MultiHeadTargetAttention
from fuxictr_mm.layers.tokens import NORM_EPSILON


class CrossAttentionLayer(nn.Module):
    r"""One layer: the query attends to the history, then a feed-forward network, both with a residual.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019, https://arxiv.org/abs/1910.07467, for the
    norm; the order of the parts is that of a solution of the WWW 2025 MM-CTR challenge,
    https://github.com/Gavin113/WWW2025_MMCTR

    .. math::
        a_b = \mathrm{RMSNorm}(q_b + \mathrm{MHA}(q_b, \mathrm{RMSNorm}(s_1), .., \mathrm{RMSNorm}(s_L))), \qquad
        y_b = a_b + W_2 \, \mathrm{ReLU}(W_1 a_b + b_1) + b_2

    with one RMSNorm for both. The norm and the keys are computed once per distinct item.

    Parameters
    ----------
    dim : int
        D, of the query, the history and the output.
    num_heads : int
        H, a divisor of D.
    hidden_dim : int
        Hidden dim of the feed-forward network.
    dropout_rate : float
        On attention weights, both outputs and the hidden layer.
    norm_epsilon : float
        Epsilon of the norm; vectors that are much shorter stay so.

    Examples
    --------
    >>> import torch
    >>> history = Jagged(torch.randn(3, 4), torch.tensor([0, 3, 3]))
    >>> CrossAttentionLayer(4, 2, hidden_dim=8)(torch.randn(2, 4), history).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        *,
        hidden_dim: int = 64,
        dropout_rate: float = 0.0,
        norm_epsilon: float = NORM_EPSILON,
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, norm_epsilon)
        self.attention = MultiHeadTargetAttention(dim, dim, num_heads, dropout_rate)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout_rate), nn.Linear(hidden_dim, dim)
        )
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, query: Tensor, history: Jagged) -> Tensor:
        """Attend with ``(B, D)`` queries to ``(.., D)`` entries: ``(B, D)``; an empty history adds nothing to it."""
        return self._output(query, self.attention(query, history.map(self.norm)))

    def keys_and_values(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the history ``(L, D)`` of one user."""
        return self.attention.keys_and_values(self.norm(history))

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return ``forward`` of many queries ``(M, D)`` and one history by ``keys_and_values``, ``(M, D)``."""
        return self._output(query, self.attention.attend(query, keys, values))

    def _output(self, query: Tensor, interest: Tensor) -> Tensor:
        attended = self.norm(query + self.dropout(interest))
        return attended + self.dropout(self.feed_forward(attended))
