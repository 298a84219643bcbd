"""Target attention over jagged rows in one kernel, and its gradient in another.

Shape letters: B rows, N entries of all rows, U distinct entries, D dim, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers.triton_kernels import LARGEST_QUERY, filled
from fuxictr_mm.layers.triton_kernels.rows import gather, relu, scatter_add, store


def target_attention(queries: Tensor, history: Jagged, sparse: bool) -> Tensor:
    r"""Return the sums of each row's entries, weighted by a softmax, or a ReLU, of their products with the queries.

    .. math::
        o_{b, h} = \sum_{n \in b} w_{n, h} \, s_n, \qquad w_{n, h} = \mathrm{softmax}_{n \in b} \; q_{b, h} \cdot s_n

    Neither entries ``(N, D)`` nor weights ``(N, H)`` are written to memory. The gradient of a distinct entry is a sum
    over rows; it is added in float32 by atomic operations, in an order that varies.

    Parameters
    ----------
    queries : Tensor
        ``(B, H, D)``.
    history : Jagged
        Entries of shape ``(.., D)``.
    sparse : bool
        ReLU instead of the softmax.

    Returns
    -------
    Tensor
        ``(B, H, D)``, zero for an empty row, in the promoted dtype of queries and history.
    """
    inputs = [x.contiguous() for x in (queries, history.distinct, history.places, history.offsets)]
    with torch.cuda.device_of(queries):  # Triton launches on the current device; autograd sets it in the backward pass
        return _TargetAttention.apply(*inputs, sparse)


class _TargetAttention(torch.autograd.Function):
    """``target_attention`` of contiguous tensors."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, items: Tensor, index: Tensor, offsets: Tensor, sparse: bool) -> Tensor:
        pooled = queries.new_empty(queries.shape, dtype=torch.promote_types(queries.dtype, items.dtype))
        norms = queries.new_empty(queries.shape[:2], dtype=torch.float32)
        ctx.sizes = _sizes(queries, sparse)
        if queries.shape[0]:
            _attend[queries.shape[:1]](queries, items, index, offsets, pooled, norms, **ctx.sizes)
        ctx.save_for_backward(queries, items, index, offsets, pooled, norms)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, items, index, offsets, pooled, norms = ctx.saved_tensors
        of_queries = torch.empty_like(queries)
        of_items = torch.zeros_like(items, dtype=torch.float32)
        if queries.shape[0]:
            inputs = (queries, items, index, offsets, pooled, norms, gradient.contiguous())
            _differentiate[queries.shape[:1]](*inputs, of_queries, of_items, **ctx.sizes)
        return of_queries, of_items.to(items.dtype), None, None, None


def _sizes(queries: Tensor, sparse: bool) -> dict[str, Any]:
    heads, dim = queries.shape[1:]
    block_h, block_d = filled(heads), filled(dim)
    # A row has one warp, which keeps the products of every query and entry of a block in its registers.
    blocks = {"BLOCK_N": max(LARGEST_QUERY // (block_h * block_d), 1), "BLOCK_H": block_h, "BLOCK_D": block_d}
    return {"heads": heads, "dim": dim, "SPARSE": sparse, **blocks, "num_warps": 1}


@triton.jit
def _attend(
    queries,
    items,
    index,
    offsets,
    pooled,
    norms,
    heads,
    dim,
    SPARSE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Pool one row: its entries block by block, the softmax in one pass (its sums are scaled when the maximum grows).

    Writes ``pooled`` ``(B, H, D)`` and, for the backward pass, ``norms`` ``(B, H)``: the logarithm of the sum of
    exponentials.
    """
    row = tl.program_id(0).to(tl.int64)
    start, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    h, d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    of_row, real = row * heads + h, h < heads
    q = gather(queries, of_row, d, dim, real)
    peak = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    sums = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for first in range(start, end, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        exists = n < end
        s = gather(items, tl.load(index + n, mask=exists, other=0), d, dim, exists)
        scores = tl.sum(s[:, None, :] * q[None, :, :], axis=2)
        if SPARSE:
            weights = relu(scores)
        else:
            scores = tl.where(exists[:, None], scores, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, axis=0))
            weights = tl.exp(scores - higher[None, :])
            shrink = tl.exp(peak - higher)
            total = total * shrink + tl.sum(weights, axis=0)
            sums = sums * shrink[:, None]
            peak = higher
        sums += tl.sum(weights[:, :, None] * s[:, None, :], axis=0)
    if not SPARSE:
        total = tl.where(total > 0, total, 1.0)  # of an empty row it is zero
        sums = sums / total[:, None]
        tl.store(norms + of_row, peak + tl.log(total), mask=real)
    store(pooled, of_row, d, dim, real, sums)


@triton.jit
def _differentiate(
    queries,
    items,
    index,
    offsets,
    pooled,
    norms,
    gradient,
    of_queries,
    of_items,
    heads,
    dim,
    SPARSE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Differentiate one row: its entries block by block, scores and weights computed again.

    With g the gradient of ``pooled``, an entry's weight has the gradient g · s, and its score, under the softmax,
    w (g · s - g · o). Writes ``of_queries`` ``(B, H, D)`` and adds to ``of_items`` ``(U, D)``, float32.
    """
    row = tl.program_id(0).to(tl.int64)
    start, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    h, d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    of_row, real = row * heads + h, h < heads
    q, g = gather(queries, of_row, d, dim, real), gather(gradient, of_row, d, dim, real)
    if not SPARSE:
        mean = tl.sum(g * gather(pooled, of_row, d, dim, real), axis=1)
        norm = tl.load(norms + of_row, mask=real, other=0.0)
    of_q = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    for first in range(start, end, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        exists = n < end
        i = tl.load(index + n, mask=exists, other=0)
        s = gather(items, i, d, dim, exists)
        scores = tl.sum(s[:, None, :] * q[None, :, :], axis=2)
        of_weights = tl.sum(s[:, None, :] * g[None, :, :], axis=2)
        if SPARSE:
            weights = relu(scores)
            of_scores = tl.where(scores <= 0, 0.0, of_weights)
        else:
            weights = tl.exp(tl.where(exists[:, None], scores, float("-inf")) - norm[None, :])
            of_scores = weights * (of_weights - mean[None, :])
        of_q += tl.sum(of_scores[:, :, None] * s[:, None, :], axis=0)
        of_s = tl.sum(weights[:, :, None] * g[None, :, :] + of_scores[:, :, None] * q[None, :, :], axis=1)
        scatter_add(of_items, i, d, dim, exists, of_s)
    store(of_queries, of_row, d, dim, real, of_q)
