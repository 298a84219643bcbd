"""Layers on a fixed number of tokens, each with its own weights.

Shape letters: B rows, T tokens, I and O dims of a token before and after, W dim of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Every token.
ALL = slice(None)


class PerTokenLinear(nn.Module):
    r"""A separate linear layer for each token, :math:`y_t = W_t x_t + b_t`, in one product.

    Parameters
    ----------
    num_tokens : int
        T.
    in_dim, out_dim : int
        I and O.
    bias : bool
        Whether there are biases.

    Examples
    --------
    >>> PerTokenLinear(3, 4, 5)(torch.randn(2, 3, 4)).shape
    torch.Size([2, 3, 5])
    """

    def __init__(self, num_tokens: int, in_dim: int, out_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, in_dim, out_dim))
        self.bias = nn.Parameter(torch.zeros(num_tokens, out_dim)) if bias else None
        nn.init.normal_(self.weight, std=1 / math.sqrt(in_dim))

    def forward(self, tokens: Tensor, part: slice = ALL) -> Tensor:
        """Return ``(B, T, O)`` of tokens ``(B, T, I)``, or of those of a part of the T."""
        output = torch.einsum("bti,tio->bto", tokens, self.weight[part])
        return output if self.bias is None else output + self.bias[part]


class SliceTokens(nn.Module):
    r"""Tokens from slices of equal length of an input, each projected by its own linear.

    Parameters
    ----------
    input_dim : int
        Of the input, which is filled up with zeros to a multiple of T.
    num_tokens : int
        T.
    dim : int
        W.

    Examples
    --------
    >>> SliceTokens(10, num_tokens=4, dim=8)(torch.randn(2, 10)).shape
    torch.Size([2, 4, 8])
    """

    def __init__(self, input_dim: int, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.num_tokens, self.missing = num_tokens, -input_dim % num_tokens
        self.linear = PerTokenLinear(num_tokens, (input_dim + self.missing) // num_tokens, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return tokens ``(B, T, W)`` of inputs ``(B, input_dim)``."""
        return self.linear(F.pad(inputs, (0, self.missing)).unflatten(1, (self.num_tokens, -1)))


class TokenMixing(nn.Module):
    r"""Mix tokens without parameters, then transform each by its own MLP.

    Zhu et al., "RankMixer: Scaling Up Ranking Models in Industrial Recommenders", 2025,
    https://arxiv.org/abs/2507.15551

    .. math::
        s_h = [x_1^{(h)}, .., x_T^{(h)}], \quad h = 1 .. T, \qquad y = \mathrm{LN}(x + s), \qquad
        z_t = \mathrm{LN}(y_t + W_{2, t} \, \mathrm{GELU}(W_{1, t} y_t + b_{1, t}) + b_{2, t})

    with :math:`x_t^{(h)}` the h-th of T equal parts of a token.

    Parameters
    ----------
    num_tokens : int
        T.
    dim : int
        W, a multiple of T.
    hidden_dim : int
        Of the MLPs.
    dropout : float
        On the output of the MLPs.

    Examples
    --------
    >>> TokenMixing(4, 8, 16)(torch.randn(2, 4, 8)).shape
    torch.Size([2, 4, 8])
    """

    def __init__(self, num_tokens: int, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = PerTokenLinear(num_tokens, dim, hidden_dim)
        self.second = PerTokenLinear(num_tokens, hidden_dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens ``(B, T, W)``."""
        mixed = tokens.unflatten(2, (tokens.shape[1], -1)).transpose(1, 2).flatten(2)
        tokens = self.norm1(tokens + mixed)
        return self.norm2(tokens + self.dropout(self.second(F.gelu(self.first(tokens)))))
