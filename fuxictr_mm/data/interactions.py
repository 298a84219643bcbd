"""Interactions: context, target item, history and label of each impression, one tensor per column.

Shape letters: R rows, N history items of all rows, T labels of a row, one for each task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fuxictr_mm.jagged import Jagged

#: A context column: ``(R,)`` ids or numbers, ``(R, D)`` embeddings, or a sequence of ids per row.
Column = Tensor | Jagged


@dataclass(frozen=True)
class InteractionTable:
    """Interactions as columns. Without items, every target is the padding item 0 and every history is empty."""

    #: ``(R,)`` int32 ids or float32 numbers, ``(R, D)`` float32 embeddings, or int32 sequences without padding. Further
    #: histories are sequences of items; those along a history have one entry for each of its items.
    context: dict[str, Column]
    target: Tensor  #: ``(R,)`` int32, the item that was shown.
    history_values: Tensor  #: ``(N,)`` int32, the items of all histories, oldest first, without padding.
    history_offsets: Tensor  #: ``(R + 1,)`` int64, offsets of each row's history.
    #: ``(R,)`` float32, 1 for a click; ``(R, T)`` of several labels, NaN for one that is missing.
    label: Tensor | None = None
    group: Tensor | None = None  #: ``(R,)`` int64, the group of each row, for metrics by group.
    source: str = "interactions"  #: Where the rows come from, for errors.
    weight: Tensor | None = None  #: ``(R,)`` float32, the weight of each row in the loss.

    def __len__(self) -> int:
        return self.target.shape[0]

    @property
    def history(self) -> Jagged:
        """The items of all histories."""
        return Jagged(self.history_values, self.history_offsets)

    @property
    def num_bytes(self) -> int:
        """Size of all columns in bytes."""
        tensors = [self.target, self.history_values, self.history_offsets]
        for column in self.context.values():
            tensors += [column.values, column.offsets] if isinstance(column, Jagged) else [column]
        tensors += [t for t in (self.label, self.group, self.weight) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def has_groups(self) -> bool:
        """Whether there are groups."""
        return self.group is not None

    def labels_and_groups(self) -> tuple[Tensor, Tensor | None]:
        """Return labels and groups, which metrics need besides predictions; labels must exist."""
        assert self.label is not None
        return self.label, self.group

    def to(self, device: torch.device | str, non_blocking: bool = False) -> InteractionTable:
        """Move every column to a device."""
        return self._map(lambda column: column.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> InteractionTable:
        """Copy every column to pinned memory."""

        def pin(column: Column) -> Column:
            if isinstance(column, Jagged):
                return Jagged(column.values.pin_memory(), column.offsets.pin_memory())
            return column.pin_memory()

        return self._map(pin)

    def slice(self, start: int, stop: int) -> InteractionTable:
        """Return rows ``start`` to ``stop - 1``; all columns but the offsets are not copied."""

        def cut(column: Column) -> Column:
            if not isinstance(column, Jagged):
                return column[start:stop]
            first, last = int(column.offsets[start]), int(column.offsets[stop])
            return Jagged(column.values[first:last], column.offsets[start : stop + 1] - first)

        return self._map(cut)

    def _map(self, change: Callable[[Any], Any]) -> InteractionTable:
        history = change(self.history)
        return replace(
            self,
            context={name: change(column) for name, column in self.context.items()},
            target=change(self.target),
            history_values=history.values,
            history_offsets=history.offsets,
            label=None if self.label is None else change(self.label),
            group=None if self.group is None else change(self.group),
            weight=None if self.weight is None else change(self.weight),
        )


def concatenate(chunks: Iterable[InteractionTable]) -> InteractionTable:
    """Concatenate tables; chunks that nobody else refers to are freed column by column, to bound the peak memory."""
    columns: dict[tuple[str, str], list[Tensor]] = {}
    source = ""
    for chunk in chunks:
        source = source or chunk.source
        found = {("", "target"): chunk.target, **_parts("", chunk.history)}
        for name, column in chunk.context.items():
            found |= _parts(name, column)
        of_rows = {"label": chunk.label, "group": chunk.group, "weight": chunk.weight}
        found |= {("", name): column for name, column in of_rows.items() if column is not None}
        for key, column in found.items():
            columns.setdefault(key, []).append(column)
    # Popped one by one: two copies of all columns would double the peak memory.
    joined = {key: torch.cat(columns.pop(key)) for key in list(columns)}
    context: dict[str, Column] = {}
    for kind, name in joined:
        if kind == "dense":
            context[name] = joined[kind, name]
        elif kind == "values" and name:
            context[name] = Jagged(joined[kind, name], offsets_of(joined["lengths", name]))
    return InteractionTable(
        context,
        joined["", "target"],
        joined["values", ""],
        offsets_of(joined["lengths", ""]),
        joined.get(("", "label")),
        joined.get(("", "group")),
        source,
        joined.get(("", "weight")),
    )


def _parts(name: str, column: Column) -> dict[tuple[str, str], Tensor]:
    """Return what is concatenated of a column."""
    if isinstance(column, Jagged):
        return {("values", name): column.values, ("lengths", name): column.lengths}
    return {("dense", name): column}


def offsets_of(lengths: Tensor) -> Tensor:
    """Return the offsets ``(R + 1,)`` of rows of these lengths."""
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return offsets
