"""Data-parallel training: a replica of the model on every rank, whose gradients are averaged over ranks.

Each rank takes its part of every batch (``fuxictr_mm.data.shards``). Gradients are averaged by torch's
``DistributedDataParallel`` during the backward pass, by gloo between CPUs and nccl between GPUs; models with a
``train_step`` of their own have them averaged after it. With batches of B samples each, W ranks take the steps of one
process with batches of W * B, up to rounding: batch norm counts the samples of all ranks, unless ``sync_batch_norm`` is
False.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from fuxictr_mm.data.batch import num_rows, row_weights
from fuxictr_mm.layers.unknown_item import UnknownItem
from fuxictr_mm.tables.gradients import no_gradient, sparse_gradient, touched_parameters, touched_rows
from fuxictr_mm.tables.sharded import is_distributed
from fuxictr_mm.training.batch_norm import average_running_statistics, replace_batch_norm
from fuxictr_mm.training.distributed import average, gather_counted, gather_equal, rank, size

#: Elements of gradients that are averaged in one message.
BUCKET = 2**23

#: In place of a sum of weights that are all 0.
TINY = torch.finfo(torch.float64).tiny


def distribute(model: nn.Module) -> None:
    """Make the steps of a model use the samples of all ranks, and give each rank its own random numbers.

    In evaluation, ranks are independent. A single process changes nothing.
    """
    if size() == 1 or getattr(model, "_is_distributed", False):
        return
    model._is_distributed = True  # type: ignore[assignment]
    replace_batch_norm(model, getattr(getattr(model, "model_settings", None), "sync_batch_norm", True))
    broadcast_state(model)
    if getattr(model, "has_own_step", True):
        model.forward = _AveragingForward(model)
    else:
        model.replicas = Replicas(model)  # type: ignore[assignment]
    torch.manual_seed(torch.initial_seed() + rank())


def broadcast_state(model: nn.Module) -> None:
    """Copy the weights of rank 0 to every rank."""
    if size() > 1:
        for value in model.state_dict().values():
            if not is_distributed(value):  # as a sharded table is
                dist.broadcast(value, 0)


@torch.no_grad()
def synchronize_buffers(model: nn.Module) -> None:
    """Give all ranks the same buffers: the mean of running statistics, and the items that any rank has seen."""
    average_running_statistics(model)
    for module in model.modules() if size() > 1 else ():
        if isinstance(module, UnknownItem):
            seen = module.seen.to(torch.uint8)
            dist.all_reduce(seen, dist.ReduceOp.MAX)
            module.seen.copy_(seen)


class Replicas:
    """A ``MultimodalModel`` on several ranks, with ``DistributedDataParallel``.

    Buckets keep their order (as ``find_unused_parameters`` has it), so that a resumed run adds up in the same order as
    one that was not interrupted. A parameter that no rank uses in a step has no gradient, as for one process. Tables
    with sparse gradients are left out: after the backward pass, ranks exchange the rows that they reach. The model is
    on its device, with the same weights on all ranks.
    """

    def __init__(self, model: Any) -> None:
        loss = _BatchLoss(model)
        self.tables = touched_parameters(model)
        apart = {id(table) for table in self.tables}
        names = [name for name, p in loss.named_parameters() if id(p) in apart]
        self.parallel = None
        if any(p.requires_grad and id(p) not in apart for p in model.parameters()):
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, names)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has another name in torch 2.13
                self.parallel = DistributedDataParallel(
                    loss, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
                )
        self.loss = self.parallel or loss
        self.model = model

    def backward(self, batch: Any, count: int, synchronize: bool) -> Tensor:
        """Add the gradient of the mean loss over the samples of all ranks, divided by ``count``, to the gradients.

        Gradients are accumulated over ``count`` batches; before the last, ``synchronize``, every rank keeps its own.
        Return the loss of this rank's samples, detached.
        """
        weight = _count_samples(self.model, batch)
        waiting = nullcontext() if synchronize or self.parallel is None else self.parallel.no_sync()
        with waiting:
            loss = self.loss(batch)
            (loss * (weight() / count).to(loss.dtype)).backward()
        if synchronize:
            _average_rows(self.tables)
        return loss.detach()


class _BatchLoss(nn.Module):
    """The loss of a batch as a module, in which ``DistributedDataParallel`` sees every use of a parameter."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        #: DistributedDataParallel warns, beyond Python's filters, of a model without any unused parameter.
        self.unused = nn.Parameter(next(model.parameters()).detach().new_zeros(1))

    def forward(self, batch: Any) -> Tensor:
        return self.model.batch_loss(batch)


