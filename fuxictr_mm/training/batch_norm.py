"""Batch norm of a model on several ranks: over the samples of all of them, or over each rank's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fuxictr_mm.training import distributed


class _SameBatchNorm(_BatchNorm):
    """A batch norm with the parameters and buffers of ``norm``, of any shape of input."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
            setattr(self, name, value)
        self.training = norm.training

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any shape that forward does."""


class LocalBatchNorm(_SameBatchNorm):
    """``nn.BatchNorm1d`` with mean and variance of the rank's own samples.

    Fewer than two samples have no variance: the running statistics take its place, and are unchanged.
    ``average_running_statistics`` gives all ranks the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``(N, C)`` or ``(N, C, L)``."""
        if self.training and self.track_running_stats and x.numel() < 2 * self.num_features:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)  # so that it is the same on all ranks
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class SyncBatchNorm(_SameBatchNorm):
    """``nn.BatchNorm1d`` with mean and variance over all ranks; a rank may have one sample, or none.

    Where all ranks together have fewer than two, the running statistics are unchanged.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``(N, C)`` or ``(N, C, L)``."""
        if not self.training:
            return super().forward(x)
        values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        normed, mean, variance, rows = _Normalize.apply(values, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, variance * rows / (rows - 1), rows > 1)
        return normed.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor, known: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(known)
        share = 1 / max(float(self.num_batches_tracked), 1) if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(torch.where(known, value.to(running.dtype), running), share)


class _Normalize(torch.autograd.Function):
    """Batch norm of ``(N, C)`` or ``(N, C, L)`` by mean and variance over ranks, in few passes over the samples.

    Ranks exchange mean, variance and count of each channel in the forward pass, two sums in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        count = x.new_full((1,), x.numel() / channels)
        own = torch.batch_norm_update_stats(x, None, None, 0.0) if x.numel() else x.new_zeros(2, channels)
        found = distributed.gather_equal(torch.cat([*own, count]).unsqueeze(0))
        means, variances, counts = found.split([channels, channels, 1], 1)
        rows = counts.sum()
        mean = (means * counts).sum(0) / rows
        variance = ((variances + (means - mean).square()) * counts).sum(0) / rows
        ctx.save_for_backward(x, weight, mean, variance, rows)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, rows)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance, rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, variance, rows = ctx.saved_tensors
        own = x.new_zeros(2, x.shape[1])
        if x.numel():  # the sums of the gradient times the normalised samples, and of the gradient, in one pass
            found = torch.ops.aten.native_batch_norm_backward(
                gradients[0], x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
            )
            own = torch.stack(found[1:])
        total = own.clone()
        dist.all_reduce(total)
        total /= rows
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = inverse if weight is None else inverse * weight
        # scale * (gradient - mean of it - normalised sample * mean of the product), of which the last two are linear.
        of_x = F.batch_norm(x, mean, torch.ones_like(mean), -scale * inverse * total[0], -scale * total[1], eps=0.0)
        of_x.addcmul_(gradients[0], scale.view([1, -1] + [1] * (x.dim() - 2)))
        return of_x, *((None, None) if weight is None else (own[0], own[1])), None


def replace_batch_norm(model: nn.Module, sync: bool = True) -> None:
    """Replace every batch norm by ``SyncBatchNorm``, or ``LocalBatchNorm``; parameters stay the same objects."""
    compiled = getattr(model, "compiled_logits", None) is not None
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, _SameBatchNorm | nn.SyncBatchNorm):
                norm = SyncBatchNorm(child) if sync else LocalBatchNorm(child)
                if compiled and sync:  # not as a decorator of the class: it imports torch's compiler, for a second
                    norm.forward = torch.compiler.disable(norm.forward)  # type: ignore[method-assign]
                setattr(module, name, norm)


@torch.no_grad()
def average_running_statistics(model: nn.Module) -> None:
    """Replace the running statistics of every ``LocalBatchNorm`` by their mean over ranks.

    They are linear in the statistics of the steps, so that how often this is done changes only rounding. Likewise for
    the averages of ``ema`` and ``swa_start``.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, LocalBatchNorm) and m.track_running_stats}
    if distributed.size() == 1 or not norms:
        return
    average = getattr(model, "average", None)
    of_names = dict(model.named_buffers()), ({} if average is None else average.of_dense)
    names = [f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")]
    distributed.average([values[name] for values in of_names for name in names if name in values])
