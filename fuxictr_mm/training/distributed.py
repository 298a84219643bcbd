"""One run on several processes that ``torchrun`` started; alone, everything here does nothing.

Each process takes its share of every batch (``fuxictr_mm.data.loaders.Share``); PyTorch's DistributedDataParallel
averages the gradients, gloo carries them between CPUs and nccl between GPUs. With a batch of B rows each, W processes
take the steps that one takes with W * B rows, to rounding: batch norm counts the rows of all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fuxictr_mm.data.views import num_rows
from fuxictr_mm.device import device_of
from fuxictr_mm.errors import UserError
from fuxictr_mm.torchrun import is_one_of_several
from fuxictr_mm.training.sync_batch_norm import replace_batch_norm


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(gpu: int) -> Iterator[None]:
    """Join the other processes of a run for as long as it lasts.

    Raises
    ------
    UserError
        Another process is gone; its own message says why.
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
        # gloo knows no type of its own for this.
        if "gloo" in str(error) or "Connection" in str(error):
            raise _lost() from error
        raise
    dist.destroy_process_group()


def _lost() -> UserError:
    return UserError(
        "lost the other processes: one of them ended, and its message says why; "
        "once that is mended, the same command with --resume goes on"
    )


def distribute(model: nn.Module) -> None:
    """Let a model's steps count the rows of all processes, and give each process random numbers of its own.

    Its ``forward`` is wrapped, so that a model's own ``train_step`` needs to know nothing of it; while evaluating, each
    process is on its own.
    """
    if size() == 1:
        return
    replace_batch_norm(model)
    alone = model.forward
    # Buffers need no broadcast: batch norm, which has the only ones that change, computes them alike everywhere.
    # Fields of a feature map that a model does not use have parameters without a gradient.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before torch 2.13
    options: dict[str, Any] = {"find_unused_parameters": True, name: False}
    together = DistributedDataParallel(_Forward(model), **options)

    def forward(batch: Any) -> Any:
        if not (model.training and torch.is_grad_enabled()):
            return alone(batch)
        outputs = together(batch)
        weight = _weight(batch, next(iter(outputs.values())))
        return {name: _Weigh.apply(value, weight) for name, value in outputs.items()}

    model.forward = forward
    torch.manual_seed(torch.initial_seed() + rank())


class _Forward(nn.Module):
    """A model's own forward, as a module that does not see the wrapped one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.function = model.forward

    def forward(self, batch: Any) -> Any:
        return self.function(batch)


def _weight(batch: Any, like: Tensor) -> Tensor:
    """Return this process's rows by the mean of all processes' rows: DistributedDataParallel counts all alike."""
    rows = torch.tensor(num_rows(batch), dtype=torch.float64, device=like.device)
    everywhere = rows.clone()
    dist.all_reduce(everywhere)
    return rows * size() / everywhere


class _Weigh(torch.autograd.Function):
    """The identity, whose gradient is weighed: regularizers of a model, beside its output, are not."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] * weight.to(gradients[0].dtype), None


def broadcast_state(model: nn.Module) -> None:
    """Give every process the weights of the main one."""
    if size() > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def gather_rows(part: Tensor) -> Tensor:
    """Return the rows ``(n, ...)`` of all processes, one process after the other."""
    if size() == 1:
        return part
    counts = [torch.zeros(1, dtype=torch.int64, device=part.device) for _ in range(size())]
    dist.all_gather(counts, torch.tensor([part.shape[0]], device=part.device))
    most = max(int(count) for count in counts)
    padded = torch.cat([part, part.new_zeros(most - part.shape[0], *part.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    return torch.cat([found[: int(count)] for found, count in zip(parts, counts, strict=True)])


def largest(*values: float) -> list[float]:
    """Return the largest that any process has of each value."""
    return _reduce(values, dist.ReduceOp.MAX)


def total(value: float) -> float:
    """Return the sum over all processes."""
    return _reduce([value], dist.ReduceOp.SUM)[0]


def _reduce(values: Any, how: Any) -> list[float]:
    if size() == 1:
        return list(values)
    # On the CPU, where it does not wait for what a GPU has still to do.
    reduced = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(reduced, how)
    return reduced.tolist()
