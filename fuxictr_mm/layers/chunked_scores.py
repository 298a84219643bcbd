"""Scores of an activation unit for every history item, computed in chunks that stay in the processor's cache.

Shape letters: B rows, N history items of a batch, U distinct items, D dim, A dim of the first hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fuxictr_mm.jagged import Jagged
from fuxictr_mm.layers.dropout import apply_mask, keep_mask, kept_scale
from fuxictr_mm.layers.structured_zeros import add_product
from fuxictr_mm.parallel import run_parts
from fuxictr_mm.sparse_products import sums_by

#: Items of a chunk: large enough for the rate of a matrix product, small enough for a core's share of the cache.
CHUNK = 1024

#: The number of items is filled up to a multiple of this. For bfloat16, oneDNN generates code for every shape, which
#: takes longer than to compute some scores that nothing reads, and half a megabyte each.
MULTIPLES = {torch.bfloat16: 64}


@dataclass(frozen=True)
class ReLULayers:
    """The layers after the first linear layer of an MLP whose activations are all ReLU."""

    dropouts: list[float]  #: Probability after each ReLU, 0 without dropout.
    linears: list[nn.Linear]  #: The linear layer after each ReLU; the last one has a single output.
    output: nn.Sequential  #: What follows the last linear layer.


def relu_layers(modules: nn.Sequential) -> ReLULayers | None:
    """Return the modules after a first linear layer as ``ReLULayers``; None for other modules."""
    rest = list(modules)
    dropouts: list[float] = []
    linears: list[nn.Linear] = []
    while rest and type(rest[0]) is nn.ReLU:
        del rest[0]
        dropout = rest.pop(0) if rest and isinstance(rest[0], nn.Dropout) else None
        linear = rest.pop(0) if rest else None
        if not isinstance(linear, nn.Linear) or linear.bias is None:
            return None
        dropouts.append(dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0)
        linears.append(linear)
    if not linears or linears[-1].out_features != 1 or 1 in dropouts:
        return None
    return ReLULayers(dropouts, linears, nn.Sequential(*rest))


def chunked_scores(
    target: Tensor, history: Jagged, target_part: Tensor, items_part: Tensor, weight: Tensor, layers: ReLULayers
) -> Tensor:
    r"""Return the scores of an MLP with ReLU activations, whose first layer is split into terms.

    .. math:: w_n = W_K \, \sigma_{K - 1}(\dots W_2 \, \sigma_1(h_n) \dots), \qquad h_n = a_b + c_n + W (t_b \odot s_n)

    where :math:`\sigma_k` is ReLU and dropout. The backward pass reads the outputs of each :math:`\sigma_k`, of which
    ``(N, A)`` is kept once; neither the products with the target, nor the masks, nor ``(N, D)`` gradients exist for
    more than one chunk of items.

    Parameters
    ----------
    target : Tensor
        ``(B, D)`` t.
    history : Jagged
        Entries ``(.., D)`` s.
    target_part : Tensor
        ``(B, A)`` a, with the bias of the first layer.
    items_part : Tensor
        ``(U, A)`` c of the stored entries of the history.
    weight : Tensor
        ``(A, D)`` W.
    layers : ReLULayers
        The layers after the first linear layer.

    Returns
    -------
    Tensor
        ``(N,)`` scores before the output activation, of the dtype of the parts.
    """
    dtype = target_part.dtype
    parameters = [p.to(dtype) for linear in layers.linears for p in (linear.weight, linear.bias)]
    inputs = [target.to(dtype), history.distinct.to(dtype), target_part, items_part, weight.to(dtype), *parameters]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    index, rows = history.places, history.rows
    if more := -index.shape[0] % MULTIPLES.get(dtype, 1):
        index, rows = (torch.cat([entries, entries[-1:].expand(more)]) for entries in (index, rows))
    return _Scores.apply(index, rows, layers.dropouts, keep, *inputs)[: history.num_values]


class _Scores(torch.autograd.Function):
    """``chunked_scores`` of one dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        index: Tensor,
        rows: Tensor,
        dropouts: Sequence[float],
        keep: bool,
        target: Tensor,
        items: Tensor,
        target_part: Tensor,
        items_part: Tensor,
        weight: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        # The scale of what dropout keeps is multiplied to the next layer's weights instead of to its inputs.
        scales = [kept_scale(p) if p else 1.0 for p in dropouts]
        weights = [w if scale == 1 else w * scale for w, scale in zip(parameters[::2], scales, strict=True)]
        biases = parameters[1::2]
        dims = [weight.shape[0]] + [w.shape[0] for w in weights[:-1]]
        scores = target_part.new_empty(index.shape[0])
        kept = [target_part.new_empty(index.shape[0], d) for d in dims] if keep else []

        def score(part: slice, generator: torch.Generator | None) -> None:
            size = min(CHUNK, part.stop - part.start)
            outputs_of_chunk = [] if keep else [target.new_empty(size, d) for d in dims]
            product, other = (target.new_empty(size, target.shape[1]) for _ in range(2))
            of_target = target.new_empty(size, dims[0])
            for chunk in _chunks(part):
                i, r = index[chunk], rows[chunk]
                size = i.shape[0]
                outputs = [h[chunk] for h in kept] if keep else [h[:size] for h in outputs_of_chunk]
                torch.index_select(target, 0, r, out=product[:size])
                product[:size].mul_(torch.index_select(items, 0, i, out=other[:size]))
                torch.index_select(items_part, 0, i, out=outputs[0])
                outputs[0].add_(torch.index_select(target_part, 0, r, out=of_target[:size]))
                outputs[0].addmm_(product[:size], weight.t())
                _activate(outputs[0], dropouts[0], generator)
                for (before, after), w, b, p in zip(pairwise(outputs), weights, biases, dropouts[1:], strict=False):
                    _activate(torch.addmm(b, before, w.t(), out=after), p, generator)
                torch.addmv(biases[-1], outputs[-1], weights[-1][0], out=scores[chunk])

        parts = _parts(rows)
        generators = _generators(len(parts)) if any(dropouts) else [None] * len(parts)
        run_parts([partial(score, part, generator) for part, generator in zip(parts, generators, strict=True)])
        ctx.parts = parts
        ctx.scales = scales
        ctx.save_for_backward(index, rows, target, items, weight, *weights, *kept)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, rows, target, items, weight, *saved = ctx.saved_tensors
        weights, kept = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        of_target = torch.zeros_like(target)
        of_target_part = target.new_zeros(target.shape[0], weight.shape[0])
        # Of every entry, since those of an item are in many chunks; in place of outputs that nothing reads again.
        of_entries = items.new_empty(index.shape[0], items.shape[1])
        of_parts = torch.empty_like(kept[0]) if _graph_is_kept() else kept[0]
        # Sums over all items of a batch are accumulated in float32 at least; sums per row or item have few terms.
        biases = [w[:, 0] for w in weights]
        sums = [[_accumulator(like) for like in (weight, *weights, *biases)] for _ in ctx.parts]

        def differentiate(part: slice, of_weight: Tensor, *of_layers: Tensor) -> None:
            of_weights, of_biases = of_layers[: len(weights)], of_layers[len(weights) :]
            size = min(CHUNK, part.stop - part.start)
            product, other, of_product = (target.new_empty(size, target.shape[1]) for _ in range(3))
            buffers = [target.new_empty(size, h.shape[1]) for h in kept]
            for chunk in _chunks(part):
                i, r = index[chunk], rows[chunk]
                size = i.shape[0]
                delta = gradient[chunk].unsqueeze(1)
                for k in reversed(range(len(kept))):
                    output = kept[k][chunk]
                    add_product(of_weights[k], delta.t(), output)
                    of_biases[k].add_(delta.sum(dim=0))
                    delta = torch.mm(delta, weights[k], out=buffers[k][:size])
                    # An output is zero where ReLU or dropout made it so.
                    of_input = delta if k else of_parts[chunk]
                    delta = torch.ops.aten.threshold_backward.grad_input(delta, output, 0, grad_input=of_input)
                of_target_part.index_add_(0, r, delta)
                targets = torch.index_select(target, 0, r, out=product[:size])
                entries = torch.index_select(items, 0, i, out=other[:size])
                of_products = torch.mm(delta, weight, out=of_product[:size])
                torch.mul(targets, of_products, out=of_entries[chunk])
                of_target.index_add_(0, r, of_products.mul_(entries))
                add_product(of_weight, delta.t(), targets.mul_(entries))

        run_parts([partial(differentiate, part, *of_part) for part, of_part in zip(ctx.parts, sums, strict=True)])
        totals = sums[0]
        for terms in sums[1:]:
            for total, term in zip(totals, terms, strict=True):
                total.add_(term)
        of_weight, of_weights, of_biases = totals[0], totals[1 : 1 + len(weights)], totals[1 + len(weights) :]
        of_parameters = [
            g.to(target.dtype)
            for w, scale, b in zip(of_weights, ctx.scales, of_biases, strict=True)
            for g in (w.mul_(scale), b)
        ]
        of_weight = of_weight.to(target.dtype)
        of_items, of_items_part = sums_by(index, [of_entries, of_parts], items.shape[0])
        of_inputs = (of_target, of_items, of_target_part, of_items_part, of_weight, *of_parameters)
        return None, None, None, None, *of_inputs


