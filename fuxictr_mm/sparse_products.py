"""Products of rows with their entries, and sums of entries per row, as products with a sparse matrix, on the CPU.

Shape letters: B rows, N entries of all rows, U distinct entries, D dim, H heads.

The sparse matrix has a row for every head and row, a column for every distinct entry, and a value for every head and
entry. Sums of entries are its product with the entries, inner products are those of which it samples N, and each is
the gradient of the other. Torch's kernels for both read rows and entries in place. A small batch takes torch's own
gradients instead, of sums and of gathered products: they are fewer operations.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

with warnings.catch_warnings():  # torch says once per process that this layout is in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(
        torch.zeros(1).long(), torch.zeros(0).long(), torch.zeros(0), (0, 0), check_invariants=False
    )

#: Multiplications of values and entries below which a batch takes the time of its operations' calls.
SMALL = 2**17


@dataclass(frozen=True)
class Pairs:
    """Where the values of the sparse matrix are: those of a row side by side, head after head.

    What a product or sum reads of them is found once for all products and sums of the same pairs.
    """

    index: Tensor  #: ``(N,)`` distinct entry of every entry.
    rows: Tensor  #: ``(N,)`` row of every entry.
    offsets: Tensor  #: ``(B + 1,)`` first entry of every row.
    num_distinct: int  #: U.
    heads: int  #: H.
    split: bool  #: Whether every head has its own entries, so that the matrix has H U columns, head after head.

    @cached_property
    def columns(self) -> Tensor:
        """Return the column of every value, ``(H N,)``."""
        return self._of_heads(self.index, self.num_distinct if self.split else 0)

    @cached_property
    def starts(self) -> Tensor:
        """Return the first value of every row of the matrix, ``(H B,)``."""
        return self._of_heads(self.offsets[:-1], self.index.shape[0])

    def products(self, queries: Tensor, entries: Tensor) -> Tensor:
        """Return inner products ``(H N,)`` of queries ``(H B, D)`` and entries ``(U, D)`` or ``(H U, D)``."""
        columns = self.columns
        if columns.shape[0] > queries.shape[0] * entries.shape[0]:
            # Rows repeat entries, and torch allocates no more values than the dense matrix has.
            return self.gathered_products(queries, entries)
        ends = torch.cat([self.starts, self.offsets.new_tensor([columns.shape[0]])])
        zeros, shape = queries.new_zeros(columns.shape[0]), (queries.shape[0], entries.shape[0])
        matrix = torch.sparse_csr_tensor(ends, columns, zeros, shape, check_invariants=False)
        return torch.sparse.sampled_addmm(matrix, queries, entries.t(), beta=0.0).values()

    def gathered_products(self, queries: Tensor, entries: Tensor) -> Tensor:
        """Return ``products`` of a copy of the query and the entry of every value."""
        return (queries.index_select(0, self._rows_of_values) * entries.index_select(0, self.columns)).sum(dim=1)

    def sums(self, values: Tensor, entries: Tensor) -> Tensor:
        """Return the sums ``(H B, D)`` of entries weighted by the values ``(H N,)``, per row of the matrix."""
        return F.embedding_bag(self.columns, entries, self.starts, mode="sum", per_sample_weights=values)

    def sums_of_rows(self, values: Tensor, queries: Tensor) -> Tensor:
        """Return the sums of queries ``(H B, D)`` weighted by the values, per column of the matrix."""
        order, first, rows = self._by_column
        weights = values.index_select(0, order)
        return F.embedding_bag(rows, queries, first, mode="sum", per_sample_weights=weights)

    @cached_property
    def _rows_of_values(self) -> Tensor:
        return self._of_heads(self.rows, self.offsets.shape[0] - 1)

    @cached_property
    def _by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """The values in the order of their columns, where those of each column start, and the row of each."""
        order, first = _grouped(self.index, self.num_distinct)
        if self.split or self.heads == 1:
            of_column, first = self._of_heads(order, order.shape[0]), self._of_heads(first, order.shape[0])
        else:  # the values of all heads are those of one column
            of_column = (order.unsqueeze(1) + order.shape[0] * torch.arange(self.heads)).flatten()
            first = first * self.heads
        return of_column, first, self._rows_of_values.index_select(0, of_column)

    def _of_heads(self, numbers: Tensor, step: int) -> Tensor:
        if self.heads == 1:  # a small batch takes the time of its operations' calls
            return numbers.long()
        return (numbers + step * torch.arange(self.heads).unsqueeze(1)).flatten()


def products(queries: Tensor, entries: Tensor, pairs: Pairs) -> Tensor:
    """Return inner products ``(H N,)`` of queries and entries of one dtype, float32 or float64; see ``Pairs``."""
    if _is_small(entries, pairs):
        return pairs.gathered_products(queries, entries)
    return _Bilinear.apply(queries, entries, pairs, False)


def sums(values: Tensor, entries: Tensor, pairs: Pairs) -> Tensor:
    """Return weighted sums ``(H B, D)`` of entries, of the same dtype as the values ``(H N,)``; see ``Pairs``."""
    if _is_small(entries, pairs):
        return pairs.sums(values, entries)
    return _Bilinear.apply(values, entries, pairs, True)


@contextmanager
def as_in_large_batches() -> Iterator[None]:
    """Take the matrix for small batches too within a block, so that what they keep grows as in large ones."""
    global SMALL
    kept, SMALL = SMALL, 0
    try:
        yield
    finally:
        SMALL = kept


def _is_small(entries: Tensor, pairs: Pairs) -> bool:
    """Whether torch's own gradients, fewer operations of more work, take less time than products with the matrix."""
    return pairs.index.shape[0] * pairs.heads * entries.shape[1] < SMALL


