"""Batches of interactions that do not fit into memory: row groups read ahead, mixed in a buffer.

Shape letters: R rows of a table, K rows that one block keeps for the next.

The *stream* is all rows in the order in which they are read: the file's, or when shuffling that of shuffled sections of
row groups. A *block* holds the rows that the one before kept and half a buffer of new ones. Shuffling, a block is put
into random order and rows leave it until half a buffer is left, so that a row may meet rows that are read long before
or after it. Batches are cut from the rows as they leave, so their order does not depend on the size of a batch.
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
from fuxictr_mm.data.interactions import InteractionFiles, InteractionTable, concatenate
from fuxictr_mm.data.loaders import Loader, gather
from fuxictr_mm.data.read_ahead import ReadAhead

logger = logging.getLogger(__name__)

#: Rows of the shuffle buffer: some 70 MB of MicroLens-like rows.
BUFFER_ROWS = 1_000_000


@dataclass(frozen=True)
class _Block:
    """What happens to one block.

    Parameters
    ----------
    first : int
        Place in the stream of its first new row.
    added : int
        How many new rows it gets.
    order : Tensor
        ``(R,)`` the order of its rows, of which those that the block before kept come first.
    leaving : int
        How many of the order leave it.
    """

    first: int
    added: int
    order: Tensor
    leaving: int

    @property
    def kept(self) -> Tensor:
        """``(K,)`` rows that stay for the next block."""
        return self.order[self.leaving :]


class StreamingLoader(Loader):
    """Iterate over interactions on disk, in memory bounded by the buffer, whatever the files' size.

    Every row comes once per epoch. In an unshuffled pass the order is the files'. Memory holds two buffers of rows, a
    third for a moment, and the chunk that is decoded; on a GPU the buffer is there and what is read ahead is pinned.

    Parameters
    ----------
    files : InteractionFiles
        Where the rows are.
    batch_size : int
        Rows per batch; this and the other options are as in ``Loader``.
    buffer_rows : int
        Rows among which the next batch is drawn. Row groups should be smaller: of one that is larger, only rows that
        are near to each other are mixed.
    device : torch.device or str
        Where batches come out.
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
        self.refill = max(1, buffer_rows // 2) if self.shuffle else parquet.CHUNK_ROWS
        # Several sections to a refill, so that small row groups are still mixed widely.
        self.sections = files.sections(min(max(1, self.refill // 4), parquet.CHUNK_ROWS))
        largest = max((section.num_rows for section in self.sections), default=0)
        if self.shuffle and largest > buffer_rows:
            logger.warning(
                f"{files.path}: a row group of {largest} rows is larger than buffer_rows ({buffer_rows}), so its rows "
                "are mixed only with those near them; write smaller row groups or raise buffer_rows"
            )

    def _batches(self, row: int, sizes: Sequence[int]) -> Iterator[Batch]:
        sections = self.sections
        generator = None
        if self.shuffle:
            generator = self._begin_epoch()
            sections = [sections[i] for i in torch.randperm(len(sections), generator=generator).tolist()]
        blocks = self._blocks(generator)
        # Blocks of which no row is asked for are not read: it is enough to know which rows they keep.
        kept, gone = torch.arange(0), 0
        for start in blocks:
            if row < gone + start.leaving:
                break
            gone += start.leaving
            kept = torch.cat([kept, torch.arange(start.first, start.first + start.added)])[start.kept]
        else:
            return
        places, ranks = kept.sort()
        rest: list[InteractionTable] = []
        waiting = _Waiting(sizes)
        with ReadAhead(self._read(sections, places, start.first)) as refills:
            if len(kept):
                rest = [_select(self._concatenate(next(refills)), ranks.argsort().to(self.device))]
            for block in chain([start], blocks):
                table = self._concatenate([*rest, *next(refills)])
                rest = []
                order = block.order.to(self.device)
                for piece, rows in waiting.cut(table, order[max(row - gone, 0) : block.leaving]):
                    yield gather(piece, self._mine(rows))
                if waiting.done:
                    return
                gone += block.leaving
                rest = [_select(table, order[block.leaving :])] if block.leaving else [table]
                del table

    def _blocks(self, generator: torch.Generator | None) -> Iterator[_Block]:
        """Yield what happens to each block; a function of the number of rows and the generator alone."""
        place = held = 0
        while place < self.num_samples:
            added = min(self.refill, self.num_samples - place)
            held += added
            is_last = place + added == self.num_samples
            leaving = max(held - self.refill, 0) if generator is not None and not is_last else held
            mixed = generator is not None and leaving
            order = torch.randperm(held, generator=generator) if mixed else torch.arange(held)
            yield _Block(place, added, order, leaving)
            place += added
            held -= leaving

    def _read(
        self, sections: Sequence[parquet.Section], places: Tensor, first: int
    ) -> Iterator[list[InteractionTable]]:
        """Yield the rows at the sorted ``places`` of the stream, if any, then refills from place ``first`` on."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # of this thread: pinning would wake the first GPU
        if len(places):
            yield list(self._pick(sections, places))
        refill: list[InteractionTable] = []
        missing = self.refill
        for place, piece in self._pieces(sections, lambda _, stop: stop > first):
            start = max(first - place, 0)
            while start < len(piece):
                stop = min(len(piece), start + missing)
                refill.append(self._pin(piece.slice(start, stop)))
                missing -= stop - start
                start = stop
                if missing == 0:
                    yield refill
                    refill, missing = [], self.refill
        if refill:
            yield refill

    def _pick(self, sections: Sequence[parquet.Section], places: Tensor) -> Iterator[InteractionTable]:
        """Yield the rows at the sorted ``places`` of the stream."""

        def find(start: int, stop: int) -> Tensor:
            low, high = torch.searchsorted(places, torch.tensor([start, stop])).tolist()
            return places[low:high] - start

        for place, piece in self._pieces(sections, lambda start, stop: len(find(start, stop)) > 0):
            if place > places[-1]:
                return
            rows = find(place, place + len(piece))
            if len(rows):
                yield self._pin(_select(piece, rows))

    def _pieces(
        self, sections: Sequence[parquet.Section], needed: Callable[[int, int], bool]
    ) -> Iterator[tuple[int, InteractionTable]]:
        """Yield pieces of the stream, each with the place of its first row, of sections that are needed."""
        place = 0
        for section in sections:
            if needed(place, place + section.num_rows):
                start = place
                for piece in self.files.pieces([section]):
                    yield start, piece
                    start += len(piece)
            place += section.num_rows

    def _pin(self, piece: InteractionTable) -> InteractionTable:
        return piece.pin_memory() if self.device.type == "cuda" else piece

    def _concatenate(self, pieces: Sequence[InteractionTable]) -> InteractionTable:
        return concatenate(piece.to(self.device, non_blocking=True) for piece in pieces)


class _Waiting:
    """Cuts batches of given sizes out of rows that come table by table.

    Parameters
    ----------
    sizes : sequence of int
        Rows of every batch.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = list(reversed(sizes))
        self._pieces: list[InteractionTable] = []

    @property
    def done(self) -> bool:
        """Whether every batch has been cut."""
        return not self._sizes

    def cut(self, table: InteractionTable, rows: Tensor) -> Iterator[tuple[InteractionTable, Tensor]]:
        """Yield a table and its rows for every batch that the given rows of a table fill; keep what is left of them."""
        while self._sizes:
            missing = self._sizes[-1] - sum(len(piece) for piece in self._pieces)
            if rows.numel() < missing:
                if rows.numel():
                    self._pieces.append(_select(table, rows))
                return
            self._sizes.pop()
            filling, rows = rows[:missing], rows[missing:]
            if self._pieces:
                whole = concatenate([*self._pieces, _select(table, filling)])
                self._pieces.clear()
                yield whole, torch.arange(len(whole), device=rows.device)
            else:
                yield table, filling


def _select(table: InteractionTable, rows: Tensor) -> InteractionTable:
    """Return the given rows as a table."""
    batch = gather(table, rows)
    history = batch.history
    return InteractionTable(
        batch.context, batch.target, history.values, history.offsets, batch.label, batch.group, table.source
    )