def _graph_is_kept() -> bool:
    """Whether another backward pass may follow, as ``retain_graph`` says."""
    return getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)()


def _parts(rows: Tensor) -> list[slice]:
    """Return a part of the entries for each thread, of whole rows, since the gradients of a row are sums."""
    count = min(torch.get_num_threads(), rows.shape[0] // CHUNK)
    if count < 2:
        return [slice(0, rows.shape[0])]
    middle = rows[[rows.shape[0] * k // count for k in range(1, count)]]
    bounds = [0, *torch.searchsorted(rows, middle).tolist(), rows.shape[0]]
    return [slice(start, end) for start, end in pairwise(bounds)]


def _chunks(part: slice) -> list[slice]:
    return [slice(start, min(start + CHUNK, part.stop)) for start in range(part.start, part.stop, CHUNK)]


def _generators(count: int) -> list[torch.Generator | None]:
    """Return a source of random numbers for each part, seeded by torch's own, which serves a single part itself."""
    if count < 2:
        return [None] * count
    return [torch.Generator().manual_seed(seed) for seed in torch.randint(2**63 - 1, (count,)).tolist()]


def _activate(hidden: Tensor, dropout: float, generator: torch.Generator | None) -> None:
    """Apply ReLU and the mask of dropout in place, without dropout's scale."""
    hidden.clamp_min_(0)
    if dropout:
        apply_mask(hidden, keep_mask(hidden, dropout, generator)[0], out=hidden)


def _accumulator(like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.zeros_like(like, dtype=dtype, memory_format=torch.contiguous_format)
