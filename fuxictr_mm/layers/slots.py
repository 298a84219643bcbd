"""Which items of a history a sequence encoder sees, and which outputs stand in its fixed number of slots.

Shape letters: B rows, N history items, M tokens (items that are seen), K slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fuxictr_mm.layers.jagged import Jagged
from fuxictr_mm.layers.staircase import Span, merge_spans


@dataclass(frozen=True)
class SeenItems:
    """The tokens of an encoder and where their outputs go.

    Parameters
    ----------
    items : Jagged
        ``(M,)`` item ids, one or more in every row.
    slots : Tensor
        ``(B, K)`` which token stands in each slot, -1 for none.
    filled : Tensor
        ``(B,)`` how many slots are filled, counted in the order of ``fill_order``.
    fill_order : sequence of int
        Slots, those first that more rows fill.
    """

    items: Jagged
    slots: Tensor
    filled: Tensor
    fill_order: Sequence[int]

    def spans(self, before: int, width: int, after: int) -> list[Span]:
        """Return where rows sorted by ``filled`` are: ``before`` columns, K slots of ``width`` each, ``after`` columns.

        Examples
        --------
        >>> history = Jagged(torch.tensor([7, 8, 9]), torch.tensor([0, 3, 3]))
        >>> last_items(history, num_slots=2).spans(before=5, width=4, after=3)
        [Span(start=0, stop=5, rows=2), Span(start=9, stop=16, rows=2), Span(start=5, stop=9, rows=1)]
        """
        num_rows, num_slots = self.slots.shape
        end = before + num_slots * width
        counts = (self.filled.unsqueeze(1) > torch.arange(num_slots, device=self.filled.device)).sum(0).tolist()
        slots = [
            Span(before + slot * width, before + (slot + 1) * width, rows)
            for slot, rows in zip(self.fill_order, counts, strict=True)
        ]
        return merge_spans([Span(0, before, num_rows), Span(end, end + after, num_rows), *slots])


def last_items(history: Jagged, num_slots: int) -> SeenItems:
    """Let every real item be seen, the last K in the slots, the newest in the last one.

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
    """Let the padding be seen in place of the items: what a mask that is taken for its opposite does.

    Of a history padded on the left to ``max_len``, the padding (id 0) is seen and fills the slots where it stands among
    the last K. A history without padding is seen by its newest item alone, in the last slot.

    Parameters
    ----------
    history : Jagged
        ``(N,)`` item ids, at most ``max_len`` a row.
    num_slots : int
        K, at most ``max_len``.
    max_len : int
        Length that histories are padded to.
    every : bool
        Every padding item as a token of its own: with dropout they differ. Without, all have one output, and one of
        them stands for all.

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
    is_filled = torch.where(full.unsqueeze(1), slot == num_slots - 1, slot < num_slots - lengths.unsqueeze(1))
    filled = torch.where(full, num_slots, (num_slots - lengths).clamp(min=0))
    return SeenItems(items, slots.masked_fill(~is_filled, -1), filled, range(num_slots))


def _rows_of(lengths: Tensor, like: Tensor) -> Jagged:
    """Return rows of these lengths, all id 0."""
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return Jagged(like.new_zeros(int(offsets[-1])), offsets)
