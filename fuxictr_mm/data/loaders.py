"""Batches out of a resident table: a permutation and a few gathers, nothing through Python per row.

Where the rows do not fit, ``fuxictr_mm.data.streaming`` has the loader with the same meaning.

Shape letters: B rows, N history items of a batch.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from fuxictr_mm.data import parquet
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.data.interactions import InteractionFiles, InteractionTable, concatenate
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.jagged import Jagged


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
        Turns a Batch into what the model takes; see ``fuxictr_mm.data.batch``.
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


T = TypeVar("T")


class _Failure:
    """What the iterator raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    """Stands behind the last item."""


class ReadAhead(Generic[T]):
    """Take from an iterator whose next item is made meanwhile.

    Used as a context manager: leaving it, in whatever way, ends the thread. What the iterator raises is raised by
    ``next``.

    Parameters
    ----------
    source : iterator
        Runs in the thread; at most one item waits, and one more is being made.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._waiting: Queue[T | _Failure | _End] = Queue(maxsize=1)
        stop = threading.Event()
        thread = threading.Thread(target=_fill, args=(source, self._waiting, stop), name="read-ahead", daemon=True)
        # Also called where the object is forgotten and where the interpreter ends: a thread that runs on amid native
        # code would crash it.
        self._close = weakref.finalize(self, _end, thread, self._waiting, stop)
        thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._waiting.get()
        if isinstance(item, _Failure):
            raise item.error
        if isinstance(item, _End):
            raise StopIteration
        return item

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def _fill(source: Iterator[T], waiting: Queue[T | _Failure | _End], stop: threading.Event) -> None:
    last: _Failure | _End = _End()
    try:
        for item in source:
            if stop.is_set():
                return
            waiting.put(item)
            del item  # else it lives on while the next one is made
    except BaseException as error:  # for the one who waits, whatever it is
        last = _Failure(error)
    if not stop.is_set():
        waiting.put(last)


def _end(thread: threading.Thread, waiting: Queue[T | _Failure | _End], stop: threading.Event) -> None:
    stop.set()
    # Makes room for the one item that may be on its way; after it, the thread sees that it is to stop.
    with suppress(Empty):
        waiting.get_nowait()
    thread.join()


logger = logging.getLogger(__name__)


#: Share of the free memory that interactions may take; the rest is for model, optimiser, items and batches.
SHARE = 0.5


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device, for a GPU those of the machine if they are fewer.

    What the operating system does not tell counts as free.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    known = Path("/proc/meminfo")
    if known.is_file():  # Linux; memory that holds copies of files counts as free there
        lines = dict(line.split(":", 1) for line in known.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():  # of a container
        free = min(free, int(text))
    return min(free, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free


def estimate_bytes(files: InteractionFiles) -> int:
    """Return about how many bytes the rows take in memory: as many as the first ones, each."""
    sample = next(files.pieces())
    return sample.num_bytes * len(files) // len(sample)


def choose_resident(
    splits: Mapping[str, InteractionFiles], resident: bool | Literal["auto"], device: torch.device
) -> set[str]:
    """Return the splits to hold in memory.

    Parameters
    ----------
    splits : mapping of str to InteractionFiles
        The splits that are used.
    resident : bool or "auto"
        True holds all. False holds all but ``train``, and ``"auto"`` all, as far as they fit in half of the free
        memory; ``train`` is the first to give way.
    device : torch.device
        Where they would be held.
    """
    if resident is True:
        return set(splits)
    free = free_memory(device)
    room = SHARE * free
    held = set()
    for name in sorted(splits, key=lambda name: name == "train"):
        if name == "train" and resident is False:
            continue
        size = estimate_bytes(splits[name])
        if size <= room:
            held.add(name)
            room -= size
        else:
            logger.info(
                f"{name}: about {size / 1e9:.2f} GB in memory, more than the {max(room, 0) / 1e9:.2f} GB left of "
                f"{SHARE:.0%} of the {free / 1e9:.2f} GB that are free: streamed"
            )
    return held


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
