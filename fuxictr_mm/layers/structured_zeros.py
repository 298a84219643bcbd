"""Matrix products with structural zeros, and the slots of a sequence encoder that cause them.

Shape letters: B rows, N history items, M tokens (items that are attended to), K slots.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fuxictr_mm.fuxictr_imports import CrossNetV2
from fuxictr_mm.jagged import Jagged


class Span(NamedTuple):
    """Columns ``start .. stop - 1``, zero from row ``rows`` on."""

    start: int
    stop: int
    rows: int


class Block(NamedTuple):
    """A product of the first ``rows`` rows: which inputs (columns of the weight) give which outputs (its rows)."""

    rows: int
    outputs: slice
    inputs: slice


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Merge adjacent spans that are equally filled, and drop those without columns.

    Examples
    --------
    >>> merge_spans([Span(4, 6, 3), Span(2, 4, 3), Span(0, 2, 1)])
    [Span(start=2, stop=6, rows=3), Span(start=0, stop=2, rows=1)]
    """
    merged: list[Span] = []
    for span in spans:
        last = merged[-1] if merged else None
        if span.start == span.stop:
            continue
        if last is not None and last.rows == span.rows and (last.stop == span.start or span.stop == last.start):
            merged[-1] = Span(min(last.start, span.start), max(last.stop, span.stop), span.rows)
        else:
            merged.append(span)
    return merged


def square_blocks(spans: Sequence[Span]) -> list[Block]:
    """Return the blocks of a product whose outputs are needed only where its inputs are filled.

    Together they cover every entry of the weight once. Each span adds its own outputs, from all columns filled so far,
    and its inputs, for the outputs before it.

    Parameters
    ----------
    spans : sequence of Span
        Sorted by ``rows``, descending; together they cover all columns.
    """
    blocks: list[Block] = []
    seen: list[tuple[int, int]] = []
    for start, stop, rows in spans:
        before, seen = seen, _join([*seen, (start, stop)])
        blocks += [Block(rows, slice(start, stop), slice(*known)) for known in seen]
        blocks += [Block(rows, slice(*known), slice(start, stop)) for known in before]
    return blocks


def input_blocks(spans: Sequence[Span], num_outputs: int) -> list[Block]:
    """Return the blocks of a product whose outputs are all needed."""
    return [Block(span.rows, slice(0, num_outputs), slice(span.start, span.stop)) for span in spans]


