"""The first layer of DIN's activation unit in one kernel, and its gradient in two.

Shape letters: B rows, N history items of a batch, U distinct items, D dim, A dim of the layer.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers.triton_kernels.rows import gather, relu, scatter_add, store

#: Items, dims and units of a block of each kernel. Compiled for sm_80 and sm_90, none spills registers.
FORWARD = {"BLOCK_N": 64, "BLOCK_D": 32, "BLOCK_A": 128, "num_warps": 8, "num_stages": 2}
OF_INPUTS = {"BLOCK_N": 32, "BLOCK_D": 128, "BLOCK_A": 32, "num_warps": 8, "num_stages": 2}
OF_WEIGHT = {"BLOCK_N": 32, "BLOCK_D": 128, "BLOCK_A": 64, "num_warps": 8, "num_stages": 2}
#: Programs that share the sum over all items in the gradient of a block of the weights.
SPLITS = 32


def first_layer(
    target: Tensor, history: Jagged, target_part: Tensor, items_part: Tensor, weight: Tensor, dropout: float
) -> Tensor:
    r"""Return the first hidden layer of the unit for every history item, after ReLU and dropout.

    .. math:: \sigma(a_b + c_n + W (t_b \odot s_n))

    Neither the products ``(N, D)`` nor an ``(N, A)`` besides the result are written to memory, forward or backward;
    the backward pass reads from the result what ReLU and dropout made zero. Products of float32 are those of three
    products in TF32, nearly exact, or of one, as ``torch.get_float32_matmul_precision`` says. Gradients of rows, items
    and weights are sums over history items; they are added in float32 by atomic operations, in an order that varies.

    Parameters
    ----------
    target : Tensor
        ``(B, D)`` t.
    history : Jagged
        Entries ``(.., D)`` s.
    target_part : Tensor
        ``(B, A)`` a, with the bias.
    items_part : Tensor
        ``(U, A)`` c of the stored entries of the history.
    weight : Tensor
        ``(A, D)`` W.
    dropout : float
        Probability, 0 without dropout. One number of torch's generator on the CPU seeds its mask.

    Returns
    -------
    Tensor
        ``(N, A)`` in the dtype of the parts.
    """
    inputs = [x.to(target_part.dtype).contiguous() for x in (target, history.distinct, target_part, items_part, weight)]
    with torch.cuda.device_of(target):  # Triton launches on the current device; autograd sets it in the backward pass
        return _FirstLayer.apply(history.places.contiguous(), history.rows, dropout, *inputs)


class _FirstLayer(torch.autograd.Function):
    """``first_layer`` of contiguous tensors of one dtype."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, rows: Tensor, dropout: float, *inputs: Tensor) -> Tensor:
        target, items, target_part, _, weight = inputs
        (count,), (units, dim) = index.shape, weight.shape
        hidden = target_part.new_empty(count, units)
        precision = "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
        seed = int(torch.randint(2**31 - 1, ())) if dropout else 0
        ctx.scale = 1 / (1 - dropout) if dropout < 1 else 0.0
        ctx.sizes = {"count": count, "dim": dim, "units": units, "PRECISION": precision}
        if count:
            grid = (triton.cdiv(count, FORWARD["BLOCK_N"]), triton.cdiv(units, FORWARD["BLOCK_A"]))
            options = {"DROPS": dropout > 0, **ctx.sizes, **FORWARD}
            _forward[grid](*inputs, index, rows, hidden, seed, dropout, ctx.scale, **options)
        ctx.save_for_backward(index, rows, target, items, target_part, weight, hidden)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, rows, target, items, target_part, weight, hidden = ctx.saved_tensors
        (count, units), dim = hidden.shape, items.shape[1]
        gradient = gradient.contiguous()
        sizes = [target.shape, items.shape, target_part.shape, (items.shape[0], units), weight.shape]
        sums = [target.new_zeros(size, dtype=torch.float32) for size in sizes]
        if count:
            inputs = (target, items, index, rows, hidden, gradient, ctx.scale)
            grid = (triton.cdiv(count, OF_INPUTS["BLOCK_N"]), triton.cdiv(dim, OF_INPUTS["BLOCK_D"]))
            _of_inputs[grid](*inputs, weight, *sums[:-1], **ctx.sizes, **OF_INPUTS)
            blocks = (triton.cdiv(units, OF_WEIGHT["BLOCK_A"]), triton.cdiv(dim, OF_WEIGHT["BLOCK_D"]))
            _of_weight[(*blocks, SPLITS)](*inputs, sums[-1], **ctx.sizes, **OF_WEIGHT)
        return None, None, None, *(total.to(target.dtype) for total in sums)


