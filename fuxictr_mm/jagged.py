"""Jagged tensors: rows of different lengths in one tensor, without padding.

Shape letters: B rows, N entries of all rows, U distinct entries, D dim, H heads, L longest row.

Three rows, the second one empty, the third with a single entry::

    [[a, b, c], [], [d]]   ->   values = [a, b, c, d],  offsets = [0, 3, 3, 4]

The layout is that of ``torch.nested`` (``layout=torch.jagged``) and of TorchRec's ``JaggedTensor``.
Where many entries are equal (popular items in many histories), only the distinct ones are stored:
``values = distinct[index]``. A layer that processes entries one by one does so on ``distinct``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fuxictr_mm import sparse_products
from fuxictr_mm.sparse_products import Pairs


def is_exporting() -> bool:
    """Whether ``torch.export`` traces the model: operations without an ONNX counterpart take their slower form."""
    return getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)()


@dataclass(frozen=True, eq=False)
class Jagged:
    """Rows of entries, of different lengths.

    Parameters
    ----------
    distinct : Tensor
        ``(U, ...)`` the stored entries; with ``index=None`` they are the entries themselves, ``U = N``.
    offsets : Tensor
        ``(B + 1,)`` int64, ``offsets[0] = 0``, non-decreasing; row ``b`` holds entries
        ``offsets[b] .. offsets[b + 1] - 1``. An empty row has two equal offsets.
    index : Tensor, optional
        ``(N,)`` int64, index into ``distinct`` of every entry.

    Examples
    --------
    >>> history = Jagged(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 2, 2, 3]))
    >>> history.lengths.tolist(), history.rows.tolist()
    ([2, 0, 1], [0, 0, 2])
    >>> history.sum().tolist()
    [[3.0], [0.0], [3.0]]
    """

    distinct: Tensor
    offsets: Tensor
    index: Tensor | None = None

    @classmethod
    def of_row(cls, values: Tensor) -> Jagged:
        """Return one row of entries ``(N, ...)``."""
        return cls(values, torch.arange(2, device=values.device) * values.shape[0])

    @property
    def values(self) -> Tensor:
        """``(N, ...)`` every entry, row after row; gathered at every access, as part of the autograd graph."""
        return self.distinct if self.index is None else self.distinct.index_select(0, self.index)

    @property
    def num_rows(self) -> int:
        """B, the number of rows."""
        return self.offsets.numel() - 1

    @property
    def num_values(self) -> int:
        """N, the number of entries."""
        return (self.distinct if self.index is None else self.index).shape[0]

    @cached_property
    def lengths(self) -> Tensor:
        """``(B,)`` number of entries of each row."""
        return self.offsets.diff()

    @cached_property
    def longest(self) -> int:
        """Entries of the longest row; in an export the size of an input, which the graph sets."""
        return int(self.lengths.max()) if self.num_rows else 0

    @cached_property
    def rows(self) -> Tensor:
        """``(N,)`` row index of every entry."""
        if is_exporting():  # the number of rows that end at or before each entry
            ends = self.offsets.new_zeros(self.num_values + 1).index_add(
                0, self.offsets[1:], torch.ones_like(self.offsets[1:])
            )
            return ends.cumsum(0)[:-1]
        batch = torch.arange(self.num_rows, device=self.offsets.device)
        return torch.repeat_interleave(batch, self.lengths, output_size=self.num_values)

    @property
    def places(self) -> Tensor:
        """``(N,)`` index into ``distinct`` of every entry, also where each is stored by itself."""
        return torch.arange(self.num_values, device=self.distinct.device) if self.index is None else self.index

    def pairs(self, heads: int, split: bool) -> Pairs:
        """Return rows and entries as ``Pairs``, the same for every product and sum of these entries."""
        split = split and heads > 1
        if (heads, split) not in self._pairs:
            num_distinct = self.distinct.shape[0]
            self._pairs[heads, split] = Pairs(self.places, self.rows, self.offsets, num_distinct, heads, split)
        return self._pairs[heads, split]

    @cached_property
    def _pairs(self) -> dict[tuple[int, bool], Pairs]:
        return {}

    @cached_property
    def positions(self) -> Tensor:
        """``(N,)`` position of every entry within its row, from 0."""
        entries = torch.arange(self.num_values, device=self.offsets.device)
        return entries - self.offsets[:-1].index_select(0, self.rows)

    @cached_property
    def mask(self) -> Tensor:
        """``(B, longest)`` bool, True for the entries of each row, padded on the right."""
        return torch.arange(self.longest, device=self.offsets.device) < self.lengths.unsqueeze(1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Jagged:
        """Apply a function that processes entries one by one, to the distinct entries only."""
        return Jagged(function(self.distinct), self.offsets, self.index)

    def with_values(self, values: Tensor) -> Jagged:
        """Return the same rows with other entries, ``values`` of shape ``(N, ...)``."""
        return Jagged(values, self.offsets)

    def sum(self) -> Tensor:
        """``(B, ...)`` sum of each row's entries, zero for an empty row."""
        values = self.values
        return values.new_zeros(self.num_rows, *values.shape[1:]).index_add(0, self.rows, values)

    def softmax(self) -> Jagged:
        """Softmax over each row's entries; an empty row stays empty. Entries of shape ``(N,)`` or ``(N, H)``.

        Half precision is converted to float32, as ``torch.softmax`` does under autocast.
        """
        scores = self.values.to(torch.promote_types(self.distinct.dtype, torch.float32))
        rows = self.rows.view(-1, *[1] * (scores.dim() - 1)).expand_as(scores)
        peak = scores.new_full((self.num_rows, *scores.shape[1:]), -torch.inf)
        peak = peak.scatter_reduce(0, rows, scores.detach(), "amax")
        weights = (scores - peak.index_select(0, self.rows)).exp()
        total = self.with_values(weights).sum()
        return self.with_values(weights / total.index_select(0, self.rows))

    def to_padded(self, length: int | None = None, *, side: str = "left") -> tuple[Tensor, Tensor]:
        """Return a padded tensor.

        Parameters
        ----------
        length : int, optional
            L; by default the length of the longest row. A longer row keeps its last L entries.
        side : {"left", "right"}
            On which side the padding is.

        Returns
        -------
        padded : Tensor
            ``(B, L, ...)``, zero at padding.
        mask : Tensor
            ``(B, L)`` bool, True for a real entry.
        """
        if length is None:
            length = self.longest
        from_end = self.offsets[1:].index_select(0, self.rows) - torch.arange(
            self.num_values, device=self.offsets.device
        )
        keep = from_end <= length
        kept = self.lengths.clamp(max=length).index_select(0, self.rows)
        column = length - from_end if side == "left" else kept - from_end
        values = self.values
        padded = values.new_zeros(self.num_rows, length, *values.shape[1:])
        padded = padded.index_put((self.rows[keep], column[keep]), values[keep])
        mask = torch.zeros(self.num_rows, length, dtype=torch.bool, device=values.device)
        mask[self.rows[keep], column[keep]] = True
        return padded, mask

    def to_nested(self) -> Tensor:
        """Return a ``torch.nested`` tensor of the jagged layout."""
        return torch.nested.nested_tensor_from_jagged(self.values, self.offsets)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Jagged:
        """Move to a device."""
        index = None if self.index is None else self.index.to(device, non_blocking=non_blocking)
        return Jagged(
            self.distinct.to(device, non_blocking=non_blocking),
            self.offsets.to(device, non_blocking=non_blocking),
            index,
        )


