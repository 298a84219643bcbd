"""Embedding tables that are spread over processes, by TorchRec; fbgemm updates them in the backward pass.

Shape letters: R rows of a table, D its dim, n ids of a lookup, W processes.
"""

from __future__ import annotations

import copy
import errno
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.tables.layout import Layout, Part, TableShape, choose_layouts, memory_of_process

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

logger = logging.getLogger(__name__)

#: Torch, and the TorchRec and fbgemm whose libraries are built for it. Each pair was tested.
RELEASES = {"2.13": "1.8", "2.14": "1.9"}
#: Rows that one random generator initializes, and that are sent in one message.
BLOCK = 2**16
#: Standard deviation of initial weights, as FuxiCTR has it.
INITIAL_STD = 1e-4


def is_spread() -> bool:
    """Whether there are several processes to spread tables over; one process has whole tables, as ``nn.Embedding``."""
    return dist.is_initialized() and dist.get_world_size() > 1


def is_distributed(value: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``, without the import of that class, which takes a second."""
    return hasattr(value, "to_local")


@torch.no_grad()
def initialize(weight: Tensor, part: Part, dim: int, number: int, padding_idx: int | None) -> None:
    """Sample the initial weights of a part of table ``number`` of a model; they depend only on the seed and on it.

    The global generator is not used, so that the weights of the other layers do not depend on the parts either.
    """
    columns = slice(part.column, part.column + part.columns)
    for first in range(part.row // BLOCK * BLOCK, part.row + part.rows, BLOCK):
        seeds = np.random.SeedSequence([torch.initial_seed(), number, first // BLOCK])
        generator = torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        values = torch.empty(BLOCK, dim).normal_(0, INITIAL_STD, generator=generator)
        begin, end = max(first, part.row), min(first + BLOCK, part.row + part.rows)
        weight[begin - part.row : end - part.row] = values[begin - first : end - first, columns]
    if padding_idx is not None and part.row <= padding_idx < part.row + part.rows:
        weight[padding_idx - part.row] = 0.0


class WholeTable(nn.Embedding):
    """A table with ``table: sharded`` in one process, with the initial weights that several processes give it.

    FuxiCTR initializes tables of the class ``nn.Embedding`` itself, by the global generator, and passes over this one.
    ``number`` is that of the table among the sharded ones of the model.
    """

    def __init__(self, rows: int, dim: int, padding_idx: int | None, number: int) -> None:
        super().__init__(rows, dim, padding_idx, _weight=torch.empty(rows, dim))
        if not self.weight.is_meta:
            initialize(self.weight, Part(0, 0, 0, rows, dim), dim, number, padding_idx)


class ShardedTable(nn.Module):
    """A table in the place of an ``nn.Embedding``, of which each process has a part. All look up together.

    In a state dict it has the name of an ``nn.Embedding``'s weight: a ``DTensor`` of the parts of all processes, or a
    whole one by ``gathered_state``; a process that loads one takes its own part of it. It has no parameters, as the
    backward pass updates it. Initial weights are those of a ``WholeTable``, whatever the layout.

    ``group`` has the settings of the optimizer of all sharded tables: ``rule``, ``lr``, ``eps``. ``number`` is that of
    the table among those of the model. Rank 0 gathers a whole table in a temporary file in ``folder``. ``processes``
    are all, in a group of its own, so that lookups need no order among other messages.

    Raises
    ------
    UserError
        TorchRec and fbgemm are not installed, or do not fit.
    """

    def __init__(
        self,
        rows: int,
        dim: int,
        layout: Layout,
        padding_idx: int | None,
        group: dict[str, Any],
        number: int,
        device: torch.device,
        folder: Path,
        processes: Any,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = rows, dim, padding_idx
        self.layout, self.group, self.number, self.folder = layout, group, number, folder
        self.part = layout.part(dist.get_rank())
        #: Whether the current step has looked up rows to train.
        self.is_looked_up = False
        # In a tuple, in which nn.Module does not find its parameters.
        self._engine = (_make_engine(rows, dim, layout, group, device, processes),)
        #: This process's part of the weights, and of the optimizer's sums, of which a row has D or one, if it has any.
        self.weight = self._local(self._engine[0].state_dict(), dim, device)
        self.sums: Tensor | None = None
        if group["rule"] != "sgd":
            per_row = 1 if group["rule"] == "rowwise_adagrad" else dim
            state = list(self._engine[0].fused_optimizer.state_dict()["state"].values())
            self.sums = self._local(state[0] if state else {}, per_row, device)
        from torch.distributed.device_mesh import DeviceMesh

        mesh = DeviceMesh.from_group(processes, device.type)
        #: The same of all processes, for state dicts.
        self.spread_weight = self._of_all_processes(self.weight, dim, mesh)
        self.spread_sums = None if self.sums is None else self._of_all_processes(self.sums, per_row, mesh)
        initialize(self.weight, self.part, dim, number, padding_idx)

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
            if torch.is_grad_enabled() and self.group["rule"] != "sgd":
                if self.is_looked_up:
                    raise ConfigError(
                        f"a table of {self.num_embeddings:,} rows is sharded, but looked up twice in a step (by a "
                        "feature with share_embedding, or by the model), which table_optimizer: "
                        f"{self.group['rule']} does not support; set table_optimizer: sgd, or table: touched"
                    )
                self.is_looked_up = True
            optimizer = self._engine[0].fused_optimizer
            for group in optimizer.param_groups:
                group["lr"] = self.group["lr"]
            optimizer.step()  # hands the learning rate to the kernel
        else:
            _largest(self.number + 1)
        flat = ids.reshape(-1)
        rows = self.look_up(flat)
        if self.padding_idx is not None:  # which has no gradient
            rows = rows.masked_fill((flat == self.padding_idx).unsqueeze(1), 0.0)
        return rows.view(*ids.shape, self.embedding_dim)

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
            rows = whole[_slices(self.part, whole.shape[1] < self.embedding_dim)]
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
        per_row = self.group["rule"] == "rowwise_adagrad" and part is self.sums
        shape = (self.num_embeddings, 1 if per_row else self.embedding_dim)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            try:  # without room, a write to the mapping would kill the process
                os.posix_fallocate(file.fileno(), 0, part.element_size() * shape[0] * shape[1])
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # others: it cannot reserve
                    raise UserError(
                        f"{self.folder}: not enough disk space for a file of the whole table of "
                        f"{shape[0]:,} x {shape[1]} "
                        f"({error.strerror}), from which the weights are written; free disk space"
                    ) from error
            # The mapping stays valid when the file is deleted.
            whole = torch.from_file(file.name, shared=True, size=shape[0] * shape[1], dtype=part.dtype).view(shape)
        for found in self.layout.parts:
            if found.rank == 0:
                whole[_slices(found, per_row)] = part
                continue
            for piece in whole[_slices(found, per_row)].split(BLOCK):
                received = torch.empty(piece.shape, dtype=part.dtype)
                dist.recv(received, found.rank)
                piece.copy_(received)
        return whole


def _slices(part: Part, per_row: bool) -> tuple[slice, slice]:
    """Return the place of a part; with ``per_row``, in a tensor of one number for each row."""
    columns = slice(0, 1) if per_row else slice(part.column, part.column + part.columns)
    return slice(part.row, part.row + part.rows), columns


def make_collection(name: str, rows: int, dim: int, group: Mapping[str, Any]) -> Any:
    """Return TorchRec's ``EmbeddingCollection`` of one table on the meta device, where nobody makes the whole table."""
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.optim import RowWiseAdagrad
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    config = EmbeddingConfig(name=name, embedding_dim=dim, num_embeddings=rows, feature_names=[name])
    collection = EmbeddingCollection(tables=[config], device=torch.device("meta"))
    rules = {"adagrad": torch.optim.Adagrad, "rowwise_adagrad": RowWiseAdagrad, "sgd": torch.optim.SGD}
    settings = {"lr": group["lr"]} if group["rule"] == "sgd" else {"lr": group["lr"], "eps": group["eps"]}
    apply_optimizer_in_backward(rules[group["rule"]], collection.parameters(), settings)
    return collection


def _make_engine(
    rows: int, dim: int, layout: Layout, group: Mapping[str, Any], device: torch.device, processes: Any
) -> Any:
    """Return TorchRec's ``EmbeddingCollection`` of one table over all processes, with its optimizer."""
    check_torchrec()
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.sharding_plan import column_wise, construct_module_sharding_plan, row_wise, table_wise
    from torchrec.distributed.types import ShardingEnv

    ranks = [part.rank for part in sorted(layout.parts, key=lambda part: part.column)]
    spread = {
        "row": row_wise, "table": lambda: table_wise(rank=ranks[0]), "column": lambda: column_wise(ranks=ranks)
    }  # fmt: skip
    collection = make_collection("table", rows, dim, group)
    sharder: Any = EmbeddingCollectionSharder()
    world = dist.get_world_size()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = construct_module_sharding_plan(
            collection,
            {"table": spread[layout.kind]()},
            sharder=sharder,
            world_size=world,
            local_size=world,
            device_type=device.type,
        )
        return sharder.shard(collection, plan, ShardingEnv.from_process_group(processes), device=device)


def without_rows(feature_map: Any, names: Sequence[str]) -> Any:
    """Return a feature map in which the features ``names`` have tables of one row, to be replaced by sharded ones."""
    small = copy.copy(feature_map)
    small.features = {n: {**s, "vocab_size": 1} if n in names else s for n, s in feature_map.features.items()}
    return small


def place_tables(
    layers: nn.ModuleDict,
    names: Sequence[str],
    features: Mapping[str, Any],
    group: dict[str, Any],
    device: torch.device,
    folder: Path,
) -> None:
    """Replace the tables of the features ``names`` in ``layers``, and of those that share them, by sharded ones.

    One process gets whole ones. The global generator is not changed, so that the other layers start from the same
    weights for every number of processes and every layout.
    """
    found: dict[str, Any] = {name: layers[name] for name in names}
    shapes = {
        name: TableShape(features[name]["vocab_size"], table.embedding_dim, features[name].get("sharding", "row"))
        for name, table in found.items()
    }
    made: dict[str, nn.Module]
    if is_spread():
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # TorchRec samples from it
            made = _make_tables(shapes, found, group, device, folder)
    else:
        made = {
            name: WholeTable(shape.rows, shape.dim, found[name].padding_idx, number)
            for number, (name, shape) in enumerate(shapes.items())
        }
    for name, table in made.items():
        for other in [key for key, layer in layers.items() if layer is found[name]]:
            layers[other] = table


def _make_tables(
    shapes: Mapping[str, TableShape],
    found: Mapping[str, Any],
    group: dict[str, Any],
    device: torch.device,
    folder: Path,
) -> dict[str, nn.Module]:
    """Return the tables of several processes, in the layouts that rank 0 chooses."""
    # The planner may break a tie differently in every process.
    layouts = [
        choose_layouts(shapes, group["rule"], dist.get_world_size(), device.type, memory_of_process(device.type))
    ]
    dist.broadcast_object_list(layouts)
    processes = dist.new_group()
    made: dict[str, nn.Module] = {}
    for number, (name, shape) in enumerate(shapes.items()):
        table = ShardedTable(
            shape.rows, shape.dim, layouts[0][name], found[name].padding_idx, group, number, device, folder, processes
        )
        own = " x ".join(f"{size:,}" for size in table.weight.shape)
        logger.info(
            f"feature '{name}': table of {shape.rows:,} rows, sharded by {table.layout.kind}, {own} in this process"
        )
        made[name] = table
    return made


def check_torchrec() -> None:
    """Check that TorchRec and fbgemm are installed, in the versions for this torch.

    Raises
    ------
    UserError
        They are not; the error has the command that installs them.
    """
    versions = {}
    for name in ("torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    there = ", ".join(f"{name} {version}" for name, version in versions.items()) or "neither"
    release = RELEASES.get(_release(torch.__version__))
    if release is None:
        raise UserError(
            f"table: sharded needs torch {' or '.join(RELEASES)}, for which there are tested versions of torchrec and "
            f"fbgemm, found torch {torch.__version__}; python -m pip install torch==2.13.0"
        )
    install = (
        "python -m pip install --no-deps -r requirements-scale-cpu.txt; python -m pip install --no-deps "
        f"torchrec~={release}.0 fbgemm-gpu-cpu~={release}.0 (GPUs: torchrec~={release}.0 fbgemm-gpu~={release}.0 alone)"
    )
    found = f"table: sharded with torch {torch.__version__} needs torchrec and fbgemm {release}"
    if len(versions) < 2 or "torchrec" not in versions or {_release(v) for v in versions.values()} != {release}:
        raise UserError(f"{found}, found {there}; {install}")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a deprecation in TorchRec
    try:
        import torchrec  # noqa: F401
    except Exception as error:  # of a dynamic library that does not fit torch
        reason = " ".join(str(error).split())
        raise UserError(f"{found}, and the import of {there} fails ({reason}); {install}") from error


def _release(version: str) -> str:
    """Return major and minor of a version, which fbgemm follows torch in."""
    return ".".join(version.split(".")[:2])


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
