"""Layers on a fixed number of tokens, each with its own weights.

Shape letters: B rows, T tokens, I and O dims of a token before and after, W dim of a token, H mixed tokens.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Every token.
ALL = slice(None)

#: Epsilon of the norms of tokens that are made of embeddings. These start near zero, and those of rare ids stay there:
#: a small epsilon would scale their noise to the length of all other tokens.
NORM_EPSILON = 1.0


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


def mix_tokens(tokens: Tensor, num_mixed: int) -> Tensor:
    r"""Mix tokens without parameters: the h-th mixed token has the h-th of H equal parts of every token.

    Mixing the mixed tokens into T reverts it.

    Parameters
    ----------
    tokens : Tensor
        ``(B, T, W)``, W a multiple of H.
    num_mixed : int
        H.

    Returns
    -------
    Tensor
        ``(B, H, T W / H)``.

    Examples
    --------
    >>> mix_tokens(torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]]]), 2).tolist()
    [[[1, 2, 5, 6], [3, 4, 7, 8]]]
    """
    return tokens.unflatten(2, (num_mixed, -1)).transpose(1, 2).flatten(2)


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
        tokens = self.norm1(tokens + mix_tokens(tokens, tokens.shape[1]))
        return self.norm2(tokens + self.dropout(self.second(F.gelu(self.first(tokens)))))


class SwiGLU(nn.Module):
    r"""A gated MLP, :math:`y = W_2 (\mathrm{SiLU}(W_g x + b_g) \odot (W_1 x + b_1)) + b_2`.

    Shazeer, "GLU Variants Improve Transformer", 2020, https://arxiv.org/abs/2002.05202

    Parameters
    ----------
    dim, hidden_dim : int
        W, and the dim of the hidden layer.
    num_tokens : int, optional
        T, of which each has its own weights; by default the weights are shared.

    Examples
    --------
    >>> SwiGLU(4, 8)(torch.randn(2, 4)).shape, SwiGLU(4, 8, num_tokens=3)(torch.randn(2, 3, 4)).shape
    (torch.Size([2, 4]), torch.Size([2, 3, 4]))
    """

    def __init__(self, dim: int, hidden_dim: int, num_tokens: int | None = None) -> None:
        super().__init__()
        linear = nn.Linear if num_tokens is None else partial(PerTokenLinear, num_tokens)
        self.gate, self.first, self.second = linear(dim, hidden_dim), linear(dim, hidden_dim), linear(hidden_dim, dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return ``(.., W)``, or ``(B, T, W)`` of tokens, of inputs of the same shape."""
        return self.second(F.silu(self.gate(inputs)) * self.first(inputs))


class TokenMixerLargeBlock(nn.Module):
    r"""Mix tokens without parameters and transform them, mix them back, and transform each by its own gated MLP.

    Jiang et al., "TokenMixer-Large: Scaling Up Large Ranking Models in Industrial Recommenders", 2026,
    https://arxiv.org/abs/2602.06563

    .. math::
        m = \mathrm{mix}_H(x), \qquad m' = m + \mathrm{SwiGLU}(\mathrm{RMSNorm}(m)), \qquad
        y = x + \mathrm{SwiGLU}(\mathrm{RMSNorm}(\mathrm{mix}_T(m')))

    Each of the H mixed tokens and of the T tokens has its own weights. Those of the last maps are initially a hundredth
    of the others, so that the block starts near :math:`y = x`.

    Parameters
    ----------
    num_tokens : int
        T.
    dim : int
        W.
    num_mixed : int
        H, a divisor of W.
    hidden_factor : int
        Hidden dim of each MLP, as a multiple of the dim of its tokens.
    dropout : float
        On the output of the MLPs.

    Examples
    --------
    >>> TokenMixerLargeBlock(3, 8, num_mixed=2)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, num_tokens: int, dim: int, num_mixed: int, hidden_factor: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_tokens, self.num_mixed, mixed_dim = num_tokens, num_mixed, num_tokens * dim // num_mixed
        self.norm1, self.norm2 = nn.RMSNorm(mixed_dim), nn.RMSNorm(dim)
        self.mixed_mlp = SwiGLU(mixed_dim, hidden_factor * mixed_dim, num_mixed)
        self.token_mlp = SwiGLU(dim, hidden_factor * dim, num_tokens)
        self.dropout = nn.Dropout(dropout)
        for mlp in (self.mixed_mlp, self.token_mlp):
            mlp.second.weight.data *= 0.01

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens ``(B, T, W)``."""
        mixed = mix_tokens(tokens, self.num_mixed)
        mixed = mixed + self.dropout(self.mixed_mlp(self.norm1(mixed)))
        return tokens + self.dropout(self.token_mlp(self.norm2(mix_tokens(mixed, self.num_tokens))))
