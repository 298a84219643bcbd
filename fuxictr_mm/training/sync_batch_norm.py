"""Batch norm over the rows of all processes, on CPUs as well; torch's own ``SyncBatchNorm`` wants a GPU.

Shape letters: N rows of a process, C features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """As ``nn.BatchNorm1d``, mean and variance being those of all processes together.

    A process may have one row, or none.

    Parameters
    ----------
    norm : nn.BatchNorm1d
        Whose parameters and buffers this takes over.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
            setattr(self, name, value)
        self.training = norm.training

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``(N, C)`` or ``(N, C, L)``."""
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        count = values.new_full((1,), x.numel() / self.num_features)
        *total, rows = _SumOverProcesses.apply(torch.cat([values.sum(dims), count])).split([self.num_features, 1])
        mean = total[0] / rows
        centred = values - mean.view(shape)
        variance = _SumOverProcesses.apply((centred * centred).sum(dims)) / rows
        if self.track_running_stats:
            rows = rows.detach()
            self._track(mean.detach(), variance.detach() * rows / (rows - 1))
        normed = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any shape that forward does."""


class _SumOverProcesses(torch.autograd.Function):
    """The sum of what every process has; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def replace_batch_norm(model: nn.Module) -> None:
    """Put ``SyncBatchNorm`` in the place of every batch norm; parameters stay the same objects."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm | nn.SyncBatchNorm):
                setattr(module, name, SyncBatchNorm(child))