@triton.jit
def _add_product(a, b, sums, like, PRECISION: tl.constexpr):
    """Return ``sums + a @ b`` of float32 blocks, the factors rounded to the dtype of the tensor ``like``."""
    dtype = like.dtype.element_ty
    return tl.dot(a.to(dtype), b.to(dtype), sums, input_precision=PRECISION)


@triton.jit(do_not_specialize=["seed", "count"])  # they vary from step to step
def _forward(
    target,
    items,
    target_part,
    items_part,
    weight,
    index,
    rows,
    hidden,
    seed,
    dropout,
    scale,
    count,
    dim,
    units,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_A: tl.constexpr,
    DROPS: tl.constexpr,
):
    """Write a block (n, a) of ``hidden``: products of target and item times the weights, summed over blocks of dims."""
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    a = tl.program_id(1) * BLOCK_A + tl.arange(0, BLOCK_A)
    exists = n < count
    r, i = tl.load(rows + n, mask=exists, other=0), tl.load(index + n, mask=exists, other=0)
    sums = tl.zeros((BLOCK_N, BLOCK_A), tl.float32)
    for first in range(0, dim, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        product = gather(target, r, d, dim, exists) * gather(items, i, d, dim, exists)
        weights = tl.trans(gather(weight, a, d, dim, a < units))
        sums = _add_product(product, weights, sums, hidden, PRECISION)
    sums += gather(target_part, r, a, units, exists) + gather(items_part, i, a, units, exists)
    sums = relu(sums)
    if DROPS:
        sums = tl.where(tl.rand(seed, (n[:, None] * units + a[None, :]).to(tl.int32)) >= dropout, sums * scale, 0.0)
    store(hidden, n, a, units, exists, sums)


@triton.jit
def _before_relu(hidden, gradient, n, a, units, exists, scale):
    """Return a block (n, a) of the gradient before ReLU and dropout: zero where the output is zero."""
    is_zero = gather(hidden, n, a, units, exists) <= 0
    return tl.where(is_zero, 0.0, gather(gradient, n, a, units, exists) * scale)


@triton.jit(do_not_specialize=["count"])
def _of_inputs(
    target,
    items,
    index,
    rows,
    hidden,
    gradient,
    scale,
    weight,
    of_target,
    of_items,
    of_target_part,
    of_items_part,
    count,
    dim,
    units,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    """Add a block (n, d) to ``of_target`` and ``of_items``, after a sum over blocks of units.

    Programs of the first block of dims also add those blocks of units to ``of_target_part`` and ``of_items_part``.
    """
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    exists = n < count
    r, i = tl.load(rows + n, mask=exists, other=0), tl.load(index + n, mask=exists, other=0)
    of_product = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, units, BLOCK_A):
        a = first + tl.arange(0, BLOCK_A)
        delta = _before_relu(hidden, gradient, n, a, units, exists, scale)
        weights = gather(weight, a, d, dim, a < units)
        of_product = _add_product(delta, weights, of_product, hidden, PRECISION)
        if tl.program_id(1) == 0:
            scatter_add(of_target_part, r, a, units, exists, delta)
            scatter_add(of_items_part, i, a, units, exists, delta)
    scatter_add(of_target, r, d, dim, exists, of_product * gather(items, i, d, dim, exists))
    scatter_add(of_items, i, d, dim, exists, of_product * gather(target, r, d, dim, exists))


@triton.jit(do_not_specialize=["count"])
def _of_weight(
    target,
    items,
    index,
    rows,
    hidden,
    gradient,
    scale,
    of_weight,
    count,
    dim,
    units,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_A: tl.constexpr,
):
    """Add to a block (a, d) of ``of_weight`` the sum over every ``num_programs(2)``-th block of history items."""
    a = tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    sums = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
    for first in range(tl.program_id(2) * BLOCK_N, count, tl.num_programs(2) * BLOCK_N):
        n = (first + tl.arange(0, BLOCK_N)).to(tl.int64)
        exists = n < count
        r, i = tl.load(rows + n, mask=exists, other=0), tl.load(index + n, mask=exists, other=0)
        delta = _before_relu(hidden, gradient, n, a, units, exists, scale)
        product = gather(target, r, d, dim, exists) * gather(items, i, d, dim, exists)
        sums = _add_product(tl.trans(delta), product, sums, hidden, PRECISION)
    scatter_add(of_weight, a, d, dim, a < units, sums)