def _count_samples(model: Any, batch: Any) -> Callable[[], Tensor]:
    """Begin to add up the samples of all ranks; return a function that waits for the weight of this rank's loss.

    It is this rank's number of samples, or the sum of their weights, divided by the mean over ranks: the mean of the
    weighted losses over ranks then counts every sample equally, or by its weight.
    """
    device = next(model.parameters()).device
    weights = row_weights(batch, getattr(model.feature_map, "sample_weight", None))
    if weights is None:
        own = torch.tensor(num_rows(batch), dtype=torch.float64, device=device)
    else:
        own = weights.to(device).sum(dtype=torch.float64)
    everywhere = own.clone()
    counted = dist.all_reduce(everywhere, async_op=True)

    def weight() -> Tensor:
        counted.wait()
        return own * size() / everywhere.clamp(min=TINY)

    return weight


class _AveragingForward:
    """The ``forward`` of a model with a ``train_step`` of its own, which calls it and ``backward`` as it likes.

    In the backward pass, its outputs pass a function that weights the gradient, and averages all gradients over ranks
    when the backward pass ends.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.forward = model, model.forward
        self.tables = touched_parameters(model)
        #: Whether averaging at the end of the current backward pass has been requested.
        self.is_due = False

    def __call__(self, batch: Any) -> Any:
        outputs = self.forward(batch)
        if not (self.model.training and torch.is_grad_enabled()):
            return outputs
        weight = _count_samples(self.model, batch)()

        def weighted(value: Any) -> Any:
            is_trained = isinstance(value, Tensor) and value.requires_grad
            return _WeightGradient.apply(value, weight, self) if is_trained else value

        return tree_map(weighted, outputs)

    def average_gradients(self) -> None:
        """Replace every gradient by its mean over ranks; one that no rank has stays None."""
        self.is_due = False
        _average_rows(self.tables)
        apart = {id(table) for table in self.tables}
        dense = [p for p in self.model.parameters() if id(p) not in apart]
        has = torch.tensor([p.grad is not None for p in dense], dtype=torch.uint8, device=dense[0].device)
        dist.all_reduce(has, dist.ReduceOp.MAX)
        bucket: list[Tensor] = []
        for parameter, anywhere in zip(dense, has.tolist(), strict=True):
            if not anywhere:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if bucket and (sum(g.numel() for g in bucket) >= BUCKET or bucket[0].dtype != parameter.grad.dtype):
                average(bucket)
                bucket = []
            bucket.append(parameter.grad)
        average(bucket)


class _WeightGradient(torch.autograd.Function):
    """Identity with a weighted gradient; the gradients of a model's regularizers are not weighted."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, averaging: _AveragingForward) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.averaging = averaging
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        if not ctx.averaging.is_due:
            ctx.averaging.is_due = True
            torch.autograd.Variable._execution_engine.queue_callback(ctx.averaging.average_gradients)
        return gradients[0] * weight.to(gradients[0].dtype), None, None


@torch.no_grad()
def _average_rows(tables: Sequence[nn.Parameter]) -> None:
    """Replace sparse gradients by their mean over ranks, in the rows that they reach on any rank.

    A gradient that no rank has stays None.
    """
    if not tables:
        return
    none = [table.grad is None for table in tables]
    for table in tables:
        if table.grad is None:
            table.grad = no_gradient(table)
    own = [touched_rows(table) for table in tables]
    counts = torch.tensor([[-1 if no else len(rows) for no, (rows, _) in zip(none, own, strict=True)]])
    everywhere = gather_equal(counts.to(tables[0].device)).T.tolist()
    for table, (rows, values), found in zip(tables, own, everywhere, strict=True):
        if max(found) < 0:
            table.grad = None
            continue
        sizes = [max(count, 0) for count in found]
        table.grad = sparse_gradient(table, gather_counted(rows, sizes), gather_counted(values, sizes).div_(size()))
