"""Embedding tables that are spread over processes, by TorchRec; fbgemm updates them in the backward pass.

Shape letters: R rows of a table, D its dim, n ids of a lookup, W processes.
"""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.tables.layout import Layout, Part, TableShape
from fuxictr_mm.tables.torchrec import make_engine

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

#: Rows that are sent in one message.
BLOCK = 2**16


def is_spread() -> bool:
    """Whether there are several processes to spread tables over; one process has whole tables, as ``nn.Embedding``."""
    return dist.is_initialized() and dist.get_world_size() > 1


def is_distributed(value: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, without the import of that class, which takes a second."""
    return hasattr(value, "to_local")


@dataclass(frozen=True)
class Processes:
    """The processes that the tables of a model are spread over."""

    group: Any  #: All of them, in a group of its own, so that lookups need no order among other messages.
    device: torch.device  #: Of this process.
    folder: Path  #: Where rank 0 gathers a whole table, in a temporary file.


class ShardedTable(nn.Module):
    """A table in the place of an ``nn.Embedding``, of which each process has a part. All look up together.

    In a state dict it has the name of an ``nn.Embedding``'s weight: a ``DTensor`` of the parts of all processes, or a
    whole one by ``gathered_state``; a process that loads one takes its own part of it. It has no parameters, as the
    backward pass updates it. ``place_tables`` initializes the weights.

    ``group`` has the settings of the optimizer of all sharded tables: ``rule``, ``lr``, ``eps``. ``number`` is that of
    the table among those of the model.

    Raises
    ------
    UserError
        TorchRec and fbgemm are not installed, or do not fit.
    """

    def __init__(
        self,
        shape: TableShape,
        layout: Layout,
        padding_idx: int | None,
        number: int,
        group: dict[str, Any],
        processes: Processes,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = shape.rows, shape.dim, padding_idx
        self.layout, self.number, self.group, self.folder = layout, number, group, processes.folder
        self.part = layout.part(dist.get_rank())
        #: Whether the current step has looked up rows to train.
        self.is_looked_up = False
        # In a tuple, in which nn.Module does not find its parameters.
        self._engine = (make_engine(shape, layout, group, processes.device, processes.group),)
        from torch.distributed.device_mesh import DeviceMesh

        mesh = DeviceMesh.from_group(processes.group, processes.device.type)
        #: This process's part of the weights, and the weights of all processes, for state dicts.
        self.weight = self._local(self._engine[0].state_dict(), shape.dim, processes.device)
        self.spread_weight = self._of_all_processes(self.weight, shape.dim, mesh)
        #: The same of the optimizer's sums, of which a row has D or one, if it has any.
        self.sums: Tensor | None = None
        self.spread_sums: DTensor | None = None
        if group["rule"] != "sgd":
            per_row = 1 if group["rule"] == "rowwise_adagrad" else shape.dim
            state = list(self._engine[0].fused_optimizer.state_dict()["state"].values())
            self.sums = self._local(state[0] if state else {}, per_row, processes.device)
            self.spread_sums = self._of_all_processes(self.sums, per_row, mesh)

    def _local(self, state: Mapping[str, Any], columns: int, device: torch.device) -> Tensor:
        """Return this process's part of the only tensor in a state dict of TorchRec, which has ``columns``."""
        part = self.part
        if not part.rows:
            return torch.zeros(0, columns, device=device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of ShardedTensor, which TorchRec still uses
            (shard,) = next(iter(state.values())).local_shards()
        return shard.tensor.view(part.rows, -1)

    def _of_all_processes(self, part: Tensor, columns: int, mesh: Any) -> DTensor:
        """Return ``(R, columns)`` of which each process has its part in the same memory."""
        from torch.distributed.tensor import DTensor, Shard
        from torchrec.distributed.shards_wrapper import LocalShardsWrapper  # torch's cannot be copied in the background

        place = (self.part.row, self.part.column)
        local: Any = LocalShardsWrapper([part], [place]) if len(part) else LocalShardsWrapper([], [])
        shape = torch.Size([self.num_embeddings, columns])
        return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=(columns, 1))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows ``(..., D)`` of ``ids`` ``(...)``; in evaluation, others may be in ``answer_lookups``.

        Raises
        ------
        ConfigError
            A second lookup in a training step: fbgemm would update the table for each of them, where one process
            updates it once, by the sum of the gradients. Of ``sgd`` both are the same.
        """
        if self.training:
            self._begin_lookup()
        else:
            _largest(self.number + 1)
        flat = ids.reshape(-1)
        rows = self.look_up(flat)
        if self.padding_idx is not None:  # which has no gradient
            rows = rows.masked_fill((flat == self.padding_idx).unsqueeze(1), 0.0)
        return rows.view(*ids.shape, self.embedding_dim)

    def _begin_lookup(self) -> None:
        """Refuse a second lookup in a training step, and hand the learning rate to the kernel."""
        if torch.is_grad_enabled() and self.group["rule"] != "sgd":
            if self.is_looked_up:
                raise ConfigError(
                    f"a table of {self.num_embeddings:,} rows is sharded, but looked up twice in a step (by a feature "
                    f"with share_embedding, or by the model), which table_optimizer: {self.group['rule']} does not "
                    "support; set table_optimizer: sgd, or table: touched"
                )
            self.is_looked_up = True
        optimizer = self._engine[0].fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = self.group["lr"]
        optimizer.step()

    def look_up(self, ids: Tensor) -> Tensor:
        """Return the rows ``(n, D)`` of ids ``(n,)``, any number on each rank."""
        from torchrec import KeyedJaggedTensor

        lengths = torch.tensor([len(ids)], device=ids.device)
        return self._engine[0](KeyedJaggedTensor(keys=["table"], values=ids, lengths=lengths))["table"].values()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.spread_weight

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *more: Any) -> None:
        weight = state_dict.get(prefix + "weight")
        if weight is None:
            more[2].append(prefix + "weight")  # the missing ones
        else:
            self.copy_own(self.weight, weight)

    @torch.no_grad()
    def copy_own(self, part: Tensor, whole: Any) -> None:
        """Copy this process's part of a tensor ``(R, K)``, which may be spread over processes as the table is.

        A tensor with fewer rows, which is whole, leaves the others as they are.
        """
        if not len(part):
            return
        if is_distributed(whole):
            part.copy_(whole.to_local().local_shards()[0])
        else:
            rows = whole[self._place_in(whole.shape[1], self.part)]
            part[: len(rows)].copy_(rows)

    @torch.no_grad()
    def gather(self, part: Tensor) -> Tensor:
        """Return ``(R, K)`` of the parts of all ranks on rank 0, mapped from a temporary file.

        Raises
        ------
        UserError
            There is not enough disk space for the file.
        """
        if dist.get_rank():
            for piece in part.split(BLOCK) if len(part) else ():
                dist.send(piece.cpu().contiguous(), 0)
            return torch.empty(0)
        spread = self.spread_sums if self.spread_sums is not None and part is self.sums else self.spread_weight
        rows, columns = spread.shape
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            try:  # without room, a write to the mapping would kill the process
                os.posix_fallocate(file.fileno(), 0, part.element_size() * rows * columns)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # others: it cannot reserve
                    raise UserError(
                        f"{self.folder}: not enough disk space for a file of the whole table of {rows:,} x {columns} "
                        f"({error.strerror}), from which the weights are written; free disk space"
                    ) from error
            # The mapping stays valid when the file is deleted.
            whole = torch.from_file(file.name, shared=True, size=rows * columns, dtype=part.dtype).view(rows, columns)
        for found in self.layout.parts:
            place = whole[self._place_in(columns, found)]
            if found.rank == 0:
                place.copy_(part)
                continue
            for piece in place.split(BLOCK):
                received = torch.empty(piece.shape, dtype=part.dtype)
                dist.recv(received, found.rank)
                piece.copy_(received)
        return whole

    def _place_in(self, columns: int, part: Part) -> tuple[slice, slice]:
        """Return the place of a part in a tensor ``(R, columns)``: of the table, or of one number for each row."""
        first, count = (part.column, part.columns) if columns == self.embedding_dim else (0, columns)
        return slice(part.row, part.row + part.rows), slice(first, first + count)


class ShardedOptimizer:
    """The optimizer of sharded tables as ``Optimizers`` and training checkpoints see it; the kernel takes its steps.

    Its state is that of a ``TouchedOptimizer`` for whole tables, so that any number of processes can resume it.
    """

    def __init__(self, tables: Sequence[ShardedTable]) -> None:
        self.tables = tables
        self.param_groups = [tables[0].group]

    def step(self) -> None:
        """End a step; the backward pass has updated the tables."""
        for table in self.tables:
            table.is_looked_up = False

    def zero_grad(self) -> None:
        """Begin a step; tables have no gradients."""
        self.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with ``DTensor`` of all processes' rows."""
        state = {
            index: {"sum": table.spread_sums, "step": 0}
            for index, table in enumerate(self.tables)
            if table.sums is not None
        }
        return {"state": state, "param_groups": [{**self.param_groups[0], "params": list(range(len(self.tables)))}]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load this process's rows of a state."""
        self.param_groups[0].update({k: v for k, v in state["param_groups"][0].items() if k != "params"})
        for index, table in enumerate(self.tables):
            if table.sums is not None:
                values = state["state"].get(index)
                table.copy_own(table.sums, values["sum"]) if values else table.sums.zero_()


def sharded_tables(model: nn.Module) -> list[ShardedTable]:
    """Return the tables of a model that are spread over processes."""
    return [module for module in model.modules() if isinstance(module, ShardedTable)]


def gathered_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model, on rank 0 with whole tables. All processes call it together."""
    state = dict(model.state_dict())
    whole: dict[int, Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ShardedTable):
            if id(module) not in whole:
                whole[id(module)] = module.gather(module.weight)
            state[f"{name}.weight"] = whole[id(module)]
    return state


@torch.no_grad()
def answer_lookups(model: nn.Module) -> None:
    """Take part in the lookups of ranks that still evaluate, until none does."""
    tables = sharded_tables(model)
    while tables and (wanted := _largest(0)):
        table = tables[wanted - 1]
        table.look_up(torch.zeros(0, dtype=torch.int64, device=table.weight.device))


def _largest(number: int) -> int:
    """Return the maximum over ranks."""
    value = torch.tensor([number])
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)