def weighted_sum(history: Jagged, weights: Tensor) -> Tensor:
    r"""Weighted sum of each row's entries.

    .. math:: o_{b, h} = \sum_{n \in b} w_{n, h} \, s_n

    Reads the distinct entries in place: neither the ``(N, D)`` entries nor their ``(N, H, D)`` products with the
    weights are materialised.

    Parameters
    ----------
    history : Jagged
        Entries of shape ``(.., D)``.
    weights : Tensor
        ``(N,)`` or ``(N, H)``, one weight per entry, or per entry and head.

    Returns
    -------
    Tensor
        ``(B, D)`` or ``(B, H, D)``, zero for an empty row, in the promoted dtype of entries and weights.

    Examples
    --------
    >>> history = Jagged(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 3, 3]), torch.tensor([0, 1, 1]))
    >>> weighted_sum(history, torch.tensor([1.0, 0.5, 0.5])).tolist()
    [[4.0, 6.0], [0.0, 0.0]]
    """
    dtype = torch.promote_types(history.distinct.dtype, weights.dtype)
    entries = history.distinct.to(dtype)
    index = history.places
    num_heads = 1 if weights.dim() == 1 else weights.shape[1]
    if is_exporting():
        heads = weights.to(dtype).view(-1, num_heads).unbind(1)
        pooled = [history.with_values(history.values * head_N.unsqueeze(1)).sum() for head_N in heads]
        return pooled[0] if weights.dim() == 1 else torch.stack(pooled, dim=1)
    if has_sparse_kernels(entries):
        exact = torch.promote_types(dtype, torch.float32)
        values = weights.to(exact).reshape(-1, num_heads).t().flatten()
        pooled_HBD = sparse_products.sums(values, entries.to(exact), history.pairs(num_heads, split=False))
        pooled_HBD = pooled_HBD.to(dtype).view(num_heads, history.num_rows, entries.shape[1])
        return pooled_HBD[0] if weights.dim() == 1 else pooled_HBD.transpose(0, 1)
    # One bag per head and row, head after head, so that one backward pass accumulates the gradients of all heads.
    first = torch.arange(num_heads, device=entries.device).unsqueeze(1) * history.num_values
    pooled_HBD = F.embedding_bag(
        index.repeat(num_heads),
        entries,
        (first + history.offsets[:-1]).flatten(),
        mode="sum",
        per_sample_weights=weights.t().flatten().to(dtype),
    ).view(num_heads, history.num_rows, entries.shape[1])
    return pooled_HBD[0] if weights.dim() == 1 else pooled_HBD.transpose(0, 1)


