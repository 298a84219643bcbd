"""Division of the rows of a split among processes.

To train, the rows of a split are dealt to V virtual streams, contiguous parts of equal length (the first ones may have
one row more). Each stream is shuffled by itself, and the streams take turns: position p of the epoch is row ``p // V``
of stream ``p % V``. Rank r of W processes reads the streams r, r + W, ... Where W divides V, its rows are the positions
p with ``p % W == r``, so that every global batch is the same for all such W.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fuxictr_mm.errors import ConfigError

#: Streams of several processes, unless their number is not a divisor; then the next multiple of it.
STREAMS = 24


def default_streams(processes: int) -> int:
    """Return the number of virtual streams for a number of processes."""
    return -(-STREAMS // processes) * processes


@dataclass(frozen=True)
class Shard:
    """The part of a split that one rank reads."""

    rank: int = 0  #: Rank of this process.
    size: int = 1  #: Number of processes, W.
    #: V, the virtual streams of a split that is trained on. None: every rank passes over all rows, and takes a slice of
    #: every global batch.
    streams: int | None = None
    #: Returns the rows ``(n, ...)`` of all ranks, in the order of the ranks.
    gather: Callable[[Tensor], Tensor] = field(default=lambda rows: rows, compare=False)

    def __post_init__(self) -> None:
        if self.streams is not None and self.streams % self.size:
            fitting = ", ".join(str(w) for w in range(1, self.streams + 1) if self.streams % w == 0)
            raise ConfigError(
                f"streams is {self.streams}, but there are {self.size} processes, expected a divisor of "
                f"streams; start {fitting} processes, or start a new run with streams: {default_streams(self.size)}"
            )

    def part(self, num_rows: int) -> slice:
        """Return this rank's slice of ``num_rows`` rows; the ranks' slices differ by one row at most."""
        return slice(num_rows * self.rank // self.size, num_rows * (self.rank + 1) // self.size)

    def stream_rows(self, num_rows: int) -> dict[int, slice]:
        """Return the rows of a split of ``num_rows`` rows that each stream of this rank has."""
        assert self.streams is not None
        each, rest = divmod(num_rows, self.streams)
        return {
            v: slice(v * each + min(v, rest), (v + 1) * each + min(v + 1, rest))
            for v in range(self.rank, self.streams, self.size)
        }

    def train_rows(self, num_rows: int) -> list[slice]:
        """Return the rows of a split of ``num_rows`` rows that this rank reads to train on them."""
        return [slice(0, num_rows)] if self.streams is None else list(self.stream_rows(num_rows).values())

    def rows_before(self, position: int) -> int:
        """Return how many of the first positions of an epoch are this rank's."""
        return _count(position, self.rank, self.size)

    def rows_of_streams(self, position: int) -> list[int]:
        """Return how many of the first positions of an epoch each stream of this rank has."""
        assert self.streams is not None
        return [_count(position, v, self.streams) for v in range(self.rank, self.streams, self.size)]

    def interleave(self, start: int, stop: int) -> Tensor:
        """Return the order in which the streams of this rank take turns from position ``start`` to ``stop - 1``.

        It indexes the rows that these streams have there, those of one stream after those of another.
        """
        assert self.streams is not None
        first, last = (torch.tensor(self.rows_of_streams(position)) for position in (start, stop))
        sizes = last - first
        begins = sizes.cumsum(0) - sizes - first
        positions = torch.arange(int(sizes.sum())) * self.size + start + (self.rank - start) % self.size
        return begins[(positions % self.streams - self.rank) // self.size] + positions // self.streams

    def exchange(self, value: Any) -> list[Any]:
        """Return the values that the ranks pass, in their order, converted to JSON and back."""
        lines = self.gather(torch.tensor(list(f"{json.dumps(value)}\n".encode()), dtype=torch.uint8))
        return [json.loads(line) for line in bytes(lines.tolist()).decode().splitlines()]


def _count(position: int, first: int, step: int) -> int:
    """Return how many of ``first``, ``first + step``, ... are below ``position``."""
    return max(0, -(-(position - first) // step))


def local_sizes(shard: Shard, row: int, sizes: Sequence[int]) -> list[int]:
    """Return this rank's rows of batches of the given global sizes, the first of which begins at position ``row``."""
    counts = [shard.rows_before(row)]
    for size in sizes:
        row += size
        counts.append(shard.rows_before(row))
    return [after - before for before, after in pairwise(counts)]
