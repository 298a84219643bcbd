"""Batches of a split on disk of which each process reads its own virtual streams (``fuxictr_mm.data.shards``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from typing import Any

import torch

from fuxictr_mm.data.batch import Batch
from fuxictr_mm.data.interaction_files import InteractionFiles
from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.loaders import Loader, as_table, gather
from fuxictr_mm.data.shards import Shard, local_sizes
from fuxictr_mm.data.streaming import BUFFER_ROWS, BatchCutter, StreamingLoader

#: Rows of all streams that take turns at a time: large enough that their gathers cost little.
CHUNK_ROWS = 65_536


class InterleavedLoader(Loader):
    """Shuffle interactions on disk in virtual streams, each with its own shuffle buffer and generator.

    The order depends on the seed, the epoch, the number of rows and streams, and ``buffer_rows``; not on the number of
    processes.

    Parameters
    ----------
    files : InteractionFiles
        The rows of all ranks; row groups of other ranks are not read.
    batch_size : int
        Rows per batch and rank. This and the other options are those of ``Loader``.
    shard : Shard
        The streams of this rank.
    buffer_rows : int
        Rows in the shuffle buffers of all streams together.
    device : torch.device or str
        Device of the batches.
    """

    def __init__(
        self,
        files: InteractionFiles,
        batch_size: int,
        *,
        shard: Shard,
        buffer_rows: int = BUFFER_ROWS,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> None:
        super().__init__(len(files), batch_size, shard=shard, **options)
        assert shard.streams is not None
        self.files = files
        self.device = torch.device(device)
        rows_each = max(1, buffer_rows // shard.streams)
        common: dict[str, Any] = {"device": device, "shuffle": True, "seed": self.seed}
        self.streams = [
            StreamingLoader(files.select([rows]), 1, buffer_rows=rows_each, stream=number, **common)
            for number, rows in shard.stream_rows(len(files)).items()
        ]
        name = f"the buffer of each stream (buffer_rows / streams = {buffer_rows} / {shard.streams})"
        any(stream.warn_of_large_row_groups(name, rows_each) for stream in self.streams)  # warns once

    def _batches(self, row: int, sizes: Sequence[int]) -> Iterator[Batch]:
        bounds = [*range(row, self.num_samples, CHUNK_ROWS), self.num_samples]
        counts = zip(*map(self.shard.rows_of_streams, bounds), strict=True)
        batches = BatchCutter(local_sizes(self.shard, row, sizes))
        with ExitStack() as stack:
            streams = []
            for stream, rows in zip(self.streams, counts, strict=True):
                stream.epoch = self.epoch
                batches_of_stream = stream._batches(rows[0], [after - before for before, after in pairwise(rows)])
                streams.append(stack.enter_context(closing(batches_of_stream)))  # type: ignore[type-var]
            self.epoch += 1
            for start, stop in pairwise(bounds):
                chunks = [chunk for stream in streams if (chunk := next(stream, None)) is not None]
                if not any(map(len, chunks)):
                    continue
                table = concatenate(as_table(chunk, str(self.files.path)) for chunk in chunks)
                for whole, order in batches.cut(table, self.shard.interleave(start, stop).to(self.device)):
                    yield gather(whole, order)
