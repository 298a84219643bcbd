"""Batches of a split on disk, shuffled in a buffer of bounded size.

The files' row groups, in a random order, form a stream of rows. Every round appends new rows to the shuffle buffer,
permutes it, and emits all but ``rows_per_round`` of its rows as batches; the others stay for the next round. The order
depends on the seed, the epoch and the number of rows only, so a run can resume at any row by replaying the permutations
without reading the rows that were emitted before.

Shape letters: R rows of the buffer, K rows that stay in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fuxictr_mm.data import parquet
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.interactions import InteractionTable, concatenate
from fuxictr_mm.data.loaders import Loader, gather, take_rows
from fuxictr_mm.data.prefetch import Prefetcher

logger = logging.getLogger(__name__)

#: Rows of the shuffle buffer; about 70 MB for rows like MicroLens'.
BUFFER_ROWS = 1_000_000


class StreamingLoader(Loader):
    """Iterate over interactions on disk in memory bounded by the shuffle buffer, whatever the files' size.

    Every row is yielded once per epoch. Without shuffling, the order is that of the files. Memory holds up to three
    times half of ``buffer_rows`` and the chunk being decoded. On a GPU the buffer is on the device, and prefetched
    rows are in pinned memory.

    Parameters
    ----------
    files : InteractionFiles
        The rows on disk.
    batch_size : int
        Rows per batch. This and the other options are those of ``Loader``.
    buffer_rows : int
        Rows among which the next batch is sampled. Row groups should be smaller: rows of a larger one are mixed only
        with rows near them.
    device : torch.device or str
        Device of the batches.
    """

    def __init__(
        self,
        files: InteractionFiles,
        batch_size: int,
        *,
        buffer_rows: int = BUFFER_ROWS,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        super().__init__(len(files), batch_size, **options)
        self.files = files
        self.device = torch.device(device)
        self.rows_per_round = max(1, buffer_rows // 2) if self.shuffle else parquet.CHUNK_ROWS
        # Several ranges of row groups per round, so that small row groups are mixed as well.
        self.ranges = files.row_group_ranges(min(max(1, self.rows_per_round // 4), parquet.CHUNK_ROWS))
        if self.shuffle and self.stream is None:
            self.warn_of_large_row_groups(f"buffer_rows ({buffer_rows})", buffer_rows)

    def warn_of_large_row_groups(self, name: str, buffer_rows: int) -> bool:
        """Warn if a row group is larger than the shuffle buffer; return whether it is."""
        largest = max((rows.num_rows for rows in self.ranges), default=0)
        if largest > buffer_rows:
            logger.warning(
                f"{self.files.path}: a row group of {largest} rows is larger than {name}, so its rows are "
                "shuffled only with rows near them; write smaller row groups or raise buffer_rows"
            )
        return largest > buffer_rows

    def _batches(self, row: int, sizes: Sequence[int]) -> Iterator[Batch]:
        ranges = self.ranges
        generator = None
        if self.shuffle:
            generator = self._begin_epoch()
            ranges = [ranges[i] for i in torch.randperm(len(ranges), generator=generator).tolist()]
        rounds = self._rounds(generator)
        # Rounds before the requested row are replayed without their rows: only which rows stay is needed.
        kept, emitted = torch.arange(0), 0
        for first_round in rounds:
            if row < emitted + first_round.num_emitted:
                break
            emitted += first_round.num_emitted
            added = torch.arange(first_round.start, first_round.start + first_round.num_added)
            kept = torch.cat([kept, added])[first_round.kept]
        else:
            return
        positions, ranks = kept.sort()
        buffer: list[InteractionTable] = []
        batches = BatchCutter(sizes)
        with Prefetcher(self._read(ranges, positions, first_round.start)) as parts:
            if len(kept):
                buffer = [take_rows(self._concatenate(next(parts)), ranks.argsort().to(self.device))]
            for this_round in chain([first_round], rounds):
                table = self._concatenate([*buffer, *next(parts)])
                buffer = []
                order = this_round.order.to(self.device)
                for chunk, rows in batches.cut(table, order[max(row - emitted, 0) : this_round.num_emitted]):
                    yield gather(chunk, rows[self.shard.part(len(rows))])
                if batches.done:
                    return
                emitted += this_round.num_emitted
                buffer = [take_rows(table, order[this_round.num_emitted :])] if this_round.num_emitted else [table]
                del table

    def _rounds(self, generator: torch.Generator | None) -> Iterator[_Round]:
        """Yield the rounds of the buffer, a function of the number of rows and the generator only."""
        position = held = 0
        while position < self.num_samples:
            added = min(self.rows_per_round, self.num_samples - position)
            held += added
            is_last = position + added == self.num_samples
            emitted = max(held - self.rows_per_round, 0) if generator is not None and not is_last else held
            is_mixed = generator is not None and emitted
            order = torch.randperm(held, generator=generator) if is_mixed else torch.arange(held)
            yield _Round(position, added, order, emitted)
            position += added
            held -= emitted

    def _read(
        self, ranges: Sequence[parquet.RowGroupRange], positions: Tensor, first: int
    ) -> Iterator[list[InteractionTable]]:
        """Yield the rows at the sorted ``positions`` of the stream, then those of each round from ``first`` on."""
        if self.device.index is not None:
            torch.cuda.set_device(self.device)  # of this thread: pinning memory would otherwise initialise GPU 0
        if len(positions):
            yield list(self._pick(ranges, positions))
        part: list[InteractionTable] = []
        missing = self.rows_per_round
        for position, chunk in self._chunks(ranges, lambda _, stop: stop > first):
            start = max(first - position, 0)
            while start < len(chunk):
                stop = min(len(chunk), start + missing)
                part.append(self._pin(chunk.slice(start, stop)))
                missing -= stop - start
                start = stop
                if missing == 0:
                    yield part
                    part, missing = [], self.rows_per_round
        if part:
            yield part

    def _pick(self, ranges: Sequence[parquet.RowGroupRange], positions: Tensor) -> Iterator[InteractionTable]:
        """Yield the rows at the sorted ``positions`` of the stream."""

        def find(start: int, stop: int) -> Tensor:
            low, high = torch.searchsorted(positions, torch.tensor([start, stop])).tolist()
            return positions[low:high] - start

        for position, chunk in self._chunks(ranges, lambda start, stop: len(find(start, stop)) > 0):
            if position > positions[-1]:
                return
            rows = find(position, position + len(chunk))
            if len(rows):
                yield self._pin(take_rows(chunk, rows))

    def _chunks(
        self, ranges: Sequence[parquet.RowGroupRange], is_needed: Callable[[int, int], bool]
    ) -> Iterator[tuple[int, InteractionTable]]:
        """Yield the chunks of the needed ranges, each with the position of its first row in the stream."""
        position = 0
        for row_groups in ranges:
            if is_needed(position, position + row_groups.num_rows):
                start = position
                for chunk in self.files.chunks([row_groups]):
                    yield start, chunk
                    start += len(chunk)
            position += row_groups.num_rows

    def _pin(self, chunk: InteractionTable) -> InteractionTable:
        return chunk.pin_memory() if self.device.type == "cuda" else chunk

    def _concatenate(self, chunks: Sequence[InteractionTable]) -> InteractionTable:
        return concatenate(chunk.to(self.device, non_blocking=True) for chunk in chunks)


@dataclass(frozen=True)
class _Round:
    """One round of the shuffle buffer."""

    start: int  #: Position in the stream of the first row that is added.
    num_added: int  #: Rows that are added.
    order: Tensor  #: ``(R,)`` permutation of the buffer, whose first rows are those kept by the round before.
    num_emitted: int  #: Rows of the order that are emitted.

    @property
    def kept(self) -> Tensor:
        """``(K,)`` rows that stay in the buffer."""
        return self.order[self.num_emitted :]


class BatchCutter:
    """Cut batches of given sizes out of rows that arrive table by table.

    Parameters
    ----------
    sizes : sequence of int
        Number of rows of every batch.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = list(reversed(sizes))
        self._chunks: list[InteractionTable] = []

    @property
    def done(self) -> bool:
        """Whether every batch has been cut."""
        return not self._sizes

    def cut(self, table: InteractionTable, rows: Tensor) -> Iterator[tuple[InteractionTable, Tensor]]:
        """Yield a table and its rows for every batch that is complete with these rows; keep the remaining rows."""
        while self._sizes:
            missing = self._sizes[-1] - sum(len(chunk) for chunk in self._chunks)
            if rows.numel() < missing:
                if rows.numel():
                    self._chunks.append(take_rows(table, rows))
                return
            self._sizes.pop()
            filling, rows = rows[:missing], rows[missing:]
            if self._chunks:
                whole = concatenate([*self._chunks, take_rows(table, filling)])
                self._chunks.clear()
                yield whole, torch.arange(len(whole), device=rows.device)
            else:
                yield table, filling
