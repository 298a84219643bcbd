"""Dropout with a fast mask on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Dropout):
    """Dropout whose mask on the CPU is sampled four entries at a time.

    PyTorch samples one 32-bit number per entry, one after the other; in a small network that takes longer than the
    matrix products. Here each 64-bit number of the generator gives four masks of 16 bits, so ``p`` is exact to
    1 / 65536; kept entries are scaled by the exact expected fraction. On other devices PyTorch's kernel runs.

    Srivastava et al., "Dropout", JMLR 2014, https://jmlr.org/papers/v15/srivastava14a.html

    Examples
    --------
    >>> kept = Dropout(0.25)(torch.ones(100_000))
    >>> sorted({round(v, 4) for v in kept.tolist()}), bool((kept.mean() - 1).abs() < 0.02)
    ([0.0, 1.3333], True)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` of any shape, its entries dropped with probability ``p`` while training."""
        if not self.training or self.p == 0 or self.p == 1 or input.device.type != "cpu":
            return F.dropout(input, self.p, self.training)
        return _Scale.apply(input, self.p)


def keep_mask(x: Tensor, p: float, generator: torch.Generator | None = None) -> tuple[Tensor, float]:
    """Sample which entries of a tensor on the CPU are kept.

    Parameters
    ----------
    x : Tensor
        Of any shape and floating type.
    p : float
        Probability of an entry to be dropped, above 0 and below 1.
    generator : torch.Generator, optional
        Source of random numbers; torch's default one by default.

    Returns
    -------
    mask : Tensor
        Of the shape of ``x``: 1 where it is kept, else 0. For ``apply_mask``; of the type of ``x``, or int16 if that
        has two bytes.
    scale : float
        One over the expected fraction of entries that are kept.
    """
    lanes = (
        torch.empty((x.numel() + 3) // 4, dtype=torch.int64)
        .random_(-(2**63), None, generator=generator)
        .view(torch.int16)
    )
    # Lanes are uniform over -32768 .. 32767; the lowest `dropped` of these values mean zero.
    least = _dropped_lanes(p) - 32768
    lanes = lanes[: x.numel()].view(x.shape)
    if x.element_size() == lanes.element_size():
        return lanes.ge_(least), kept_scale(p)
    # In the dtype of x: a product of two dtypes takes a slower kernel, here and in the backward pass.
    return torch.ge(lanes, least, out=torch.empty(x.shape, dtype=x.dtype)), kept_scale(p)


def apply_mask(x: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``x``, or a part of it, where the mask of ``keep_mask`` is 1, and zero elsewhere, also for NaN.

    The bits of types of two bytes are multiplied as integers, which takes a third of the time; torch converts each
    factor to float32 and the product back.
    """
    if mask.dtype == x.dtype:
        return torch.mul(x, mask, out=out)
    bits = torch.mul(x.view(mask.dtype), mask, out=None if out is None else out.view(mask.dtype))
    return bits.view(x.dtype)


def kept_scale(p: float) -> float:
    """Return one over the expected fraction that ``keep_mask`` keeps."""
    return 65536 / (65536 - _dropped_lanes(p))


def _dropped_lanes(p: float) -> int:
    return min(max(round(p * 65536), 1), 65535)


class _Scale(torch.autograd.Function):
    """``x * scale`` with a random ``scale`` that is zero or one over the fraction kept."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, p: float) -> Tensor:
        mask, factor = keep_mask(x, p)
        scale = apply_mask(x.new_tensor(factor), mask, out=mask.view(x.dtype))
        ctx.save_for_backward(scale)
        return x * scale

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * scale, None


def replace_dropout(module: nn.Module) -> None:
    """Replace every ``nn.Dropout`` inside a module by this Dropout."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
