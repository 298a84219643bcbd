"""Batches out of a resident table: a permutation and a few gathers, nothing through Python per row.

Where the rows do not fit, ``fuxictr_mm.data.streaming`` has the loader with the same meaning.

Shape letters: B rows, N history items of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.layers.jagged import Jagged


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of a split; together they take every row once.

    Parameters
    ----------
    rank : int
        Number of the process, from 0.
    size : int
        How many there are.
    by : {"batch", "block"}
        ``"batch"``: a part of every batch of ``size * batch_size`` rows, so that all take as many steps. ``"block"``:
        adjacent rows of the whole split, so that the parts of all, one after the other, are the split in its order.
    """

    rank: int = 0
    size: int = 1
    by: Literal["batch", "block"] = "batch"

    def part(self, num_rows: int) -> slice:
        """Return which of so many rows are this process's; parts differ by one row at most."""
        return slice(num_rows * self.rank // self.size, num_rows * (self.rank + 1) // self.size)


class Loader(ABC):
    """Iterate over the rows of a split in batches, once per epoch.

    Parameters
    ----------
    num_samples : int
        Rows.
    batch_size : int
        Rows per batch and process. The last batch may be smaller; rows left over join the batch before it where they
        are fewer than the processes, or, when shuffling, a single one, because batch norm cannot train on one row.
    shuffle : bool
        A new order each epoch, decided by ``seed`` and the epoch alone, not by the number of processes.
    seed : int
        Seed of the orders.
    view : callable, optional
        Turns a Batch into what the model takes; see ``fuxictr_mm.data.views``.
    share : Share, optional
        This process's part of the rows, all of them by default.

    Attributes
    ----------
    row : int
        Where in the epoch's order the batches end that have been handed out; the same on all processes that step
        together.

    Raises
    ------
    ConfigError
        There are fewer rows than processes that step together.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        view: Callable[[Batch], Any] | None = None,
        share: Share | None = None,
    ) -> None:
        share = share or Share()
        if share.by == "batch" and num_samples < share.size:
            raise ConfigError(f"{num_samples} rows are too few for {share.size} processes; start fewer")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.view = view
        self.share = share
        self.epoch = 0
        # Rows of the split that all processes of a batch pass over together.
        whole = slice(0, num_samples) if share.by == "batch" else share.part(num_samples)
        self._start, self._stop = whole.start, whole.stop
        self._first = self.row = self._start

    def __len__(self) -> int:
        return len(self.sizes(self._start))

    def sizes(self, row: int = 0) -> list[int]:
        """Return the rows, of all processes together, of every batch from ``row`` of the epoch on."""
        together = self.batch_size * (self.share.size if self.share.by == "batch" else 1)
        full, rest = divmod(self._stop - row, together)
        sizes = [together] * full + [rest] * (rest > 0)
        alone = (self.shuffle and rest == 1) or (self.share.by == "batch" and rest < self.share.size)
        if full and rest and alone:
            sizes[-2:] = [together + rest]
        return sizes

    def __iter__(self) -> Iterator[Any]:
        row, self._first = self._first, self._start
        sizes = self.sizes(row)
        for size, batch in zip(sizes, self._batches(row, sizes), strict=True):
            row += size
            self.row = row
            yield batch if self.view is None else self.view(batch)

    @abstractmethod
    def _batches(self, row: int, sizes: Sequence[int]) -> Iterator[Batch]:
        """Yield this process's part of the batches of this epoch, which begin at ``row`` and have so many rows."""

    def _mine(self, rows: Tensor) -> Tensor:
        """Return this process's part of the rows of a batch."""
        return rows[self.share.part(rows.numel())] if self.share.by == "batch" else rows

    def start_at(self, epoch: int, row: int) -> None:
        """Let the next pass be epoch ``epoch`` (from 0) and leave out its first ``row`` rows."""
        self.epoch, self._first = epoch, row

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

    def _batches(self, row: int, sizes: Sequence[int]) -> Iterator[Batch]:
        for rows in self.order()[row : self._stop].split(list(sizes)):
            yield gather(self.table, self._mine(rows))

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
