r"""What attention weights look like: how near to uniform, and how alike those of several heads are.

Shape letters: B rows, H heads, Q queries, L keys (history items), P pairs of heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Entries of weights that are looked at together; bounds the memory of those of self-attention.
CHUNK_ENTRIES = 1 << 22


class WeightStatistics(NamedTuple):
    """Of each row, averaged over its queries; NaN where there is nothing to tell.

    Parameters
    ----------
    lengths : Tensor
        ``(B,)`` int64, keys of the row.
    entropy_ratio : Tensor
        ``(B, H)`` entropy against that of uniform weights; NaN for fewer than two keys or weights that are all zero.
    largest : Tensor
        ``(B, H)`` the largest share of one key; NaN as before.
    silent : Tensor
        ``(B, H)`` share of queries whose weights are all zero; NaN for a row without keys.
    divergence : Tensor
        ``(B, P)`` Jensen-Shannon divergence of each pair of heads in bits, 0 for equal weights and 1 for weights on
        different keys; pairs in the order of ``torch.triu_indices(H, H, 1)``.
    """

    lengths: Tensor
    entropy_ratio: Tensor
    largest: Tensor
    silent: Tensor
    divergence: Tensor


def look_at(weights: Tensor, keys: Tensor, queries: Tensor) -> WeightStatistics:
    r"""Describe the weights of a batch.

    .. math::
        p_n = \frac{|w_n|}{\sum_m |w_m|}, \qquad r = \frac{-\sum_n p_n \log p_n}{\log L}, \qquad
        \mathrm{JS} = H\Big(\frac{p + q}{2}\Big) - \frac{H(p) + H(q)}{2}

    Parameters
    ----------
    weights : Tensor
        ``(B, H, Q, L)``; they need not sum to one, nor be positive.
    keys : Tensor
        ``(B, L)`` bool, which keys are real.
    queries : Tensor
        ``(B, Q)`` bool, which queries are real.

    Examples
    --------
    >>> weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).view(1, 2, 1, 2)
    >>> found = look_at(weights, torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool))
    >>> found.entropy_ratio.tolist(), round(float(found.divergence), 4)
    ([[1.0, 0.0]], 0.3113)
    """
    rows = max(1, CHUNK_ENTRIES // max(1, weights[0].numel())) if weights.shape[0] else 1
    parts = [_look_at(*chunk) for chunk in zip(weights.split(rows), keys.split(rows), queries.split(rows), strict=True)]
    return join(parts)


def join(parts: list[WeightStatistics]) -> WeightStatistics:
    """Put rows below each other."""
    return WeightStatistics(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _look_at(weights: Tensor, keys: Tensor, queries: Tensor) -> WeightStatistics:
    sizes = weights.double().abs() * keys[:, None, None]
    totals = sizes.sum(dim=-1)
    real = queries[:, None].expand_as(totals) & (keys.sum(dim=1) > 0)[:, None, None]
    speaks = real & (totals > 0)
    shares = sizes / totals.where(speaks, torch.ones_like(totals)).unsqueeze(-1)
    lengths = keys.sum(dim=1)
    told = speaks & (lengths >= 2)[:, None, None]
    entropy = _entropy(shares)
    ratio = entropy / lengths.clamp(min=2).double().log()[:, None, None]
    first, second = torch.triu_indices(weights.shape[1], weights.shape[1], 1)
    divergence = [
        _mean(
            (_entropy((shares[:, i] + shares[:, j]) / 2) - (entropy[:, i] + entropy[:, j]) / 2) / math.log(2),
            told[:, i] & told[:, j],
        )
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
    ]
    return WeightStatistics(
        lengths.cpu(),
        _mean(ratio, told).cpu(),
        _mean(shares.amax(dim=-1) if shares.shape[-1] else totals, told).cpu(),
        _mean((totals == 0).double(), real).cpu(),
        torch.stack(divergence, dim=1).cpu() if divergence else torch.zeros(len(lengths), 0, dtype=torch.float64),
    )


def _entropy(shares: Tensor) -> Tensor:
    return -torch.special.xlogy(shares, shares).sum(dim=-1)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Return the mean over the last dimension of what is counted, NaN where nothing is."""
    return (values * counted).sum(dim=-1) / counted.sum(dim=-1)


def even(weights: Tensor, keys: Tensor) -> Tensor:
    """Give every key of a row the mean of its weights ``(B, H, Q, L)``, so that their sum stays; padding gets none."""
    lengths = keys.sum(dim=1).clamp(min=1)[:, None, None, None]
    mean = (weights * keys[:, None, None]).sum(dim=-1, keepdim=True) / lengths
    return mean * keys[:, None, None]
