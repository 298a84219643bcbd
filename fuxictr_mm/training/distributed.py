"""The processes that ``torchrun`` started, and what they exchange; a single process exchanges nothing."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fuxictr_mm.data.shards import Shard
from fuxictr_mm.errors import UserError
from fuxictr_mm.runtime import device_of, is_one_of_several

#: Time that threads of gloo have to release tensors once the process group has ended.
RELEASE_SECONDS = 0.1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(gpu: int) -> Iterator[None]:
    """Join the process group of a run for the duration of a block.

    Raises
    ------
    UserError
        Another process has ended; its own message has the reason.
    """
    if not is_one_of_several() or dist.is_initialized():
        yield
        return
    device = device_of(gpu)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield
    except dist.DistError as error:
        raise _lost() from error
    except RuntimeError as error:
        # gloo has no type of its own for this.
        if "gloo" in str(error) or "Connection" in str(error):
            raise _lost() from error
        raise
    dist.destroy_process_group()
    # A thread of gloo may still hold the tensors of the last exchange, where a table or a mesh keeps the group alive.
    # It needs the interpreter to release them, and aborts the process if that has begun to shut down.
    gc.collect()
    time.sleep(RELEASE_SECONDS)


def _lost() -> UserError:
    return UserError(
        "lost the connection to the other processes: one of them ended, and its own message has the "
        "reason; after fixing it, the same command with --resume continues"
    )


def make_shard(streams: int | None) -> Shard:
    """Return the part of the rows that this rank reads, with V virtual streams to train on or none."""
    return Shard(rank(), size(), streams, gather_rows)


def gather_rows(part: Tensor) -> Tensor:
    """Return the rows ``(n, ...)`` of all ranks, in the order of the ranks."""
    if size() == 1:
        return part
    return gather_counted(part, gather_equal(torch.tensor([part.shape[0]], device=part.device)).tolist())


def gather_counted(part: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows of all ranks, of which each knows how many the others have."""
    padded = torch.cat([part, part.new_zeros(max(counts) - part.shape[0], *part.shape[1:])])
    found = gather_equal(padded).view(size(), *padded.shape)
    return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])


def gather_equal(part: Tensor) -> Tensor:
    """Return the rows of all ranks, of which each has as many."""
    if size() == 1:
        return part
    found = part.new_empty(size() * part.shape[0], *part.shape[1:])
    if part.numel():
        dist.all_gather(list(found.chunk(size())), part.contiguous())
    return found


def largest(*values: float) -> list[float]:
    """Return the maximum over ranks of each value."""
    return _reduce(values, dist.ReduceOp.MAX)


def total(value: float) -> float:
    """Return the sum over ranks."""
    return _reduce([value], dist.ReduceOp.SUM)[0]


def _reduce(values: Sequence[float], how: Any) -> list[float]:
    if size() == 1:
        return list(values)
    # On the CPU, where it does not wait for pending work of a GPU.
    reduced = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(reduced, how)
    return reduced.tolist()


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their mean over ranks, in one message."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= size()
    for tensor, mean in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
