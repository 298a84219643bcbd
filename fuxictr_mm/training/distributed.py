"""Data-parallel training by the processes that ``torchrun`` started; for a single process, nothing here has an effect.

Each rank takes its part of every batch (``fuxictr_mm.data.shards``). Gradients are averaged over ranks by torch's
``DistributedDataParallel`` during the backward pass, by gloo between CPUs and nccl between GPUs; models with a
``train_step`` of their own have them averaged after it. With batches of B samples each, W ranks take the steps of one
process with batches of W * B, up to rounding: batch norm counts the samples of all ranks, unless ``sync_batch_norm`` is
False.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from fuxictr_mm.data.batch import num_rows, row_weights
from fuxictr_mm.data.shards import Shard
from fuxictr_mm.errors import UserError
from fuxictr_mm.layers.unknown_item import UnknownItem
from fuxictr_mm.runtime import device_of, is_one_of_several
from fuxictr_mm.tables.gradients import no_gradient, sparse_gradient, touched_parameters, touched_rows
from fuxictr_mm.tables.sharded import is_distributed


class _SameBatchNorm(_BatchNorm):
    """A batch norm with the parameters and buffers of ``norm``, of any shape of input."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for name, value in [*norm.named_parameters(), *norm.named_buffers()]:
            setattr(self, name, value)
        self.training = norm.training

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any shape that forward does."""


class LocalBatchNorm(_SameBatchNorm):
    """``nn.BatchNorm1d`` with mean and variance of the rank's own samples.

    Fewer than two samples have no variance: the running statistics take its place, and are unchanged.
    ``average_running_statistics`` gives all ranks the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``(N, C)`` or ``(N, C, L)``."""
        if self.training and self.track_running_stats and x.numel() < 2 * self.num_features:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)  # so that it is the same on all ranks
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class SyncBatchNorm(_SameBatchNorm):
    """``nn.BatchNorm1d`` with mean and variance over all ranks; a rank may have one sample, or none.

    Where all ranks together have fewer than two, the running statistics are unchanged.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``(N, C)`` or ``(N, C, L)``."""
        if not self.training:
            return super().forward(x)
        values = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        normed, mean, variance, rows = _Normalize.apply(values, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, variance * rows / (rows - 1), rows > 1)
        return normed.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor, known: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(known)
        share = 1 / max(float(self.num_batches_tracked), 1) if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(torch.where(known, value.to(running.dtype), running), share)


class _Normalize(torch.autograd.Function):
    """Batch norm of ``(N, C)`` or ``(N, C, L)`` by mean and variance over ranks, in few passes over the samples.

    Ranks exchange mean, variance and count of each channel in the forward pass, two sums in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        count = x.new_full((1,), x.numel() / channels)
        own = torch.batch_norm_update_stats(x, None, None, 0.0) if x.numel() else x.new_zeros(2, channels)
        found = _gather_equal(torch.cat([*own, count]).unsqueeze(0))
        means, variances, counts = found.split([channels, channels, 1], 1)
        rows = counts.sum()
        mean = (means * counts).sum(0) / rows
        variance = ((variances + (means - mean).square()) * counts).sum(0) / rows
        ctx.save_for_backward(x, weight, mean, variance, rows)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, rows)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance, rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, variance, rows = ctx.saved_tensors
        own = x.new_zeros(2, x.shape[1])
        if x.numel():  # the sums of the gradient times the normalised samples, and of the gradient, in one pass
            found = torch.ops.aten.native_batch_norm_backward(
                gradients[0], x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
            )
            own = torch.stack(found[1:])
        total = own.clone()
        dist.all_reduce(total)
        total /= rows
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = inverse if weight is None else inverse * weight
        # scale * (gradient - mean of it - normalised sample * mean of the product), of which the last two are linear.
        of_x = F.batch_norm(x, mean, torch.ones_like(mean), -scale * inverse * total[0], -scale * total[1], eps=0.0)
        of_x.addcmul_(gradients[0], scale.view([1, -1] + [1] * (x.dim() - 2)))
        return of_x, *((None, None) if weight is None else (own[0], own[1])), None


