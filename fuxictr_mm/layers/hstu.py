"""Sequential transduction without softmax.

Shape letters: B rows, N tokens of all rows, R rows of a bucket, L longest row of a bucket, or items of one history,
W token dim, H heads, E dim of a head, M candidates of one user.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.jagged import is_exporting
from fuxictr_mm.layers.transformer import Buckets


class HSTULayer(nn.Module):
    r"""One layer of a Hierarchical Sequential Transduction Unit, on tokens without padding.

    Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
    Recommendations", ICML 2024, https://arxiv.org/abs/2402.17152

    .. math::
        [u, v, q, k] = \mathrm{SiLU}(W_1 \mathrm{LN}(x)), \qquad
        a_{ij} = \frac{1}{n} \mathrm{SiLU}(q_i \cdot k_j + b_{i - j}), \; j \le i, \qquad
        y_i = x_i + W_2 \Big(\mathrm{LN}\big(\textstyle\sum_j a_{ij} v_j\big) \odot u_i\Big) + b

    The norms have no parameters; the bias of distances is shared by the heads. n is a constant, the largest length of a
    row, so that weights of a row do not sum to one and long histories count as such.

    Parameters
    ----------
    dim : int
        W, a multiple of ``num_heads``.
    num_heads : int
        H.
    max_len : int
        n; tokens that are further apart share a bias.
    dropout : float
        Before :math:`W_2`.
    norm_epsilon : float
        Epsilon of the norms; tokens that are much shorter stay so.

    Examples
    --------
    >>> layer = HSTULayer(4, num_heads=2, max_len=3)
    >>> layer(torch.randn(3, 4), Buckets.of(torch.tensor([0, 2, 3]))).shape
    torch.Size([3, 4])
    """

    def __init__(
        self, dim: int, num_heads: int, max_len: int, dropout: float = 0.0, norm_epsilon: float = 1e-5
    ) -> None:
        super().__init__()
        self.num_heads, self.max_len, self.norm_epsilon = num_heads, max_len, norm_epsilon
        self.uvqk = nn.Linear(dim, 4 * dim, bias=False)
        self.distance_bias = nn.Parameter(torch.zeros(max_len))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, buckets: Buckets) -> Tensor:
        """Return the tokens ``(N, W)`` after the layer; each sees itself and the older ones of its row."""
        if not is_exporting() and tokens.shape[0] == 0:
            return tokens
        u_NW, vqk_N3W = self._project(tokens)
        return self._output(tokens, u_NW, buckets.apply(vqk_N3W, self._attend))

    def encode(self, history: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens ``(L, W)`` of one row after the layer, and their keys and values ``(H, L, E)``."""
        u_LW, vqk_L3W = self._project(history)
        value_HLE, _, key_HLE = vqk_L3W.unflatten(1, (3, self.num_heads, -1)).permute(1, 2, 0, 3).unbind(0)
        attended_1LW = self._attend(vqk_L3W.unsqueeze(0), history.new_ones(1, history.shape[0], dtype=torch.bool))
        return self._output(history, u_LW, attended_1LW.squeeze(0)), key_HLE, value_HLE

    def attend(self, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return ``forward`` of tokens ``(M, W)``, each the last one after a history by ``encode``, ``(M, W)``."""
        u_MW, vqk_M3W = self._project(tokens)
        value_HME, query_HME, key_HME = vqk_M3W.unflatten(1, (3, self.num_heads, -1)).permute(1, 2, 0, 3).unbind(0)
        distance_L = torch.arange(keys.shape[1], device=keys.device).flip(0) + 1
        bias_L = self.distance_bias[distance_L.clamp(max=self.max_len - 1)]
        weights_HML = F.silu(query_HME @ keys.transpose(1, 2) + bias_L) / self.max_len
        own_HM1 = F.silu((query_HME * key_HME).sum(dim=2, keepdim=True) + self.distance_bias[0]) / self.max_len
        attended_HME = weights_HML @ values + own_HM1 * value_HME
        return self._output(tokens, u_MW, attended_HME.transpose(0, 1).flatten(1))

    def _project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        dim = tokens.shape[1]
        u_NW, vqk_N3W = F.silu(self.uvqk(self._norm(tokens))).tensor_split([dim], dim=1)
        return u_NW, vqk_N3W

    def _output(self, tokens: Tensor, u_NW: Tensor, attended_NW: Tensor) -> Tensor:
        return tokens + self.output(self.dropout(self._norm(attended_NW) * u_NW))

    def _norm(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], eps=self.norm_epsilon)

    def _attend(self, vqk_RL3W: Tensor, mask_RL: Tensor) -> Tensor:
        value, query, key = vqk_RL3W.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        position = torch.arange(mask_RL.shape[1], device=mask_RL.device)
        distance_LL = position.unsqueeze(1) - position
        bias_LL = self.distance_bias[distance_LL.clamp(0, self.max_len - 1)]
        weights_RHLL = F.silu(query @ key.transpose(2, 3) + bias_LL) / self.max_len
        # Padding is on the right, so that no token sees it.
        return (weights_RHLL * (distance_LL >= 0) @ value).transpose(1, 2).flatten(2)
