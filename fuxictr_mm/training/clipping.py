"""Clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from fuxictr_mm.tables import touched_rows


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Clip the total L2 norm of all gradients to ``max_norm``, as ``nn.utils.clip_grad_norm_`` does.

    A sparse gradient counts with the rows that it reaches; it is zero in the others. On the CPU, gradients below the
    norm are not written again: for large tables that is a tenth of a step.
    """
    gradients = [
        touched_rows(p)[1] if p.grad.layout is torch.sparse_coo else p.grad for p in parameters if p.grad is not None
    ]
    if not gradients:
        return
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    coefficient = max_norm / (norm + 1e-6)
    if norm.device.type != "cpu":
        torch._foreach_mul_(gradients, coefficient.clamp(max=1.0))  # without waiting for the device
    elif not coefficient >= 1:  # also for NaN
        torch._foreach_mul_(gradients, coefficient)