def replace_batch_norm(model: nn.Module, sync: bool = True) -> None:
    """Replace every batch norm by ``SyncBatchNorm``, or ``LocalBatchNorm``; parameters stay the same objects."""
    compiled = getattr(model, "compiled_logits", None) is not None
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, _SameBatchNorm | nn.SyncBatchNorm):
                norm = SyncBatchNorm(child) if sync else LocalBatchNorm(child)
                if compiled and sync:  # not as a decorator of the class: it imports torch's compiler, for a second
                    norm.forward = torch.compiler.disable(norm.forward)  # type: ignore[method-assign]
                setattr(module, name, norm)


@torch.no_grad()
def average_running_statistics(model: nn.Module) -> None:
    """Replace the running statistics of every ``LocalBatchNorm`` by their mean over ranks.

    They are linear in the statistics of the steps, so that how often this is done changes only rounding. Likewise for
    the averages of ``ema`` and ``swa_start``.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, LocalBatchNorm) and m.track_running_stats}
    if size() == 1 or not norms:
        return
    average = getattr(model, "average", None)
    of_names = dict(model.named_buffers()), ({} if average is None else average.of_dense)
    names = [f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")]
    _average([values[name] for values in of_names for name in names if name in values])


@torch.no_grad()
def synchronize_buffers(model: nn.Module) -> None:
    """Give all ranks the same buffers: the mean of running statistics, and the items that any rank has seen."""
    average_running_statistics(model)
    for module in model.modules() if size() > 1 else ():
        if isinstance(module, UnknownItem):
            seen = module.seen.to(torch.uint8)
            dist.all_reduce(seen, dist.ReduceOp.MAX)
            module.seen.copy_(seen)


#: Elements of gradients that are averaged in one message.
BUCKET = 2**23

#: In place of a sum of weights that are all 0.
TINY = torch.finfo(torch.float64).tiny

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


def distribute(model: nn.Module) -> None:
    """Make the steps of a model use the samples of all ranks, and give each rank its own random numbers.

    A ``MultimodalModel`` gets ``Replicas``. Of a model with a ``train_step`` of its own, which calls ``forward`` and
    ``backward`` as it likes, ``forward`` is wrapped: in the backward pass, its outputs pass a function that weights the
    gradient and averages all gradients when the backward pass ends. In evaluation, ranks are independent.
    """
    if size() == 1 or getattr(model, "_is_distributed", False):
        return
    model._is_distributed = True  # type: ignore[assignment]
    replace_batch_norm(model, getattr(getattr(model, "model_settings", None), "sync_batch_norm", True))
    broadcast_state(model)
    if getattr(model, "has_own_step", True):
        _wrap_forward(model)
    else:
        model.replicas = Replicas(model)  # type: ignore[assignment]
    torch.manual_seed(torch.initial_seed() + rank())


class Replicas:
    """A model on several ranks, whose gradients ``DistributedDataParallel`` averages during the backward pass.

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
        self.device = model.device

    def backward(self, batch: Any, count: int, synchronize: bool) -> Tensor:
        """Add the gradient of the mean loss over the samples of all ranks, divided by ``count``, to the gradients.

        Gradients are accumulated over ``count`` batches; before the last, ``synchronize``, every rank keeps its own.
        Return the loss of this rank's samples, detached.
        """
        rows = _amount(self.model, batch, self.device)
        everywhere = rows.clone()
        counted = dist.all_reduce(everywhere, async_op=True)
        waiting = nullcontext() if synchronize or self.parallel is None else self.parallel.no_sync()
        with waiting:
            loss = self.loss(batch)
            counted.wait()
            # The average over ranks then weights samples equally, or by their weights.
            (loss * (rows * size() / everywhere.clamp(min=TINY) / count).to(loss.dtype)).backward()
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


def _wrap_forward(model: nn.Module) -> None:
    alone = model.forward
    touched = frozenset(id(p) for p in touched_parameters(model))

    def forward(batch: Any) -> Any:
        outputs = alone(batch)
        if not (model.training and torch.is_grad_enabled()):
            return outputs
        weight = _weight(model, batch)
        average = partial(_average_gradients, list(model.parameters()), touched)
        return tree_map(lambda value: _with_weight(value, weight, average), outputs)

    model.forward = forward


