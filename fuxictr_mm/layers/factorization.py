"""Factorization of user and item."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fuxictr_mm.errors import ConfigError


class Factorization(nn.Module):
    r"""Scores of users and items, each the sum of its fields. Kula, CBRecSys 2015, https://arxiv.org/abs/1507.08439.

    .. math:: \hat y_t = \sum_{k > T} w_{tk} u_k v_k + u_t + v_t + b_t

    The first T numbers of u and v are biases, one for each label t; w is 1 for a single label and learned for several.

    Parameters
    ----------
    dim : int
        K, the dim of u and v.
    num_tasks : int
        T.

    Raises
    ------
    ConfigError
        ``dim`` is smaller than ``num_tasks``.
    """

    def __init__(self, dim: int, num_tasks: int = 1) -> None:
        super().__init__()
        if dim < num_tasks:
            raise ConfigError(f"the dim of a factorization is {dim}, expected {num_tasks} or more, one bias per label")
        self.bias = nn.Parameter(torch.zeros(num_tasks))
        self.weights = nn.Parameter(torch.ones(num_tasks, dim - num_tasks)) if num_tasks > 1 else None

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the logits ``(B, T)`` of users u ``(B, K)`` or ``(1, K)`` and items v ``(B, K)``."""
        tasks = self.bias.numel()
        biases, products = (user + item)[:, :tasks], (user * item)[:, tasks:]
        sums = products.sum(dim=1, keepdim=True) if self.weights is None else products @ self.weights.t()
        return sums + biases + self.bias


def mean_squares(*fields: Tensor) -> Tensor:
    """Return the sum of squares of a row's fields ``(B, ...)``, the mean over rows: a scalar."""
    return torch.stack([field.square().sum() / max(len(field), 1) for field in fields]).sum()