def _join(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


class _BlockProduct(torch.autograd.Function):
    """``x @ weight.t()``, block by block; sums and the weight's gradient in the dtype of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, blocks: Sequence[Block]) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.types = x.dtype, weight.dtype
        output = torch.zeros(x.shape[0], weight.shape[0], dtype=weight.dtype, device=x.device)
        x, weight = x.to(dtype), weight.to(dtype)
        for rows, outputs, inputs in blocks:
            if rows:
                add_product(output[:rows, outputs], x[:rows, inputs], weight[outputs, inputs].t())
        ctx.save_for_backward(x, weight)
        ctx.blocks = blocks
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        x_type, weight_type = ctx.types
        gradient = gradient.to(weight.dtype)
        x_gradient = torch.zeros_like(x, dtype=weight_type)
        weight_gradient = torch.empty_like(weight, dtype=weight_type)
        for rows, outputs, inputs in ctx.blocks:
            into = weight_gradient[outputs, inputs]
            if rows == 0:
                into.zero_()
                continue
            given = gradient[:rows, outputs]
            add_product(x_gradient[:rows, inputs], given, weight[outputs, inputs])
            if weight_type == weight.dtype:
                torch.mm(given.t(), x[:rows, inputs], out=into)
            else:
                into.copy_(given.t() @ x[:rows, inputs])
        return x_gradient.to(x_type), weight_gradient, None


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to a total, whose dtype may be wider."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def block_linear(x: Tensor, linear: nn.Linear, blocks: Sequence[Block]) -> Tensor:
    r"""Return ``linear(x)`` where the blocks have outputs, and only the bias elsewhere.

    The gradient of an input that no block reads is zero.

    Parameters
    ----------
    x : Tensor
        ``(B, D)``.
    linear : nn.Linear
        From D to O.
    blocks : sequence of Block
        What to compute; together they cover the weight once.

    Returns
    -------
    Tensor
        ``(B, O)`` in the type of the weight.

    Examples
    --------
    >>> x, linear = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]), nn.Linear(3, 2)
    >>> blocks = input_blocks([Span(0, 1, rows=2), Span(1, 3, rows=1)], num_outputs=2)
    >>> torch.allclose(block_linear(x, linear, blocks), linear(x))
    True
    """
    product = _BlockProduct.apply(x, linear.weight, blocks)
    return product if linear.bias is None else product + linear.bias


class StaircaseCrossNetV2(CrossNetV2):
    r"""Cross network of full matrices that skips structural zeros.

    Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems",
    WWW 2021, https://arxiv.org/abs/2008.13535

    .. math:: x_{l+1} = x_0 \odot (W_l x_l + b_l) + x_l

    Where :math:`x_0` is zero, every :math:`x_l` is, so neither outputs nor inputs are needed there.
    Parameters are those of FuxiCTR's ``CrossNetV2``.

    Parameters
    ----------
    input_dim : int
        D.
    num_layers : int
        Number of layers.

    Examples
    --------
    >>> x, cross = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]]), StaircaseCrossNetV2(input_dim=3, num_layers=2)
    >>> torch.allclose(cross(x, [Span(0, 1, rows=2), Span(1, 3, rows=1)]), cross(x))
    True
    """

    def forward(self, inputs: Tensor, spans: Sequence[Span] | None = None) -> Tensor:
        """Cross the inputs with themselves.

        Parameters
        ----------
        inputs : Tensor
            ``(B, D)``.
        spans : sequence of Span, optional
            Where rows are filled, sorted by ``rows``, descending. By default every column counts as filled.

        Returns
        -------
        Tensor
            ``(B, D)``.
        """
        if spans is None:
            return super().forward(inputs)
        blocks = square_blocks(spans)
        crossed = inputs
        for linear in self.cross_layers:
            crossed = inputs * block_linear(crossed, linear, blocks) + crossed
        return crossed


@dataclass(frozen=True)
class SeenItems:
    """The tokens of an encoder and where their outputs go."""

    items: Jagged  #: ``(M,)`` item ids, one or more in every row.
    slots: Tensor  #: ``(B, K)`` index of the token in each slot, -1 for none.
    filled: Tensor  #: ``(B,)`` how many slots are filled, counted in the order of ``fill_order``.
    fill_order: Sequence[int]  #: Slots, those first that more rows fill.

    def spans(self, before: int, dim: int, after: int) -> list[Span]:
        """Return where rows sorted by ``filled`` are: ``before`` columns, K slots of ``dim`` each, ``after`` columns.

        Examples
        --------
        >>> history = Jagged(torch.tensor([7, 8, 9]), torch.tensor([0, 3, 3]))
        >>> last_items(history, num_slots=2).spans(before=5, dim=4, after=3)
        [Span(start=0, stop=5, rows=2), Span(start=9, stop=16, rows=2), Span(start=5, stop=9, rows=1)]
        """
        num_rows, num_slots = self.slots.shape
        end = before + num_slots * dim
        counts = (self.filled.unsqueeze(1) > torch.arange(num_slots, device=self.filled.device)).sum(0).tolist()
        slots = [
            Span(before + slot * dim, before + (slot + 1) * dim, rows)
            for slot, rows in zip(self.fill_order, counts, strict=True)
        ]
        return merge_spans([Span(0, before, num_rows), Span(end, end + after, num_rows), *slots])


def last_items(history: Jagged, num_slots: int) -> SeenItems:
    """Attend to every real item; the last K fill the slots, the newest the last one.

    An empty history counts as one item of id 0, the padding.

    Parameters
    ----------
    history : Jagged
        ``(N,)`` item ids.
    num_slots : int
        K.

    Examples
    --------
    >>> seen = last_items(Jagged(torch.tensor([7, 8, 9]), torch.tensor([0, 3, 3])), num_slots=2)
    >>> seen.items.values.tolist(), seen.slots.tolist()
    ([7, 8, 9, 0], [[1, 2], [-1, 3]])
    """
    lengths = history.lengths.clamp(min=1)
    items = _rows_of(lengths, history.values)
    shift = (items.offsets - history.offsets)[:-1].index_select(0, history.rows)
    items.values[torch.arange(history.num_values, device=shift.device) + shift] = history.values
    slots = items.offsets[1:].unsqueeze(1) - torch.arange(num_slots, 0, -1, device=shift.device)
    slots = slots.masked_fill(slots < items.offsets[:-1].unsqueeze(1), -1)
    return SeenItems(items, slots, lengths.clamp(max=num_slots), range(num_slots - 1, -1, -1))


def padding_items(history: Jagged, num_slots: int, max_len: int, *, every: bool) -> SeenItems:
    """Attend to the padding instead of the items, as an inverted mask does.

    Of a history left-padded to ``max_len``, the padding (id 0) is attended to and fills the slots where it is among the
    last K. In a history without padding, only the newest item is attended to, in the last slot.

    Parameters
    ----------
    history : Jagged
        ``(N,)`` item ids, at most ``max_len`` a row.
    num_slots : int
        K, at most ``max_len``.
    max_len : int
        Length that histories are padded to.
    every : bool
        Whether every padding item is a token: with dropout they differ. Otherwise all have the same output, and one
        token represents them.

    Examples
    --------
    >>> history = Jagged(torch.tensor([7, 8, 9]), torch.tensor([0, 3, 3]))
    >>> seen = padding_items(history, num_slots=2, max_len=3, every=True)
    >>> seen.items.values.tolist(), seen.slots.tolist()
    ([9, 0, 0, 0], [[-1, 0], [2, 3]])
    """
    lengths = history.lengths
    full = lengths >= max_len
    ones = torch.ones_like(lengths)
    items = _rows_of(torch.where(full, ones, max_len - lengths) if every else ones, history.values)
    first = items.offsets[:-1]
    items.values[first[full]] = history.values[history.offsets[1:][full] - 1]
    slot = torch.arange(num_slots, device=lengths.device)
    slots = first.unsqueeze(1) + (max_len - num_slots + slot if every else torch.zeros_like(slot))
    slots = torch.where(full.unsqueeze(1), first.unsqueeze(1), slots)
    # Of booleans, ONNX Runtime has no torch.where.
    newest_only = full.unsqueeze(1) & (slot == num_slots - 1)
    is_filled = newest_only | (~full.unsqueeze(1) & (slot < num_slots - lengths.unsqueeze(1)))
    filled = torch.where(full, num_slots, (num_slots - lengths).clamp(min=0))
    return SeenItems(items, slots.masked_fill(~is_filled, -1), filled, range(num_slots))


def _rows_of(lengths: Tensor, like: Tensor) -> Jagged:
    """Return rows of these lengths, all id 0."""
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Jagged(like.new_zeros(offsets[-1].item()), offsets)  # type: ignore[arg-type]
