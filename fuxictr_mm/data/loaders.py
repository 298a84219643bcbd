"""Batches of a split that is kept in memory: a permutation and a few gathers, no Python loop over rows.

``fuxictr_mm.data.streaming`` holds the loader for splits that do not fit into memory.

Shape letters: B rows of a batch, N history items of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.data.interactions import Column, InteractionTable, offsets_of
from fuxictr_mm.data.shards import Shard, local_sizes
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.jagged import Jagged


class Loader(ABC):
    """Iterate over the rows of a split in batches, once per epoch.

    Parameters
    ----------
    num_samples : int
        Number of rows of all ranks.
    batch_size : int
        Rows per batch and rank. The last batch may be smaller. If it has fewer rows than there are virtual streams, or
        ranks without streams (or a single one while shuffling, since batch norm cannot train on one row), it is merged
        into the batch before it.
    shuffle : bool
        A new order for each epoch, which depends on ``seed`` and the epoch only, not on the number of ranks.
    seed : int
        Seed of the orders.
    stream : int, optional
        Number of a virtual stream, which has its own orders.
    view : callable, optional
        Converts a Batch to the batch format that the model takes; see ``fuxictr_mm.data.batch``.
    shard : Shard, optional
        The part of every global batch that this rank gets; all of it by default.

    Attributes
    ----------
    row : int
        Position in the epoch's order after the last batch that was yielded; the same on all ranks.
    global_size : int
        Rows per batch of all ranks. A resumed run sets that of the ranks before, of which each new one has its part.

    Raises
    ------
    ConfigError
        Fewer rows than ranks.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        stream: int | None = None,
        view: Callable[[Batch], Any] | None = None,
        shard: Shard | None = None,
    ) -> None:
        shard = shard or Shard()
        if shard.size > 1 and num_samples < shard.size:
            raise ConfigError(f"{num_samples} rows are too few for {shard.size} processes; start fewer")
        assert shuffle or shard.streams is None
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.stream = stream
        self.view = view
        self.shard = shard
        self.global_size = batch_size * shard.size
        self.epoch = 0
        self._first = self.row = 0

    def __len__(self) -> int:
        return len(self.sizes())

    def sizes(self, row: int = 0) -> list[int]:
        """Return the global size of every batch of the epoch from position ``row`` on.

        Fewer rows than ranks that are left by a run of fewer ranks are in no batch.
        """
        full, rest = divmod(self.num_samples - row, self.global_size)
        sizes = [self.global_size] * full + [rest] * (rest > 0)
        # By the streams, which any number of ranks has in common, so that their batches are the same.
        too_small = (self.shuffle and rest == 1) or rest < (self.shard.streams or self.shard.size)
        if full and rest and too_small:
            sizes[-2:] = [self.global_size + rest]
        return [size for size in sizes if size >= self.shard.size]

    def __iter__(self) -> Iterator[Any]:
        row, self._first = self._first, 0
        sizes = self.sizes(row)
        if not sizes:
            self.epoch += self.shuffle
            return
        for size, batch in zip(sizes, self._batches(row, sizes), strict=True):
            row += size
            self.row = row
            yield batch if self.view is None else self.view(batch)

    @abstractmethod
    def _batches(self, row: int, sizes: Sequence[int]) -> Iterator[Batch]:
        """Yield this rank's part of the epoch's batches of these global sizes, from position ``row`` on."""

    def start_at(self, epoch: int, row: int) -> None:
        """Let the next pass be epoch ``epoch`` (from 0), starting at position ``row`` of its order."""
        self.epoch, self._first = epoch, row

    def _begin_epoch(self) -> torch.Generator:
        """Return the generator of this epoch's order and advance to the next epoch."""
        generator = self._generator(self.stream)
        self.epoch += 1
        return generator

    def _generator(self, stream: int | None) -> torch.Generator:
        seed = self.seed * 1_000_003 + self.epoch
        if stream is not None:
            seed = int(np.random.SeedSequence([self.seed, self.epoch, stream]).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator().manual_seed(seed)


class InMemoryLoader(Loader):
    """Iterate over an InteractionTable on the model's device.

    Parameters
    ----------
    table : InteractionTable
        The rows; batches are on its device. With virtual streams, those of this rank's streams only, one after other.
    batch_size : int
        Rows per batch. This and the options are those of ``Loader``.
    num_samples : int, optional
        Number of rows of all ranks, where the table has only this rank's.
    """

    def __init__(
        self, table: InteractionTable, batch_size: int, *, num_samples: int | None = None, **options: Any
    ) -> None:
        super().__init__(len(table) if num_samples is None else num_samples, batch_size, **options)
        assert len(table) == sum(rows.stop - rows.start for rows in self.shard.train_rows(self.num_samples))
        self.table = table

    def _batches(self, row: int, sizes: Sequence[int]) -> Iterator[Batch]:
        order = self.order()
        if self.shard.streams is None:
            parts = [rows[self.shard.part(len(rows))] for rows in order[row:].split(list(sizes))]
        else:
            parts = list(order[self.shard.rows_before(row) :].split(local_sizes(self.shard, row, sizes)))
        if self.table.target.device.type == "cpu" or not parts:
            yield from (gather(self.table, rows) for rows in parts)
        else:  # the sizes are read from the device once per epoch, so that no batch waits for it
            for rows, size in zip(parts, history_sizes(self.table, parts), strict=True):
                yield gather(self.table, rows, size)

    def order(self) -> Tensor:
        """Return the order of this epoch, ``(rows of the table,)``, and advance to the next epoch."""
        device = self.table.target.device
        # Orders are sampled on the CPU, so that one seed gives one order on every device.
        if self.shard.streams is not None:
            start, orders = 0, []
            for stream, rows in self.shard.stream_rows(self.num_samples).items():
                length = rows.stop - rows.start
                orders.append(start + torch.randperm(length, generator=self._generator(stream)))
                start += length
            self.epoch += 1
            return torch.cat(orders)[self.shard.interleave(0, self.num_samples)].to(device)
        if not self.shuffle:
            return torch.arange(self.num_samples, device=device)
        return torch.randperm(self.num_samples, generator=self._begin_epoch()).to(device)


def history_sizes(table: InteractionTable, parts: Sequence[Tensor]) -> list[int]:
    """Return the number of history items of every batch of rows, none of which is empty."""
    lengths = table.history_offsets.diff().index_select(0, torch.cat(list(parts)))
    stops = torch.tensor([len(rows) for rows in parts]).cumsum(0).to(lengths.device)
    totals = lengths.cumsum(0).index_select(0, stops - 1)
    return totals.diff(prepend=totals.new_zeros(1)).tolist()


def gather(table: InteractionTable, rows: Tensor, num_history_items: int | None = None) -> Batch:
    """Return the batch of the given rows ``(B,)``, in their order.

    Where the number of their history items is given, a GPU is not waited for.
    """
    return Batch(
        {name: gather_column(column, rows) for name, column in table.context.items()},
        table.target.index_select(0, rows),
        _gather_jagged(table.history, rows, num_history_items),
        None if table.label is None else table.label.index_select(0, rows),
        None if table.group is None else table.group.index_select(0, rows),
        None if table.weight is None else table.weight.index_select(0, rows),
    )


def take_rows(table: InteractionTable, rows: Tensor, source: str | None = None) -> InteractionTable:
    """Return a table of the given rows ``(B,)``, in their order; errors name it by ``source``, the table's if None."""
    return as_table(gather(table, rows), table.source if source is None else source)


def as_table(batch: Batch, source: str) -> InteractionTable:
    """Return a batch as a table."""
    history = batch.history.values, batch.history.offsets
    return InteractionTable(
        batch.context, batch.target, *history, batch.label, batch.group, source=source, weight=batch.weight
    )


def gather_column(column: Column, rows: Tensor) -> Column:
    """Return the given rows ``(B,)`` of a context column, in their order."""
    return _gather_jagged(column, rows) if isinstance(column, Jagged) else column.index_select(0, rows)


def _gather_jagged(column: Jagged, rows: Tensor, total: int | None = None) -> Jagged:
    starts = column.offsets.index_select(0, rows)
    lengths = column.offsets.index_select(0, rows + 1) - starts
    offsets = offsets_of(lengths)
    if total is None:
        total = int(offsets[-1])
    shift = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
    index_N = shift.add_(torch.arange(total, device=rows.device))
    return Jagged(column.values.index_select(0, index_N), offsets)
