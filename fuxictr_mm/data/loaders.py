"""Batches out of a resident table: a permutation and a few gathers, nothing through Python per row.

Where the rows do not fit, ``fuxictr_mm.data.streaming`` has the loader with the same meaning.

Shape letters: B rows, N history items of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.layers.jagged import Jagged


class Loader(ABC):
    """Iterate over the rows of a split in batches, once per epoch.

    Parameters
    ----------
    num_samples : int
        Rows.
    batch_size : int
        Rows per batch. The last batch may be smaller; when shuffling, a single row left over joins the batch before
        it, because batch norm cannot train on one row.
    shuffle : bool
        A new order each epoch, decided by ``seed`` and the epoch alone.
    seed : int
        Seed of the orders.
    view : callable, optional
        Turns a Batch into what the model takes; see ``fuxictr_mm.data.views``.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        view: Callable[[Batch], Any] | None = None,
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.view = view
        self.epoch = 0
        self._first = 0

    def __len__(self) -> int:
        return len(self._sizes())

    def _sizes(self) -> list[int]:
        """Rows of every batch."""
        full, rest = divmod(self.num_samples, self.batch_size)
        sizes = [self.batch_size] * full + [rest] * (rest > 0)
        if self.shuffle and full and rest == 1:
            sizes[-2:] = [self.batch_size + 1]
        return sizes

    def __iter__(self) -> Iterator[Any]:
        first, self._first = self._first, 0
        for batch in self._batches(first):
            yield batch if self.view is None else self.view(batch)

    @abstractmethod
    def _batches(self, first: int) -> Iterator[Batch]:
        """Yield the batches of this epoch from number ``first`` on."""

    def start_at(self, epoch: int, batch: int) -> None:
        """Let the next pass be epoch ``epoch`` (from 0) and leave out its first ``batch`` batches."""
        self.epoch, self._first = epoch, batch

    def _begin_epoch(self) -> torch.Generator:
        """Return the generator of this epoch's order, and go on to the next epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        return generator


class ResidentLoader(Loader):
    """Iterate over an InteractionTable that lives on the model's device.

    Parameters
    ----------
    table : InteractionTable
        The rows; batches come out on its device.
    batch_size : int
        Rows per batch; this and the options are as in ``Loader``.
    """

    def __init__(self, table: InteractionTable, batch_size: int, **options: Any) -> None:
        super().__init__(len(table), batch_size, **options)
        self.table = table

    def _batches(self, first: int) -> Iterator[Batch]:
        for rows in self.order().split(self._sizes())[first:]:
            yield gather(self.table, rows)

    def order(self) -> Tensor:
        """Return the order of this epoch, ``(rows,)``, and go on to the next epoch."""
        device = self.table.target.device
        if not self.shuffle:
            return torch.arange(self.num_samples, device=device)
        # Drawn on the CPU, so that one seed means one order on every device.
        return torch.randperm(self.num_samples, generator=self._begin_epoch()).to(device)


def gather(table: InteractionTable, rows: Tensor) -> Batch:
    """Return the batch of the given rows ``(B,)``, in their order."""
    starts = table.history_offsets.index_select(0, rows)
    lengths = table.history_offsets.index_select(0, rows + 1) - starts
    offsets = torch.zeros(rows.numel() + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    total = int(offsets[-1])
    shift = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
    places = shift.add_(torch.arange(total, device=rows.device))
    return Batch(
        {name: column.index_select(0, rows) for name, column in table.context.items()},
        table.target.index_select(0, rows),
        Jagged(table.history_values.index_select(0, places), offsets),
        None if table.label is None else table.label.index_select(0, rows),
        None if table.group is None else table.group.index_select(0, rows),
    )