def sums_by(index: Tensor, values: Sequence[Tensor], count: int) -> list[Tensor]:
    """Return the sums ``(count, D)`` of each of the values ``(N, D)`` of the same index ``(N,)``, rounded once."""
    order, first = _grouped(index, count)
    return [F.embedding_bag(order, numbers, first, mode="sum") for numbers in values]


def bag_sums(table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
    """Return the sums ``(B, D)`` of the rows of a table ``(V, D)`` that have the ids ``(B, L)``.

    The row ``padding`` has no gradient.
    """
    return _BagSums.apply(table, ids, padding)


def rows_of(table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
    """Return the rows ``(.., D)`` of a table ``(V, D)`` that have the ids ``(..)``, as ``F.embedding`` does.

    Its gradient takes a third to two thirds of the time, and has the same sums in the same order.
    """
    return _Rows.apply(table, ids.long(), padding)


def _grouped(index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the positions ``(N,)`` in the order of their index, and where those of each index start, ``(count,)``."""
    # Keys that differ, so that the sort is stable; NumPy's takes a tenth of the time of torch's.
    keys = index.numpy().astype(np.int64) << 32
    keys += np.arange(keys.shape[0])
    keys.sort()
    keys &= 2**32 - 1
    counts = np.bincount(index.numpy(), minlength=count)
    return torch.from_numpy(keys), torch.from_numpy(counts.cumsum() - counts)


class _Bilinear(torch.autograd.Function):
    """``Pairs.products`` of queries and entries, or ``Pairs.sums`` of values and entries, and the gradients."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, entries: Tensor, pairs: Pairs, is_sum: bool) -> Tensor:
        ctx.pairs, ctx.is_sum = pairs, is_sum
        ctx.save_for_backward(first, entries)
        return (pairs.sums if is_sum else pairs.products)(first, entries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        first, entries = ctx.saved_tensors
        gradient, pairs = gradient.contiguous(), ctx.pairs
        of_first = of_entries = None
        if ctx.needs_input_grad[0]:
            of_first = (pairs.products if ctx.is_sum else pairs.sums)(gradient, entries)
        if ctx.needs_input_grad[1]:
            of_entries = pairs.sums_of_rows(*((first, gradient) if ctx.is_sum else (gradient, first)))
        return of_first, of_entries, None, None


class _BagSums(torch.autograd.Function):
    """``bag_sums`` and its gradient, which reads the gradients of the sums in place."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.ids, ctx.count, ctx.padding = ids, table.shape[0], padding
        return F.embedding_bag(ids.long(), table, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        order, first = _grouped(ctx.ids.flatten(), ctx.count)
        rows = order.div_(ctx.ids.shape[1], rounding_mode="floor")
        of_table = F.embedding_bag(rows, gradient.contiguous(), first, mode="sum")
        if ctx.padding is not None:
            of_table[ctx.padding] = 0
        return of_table, None, None


class _Rows(torch.autograd.Function):
    """``rows_of`` and its gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.shape, ctx.padding = table.shape, padding
        ctx.save_for_backward(ids)
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        of_table = gradient.new_zeros(ctx.shape)
        # Of gradients that are columns of those of all fields, index_add_ reads numbers one by one.
        of_table.index_add_(0, ids.flatten(), gradient.flatten(0, -2).contiguous())
        if ctx.padding is not None:
            of_table[ctx.padding] = 0
        return of_table, None, None