def has_sparse_kernels(tensor: Tensor) -> bool:
    """Whether sums and products of entries are those of ``sparse_products``: on a CPU, without the compiler."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


class _SegmentProducts(torch.autograd.Function):
    """Products of the query of a row with its entries, of which no ``(N, D)`` exists for more than a chunk."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, index: Tensor, rows: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(queries, keys, index, rows)
        ctx.heads = heads
        products = queries.new_empty(index.shape[0], heads)
        for output, i, r in zip(*_chunks(products, index, rows), strict=True):
            product = keys.index_select(0, i).mul_(queries.index_select(0, r))
            torch.sum(product.unflatten(1, (heads, -1)), dim=2, out=output)
        return products

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, index, rows = ctx.saved_tensors
        of_queries, of_keys = torch.zeros_like(queries), torch.zeros_like(keys)
        for g, i, r in zip(*_chunks(gradient.unsqueeze(2), index, rows), strict=True):
            entries = keys.index_select(0, i)
            entries.unflatten(1, (ctx.heads, -1)).mul_(g)
            of_queries.index_add_(0, r, entries)
            entries = queries.index_select(0, r)
            entries.unflatten(1, (ctx.heads, -1)).mul_(g)
            of_keys.index_add_(0, i, entries)
        return of_queries, of_keys, None, None, None


#: Entries of a chunk, which bounds the memory of a GPU.
CHUNK = 2**16


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Split tensors of N entries each."""
    return [tensor.split(CHUNK) for tensor in tensors]


def segment_products(queries: Tensor, history: Jagged, num_heads: int | None = None) -> Tensor:
    r"""Inner products of the query of each row with the row's entries, :math:`q_b \cdot s_n`, per head.

    Neither forward nor backward materialise the ``(N, D)`` entries of all rows.

    Parameters
    ----------
    queries : Tensor
        ``(B, D)``.
    history : Jagged
        Entries of shape ``(.., D)``.
    num_heads : int, optional
        H, of which each has ``D / H`` of the dimensions.

    Returns
    -------
    Tensor
        ``(N,)``, or ``(N, H)`` with ``num_heads``, in the promoted dtype of queries and history.

    Examples
    --------
    >>> history = Jagged(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 3, 3]), torch.tensor([0, 1, 1]))
    >>> segment_products(torch.tensor([[1.0, -1.0], [0.0, 0.0]]), history).tolist()
    [-1.0, -1.0, -1.0]
    """
    if torch.compiler.is_compiling() or is_exporting():
        products = queries.index_select(0, history.rows) * history.values
        return products.sum(dim=1) if num_heads is None else products.unflatten(1, (num_heads, -1)).sum(dim=2)
    heads = num_heads or 1
    if has_sparse_kernels(queries):
        products = _sparse_products(queries.unflatten(1, (heads, -1)), history, split=True)
    else:
        dtype = torch.promote_types(queries.dtype, history.distinct.dtype)
        entries = history.distinct.to(dtype)
        products = _SegmentProducts.apply(queries.to(dtype), entries, history.places, history.rows, heads)
    return products.squeeze(1) if num_heads is None else products


def multi_query_products(queries: Tensor, history: Jagged) -> Tensor:
    """Inner products ``(N, H)`` of the H queries ``(B, H, D)`` of each row with the row's entries ``(.., D)``.

    Reads queries and distinct entries in place where ``has_sparse_kernels``; elsewhere gathers them.

    Examples
    --------
    >>> history = Jagged(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 2]))
    >>> multi_query_products(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]]), history).tolist()
    [[1.0, 2.0, 3.0], [3.0, 4.0, 7.0]]
    """
    if has_sparse_kernels(queries):
        return _sparse_products(queries, history, split=False)
    return (queries.index_select(0, history.rows) * history.values.unsqueeze(1)).sum(dim=2)


def _sparse_products(queries: Tensor, history: Jagged, split: bool) -> Tensor:
    """Return the products of queries ``(B, H, D)``; ``split`` entries have H parts of D, one for each query."""
    dtype = torch.promote_types(queries.dtype, history.distinct.dtype)
    exact = torch.promote_types(dtype, torch.float32)
    num_heads = queries.shape[1]
    entries = history.distinct.to(exact)
    if split:
        entries = entries.unflatten(1, (num_heads, -1)).transpose(0, 1).flatten(0, 1)
    of_heads = queries.to(exact).transpose(0, 1).flatten(0, 1)
    products = sparse_products.products(of_heads, entries, history.pairs(num_heads, split))
    return products.to(dtype).view(num_heads, -1).t()


def mean_pooling(history: Jagged) -> Tensor:
    """Mean of each row's entries of shape ``(.., D)``, ``(B, D)``; zero for an empty row.

    Examples
    --------
    >>> mean_pooling(Jagged(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 2, 2]))).tolist()
    [[1.5], [0.0]]
    """
    weights = history.lengths.clamp(min=1).to(history.distinct.dtype).reciprocal()
    return weighted_sum(history, weights.index_select(0, history.rows))