def _weight(model: Any, batch: Any) -> Tensor:
    """Return this rank's number of samples divided by the mean over ranks: the average then weights samples equally."""
    rows = _amount(model, batch, next(model.parameters()).device)
    everywhere = rows.clone()
    dist.all_reduce(everywhere)
    return rows * size() / everywhere.clamp(min=TINY)


def _amount(model: Any, batch: Any, device: torch.device) -> Tensor:
    """Return the number of samples of a batch, or the sum of their weights, in float64."""
    weights = row_weights(batch, getattr(model.feature_map, "sample_weight", None))
    if weights is None:
        return torch.tensor(num_rows(batch), dtype=torch.float64, device=device)
    return weights.to(device).sum(dtype=torch.float64)


class _WeightGradient(torch.autograd.Function):
    """Identity with a weighted gradient; the gradients of a model's regularizers are not weighted."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, average: Callable[[], None]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.average = average
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        if not _WeightGradient.is_due:
            _WeightGradient.is_due = True
            torch.autograd.Variable._execution_engine.queue_callback(ctx.average)
        return gradients[0] * weight.to(gradients[0].dtype), None, None

    #: Whether averaging at the end of the current backward pass has been requested.
    is_due = False


def _with_weight(value: Any, weight: Tensor, average: Callable[[], None]) -> Any:
    return _WeightGradient.apply(value, weight, average) if isinstance(value, Tensor) and value.requires_grad else value


def _average_gradients(parameters: Sequence[nn.Parameter], touched: AbstractSet[int] = frozenset()) -> None:
    """Replace every gradient by its mean over ranks; one that no rank has stays None.

    Of parameters with the ``id`` of ``touched``, gradients are sparse: ranks exchange the rows that they reach.
    """
    _WeightGradient.is_due = False
    bucket: list[Tensor] = []
    _average_rows([p for p in parameters if id(p) in touched])
    dense = [p for p in parameters if id(p) not in touched]
    for parameter, anywhere in zip(dense, _reached(dense), strict=True):
        if not anywhere:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (sum(g.numel() for g in bucket) >= BUCKET or bucket[0].dtype != parameter.grad.dtype):
            _average(bucket)
            bucket = []
        bucket.append(parameter.grad)
    _average(bucket)


def _reached(parameters: Sequence[nn.Parameter]) -> list[int]:
    """Return which parameters have a gradient on any rank."""
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(has, dist.ReduceOp.MAX)
    return has.tolist()


def _average(gradients: Sequence[Tensor]) -> None:
    """Average gradients over ranks in one message."""
    if not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


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
    everywhere = _gather_equal(counts.to(tables[0].device)).T.tolist()
    for table, (rows, values), found in zip(tables, own, everywhere, strict=True):
        if max(found) < 0:
            table.grad = None
            continue
        sizes = [max(count, 0) for count in found]
        table.grad = sparse_gradient(table, _gather_counted(rows, sizes), _gather_counted(values, sizes).div_(size()))


def make_shard(streams: int | None) -> Shard:
    """Return the part of the rows that this rank reads, with V virtual streams to train on or none."""
    return Shard(rank(), size(), streams, gather_rows)


def broadcast_state(model: nn.Module) -> None:
    """Copy the weights of rank 0 to every rank."""
    if size() > 1:
        for value in model.state_dict().values():
            if not is_distributed(value):  # as a sharded table is
                dist.broadcast(value, 0)


def gather_rows(part: Tensor) -> Tensor:
    """Return the rows ``(n, ...)`` of all ranks, in the order of the ranks."""
    if size() == 1:
        return part
    return _gather_counted(part, _gather_equal(torch.tensor([part.shape[0]], device=part.device)).tolist())


def _gather_counted(part: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows of all ranks, of which each knows how many the others have."""
    padded = torch.cat([part, part.new_zeros(max(counts) - part.shape[0], *part.shape[1:])])
    found = _gather_equal(padded).view(size(), *padded.shape)
    return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])


def _gather_equal(part: Tensor) -> Tensor:
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


def _reduce(values: Any, how: Any) -> list[float]:
    if size() == 1:
        return list(values)
    # On the CPU, where it does not wait for pending work of a GPU.
    reduced = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(reduced, how)
    return reduced.tolist()
