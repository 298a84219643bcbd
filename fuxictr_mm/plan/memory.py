"""The memory that an experiment needs, without reading its rows or allocating its tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fuxictr_mm.errors import ConfigError

if TYPE_CHECKING:
    from fuxictr_mm.config import ExperimentConfig
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm.plan.footers import DataSizes
    from fuxictr_mm.plan.model import ModelSizes

#: Of a process with torch and this library, before it reads data.
PROCESS_BYTES = 350_000_000


@dataclass(frozen=True)
class Part:
    """A part of the memory of a process."""

    part: str
    bytes: int
    note: str


@dataclass(frozen=True)
class Plan:
    """The memory of each process in bytes, part by part, and whether it fits."""

    expid: str
    processes: int
    device: str  #: ``CPU`` or ``GPU``.
    parts: list[Part]
    tables: list[dict[str, Any]]  #: Feature, kind, shape and parts of each table.
    sent: int  #: Bytes that a process sends in a step.
    total: int
    limit: int
    fits: bool


def make_plan(experiment: Experiment, gpus: int | None = None, memory: float | None = None) -> Plan:
    """Return the memory of an experiment.

    Without ``gpus``, it is that of one process on the CPU; ``memory``, GB of each, is by default what is free on this
    machine.

    Raises
    ------
    ConfigError
        Another kind of model or dataset, or an option out of range.
    """
    import torch

    from fuxictr_mm.data.memory import free_memory
    from fuxictr_mm.plan.footers import measure_data
    from fuxictr_mm.plan.model import measure_model

    _check(experiment, gpus, memory)
    config, processes = experiment.config, gpus or 1
    limit = memory * 1e9 if memory is not None else free_memory(torch.device("cpu")) / processes
    data = measure_data(config)
    model = measure_model(experiment, data.features, data.num_items, data.history)
    run = _Run(config, data, model, processes, gpus is not None, limit)
    columns = ", ".join(name for name in data.item_bytes if name != "known") or "none"
    of_tables, tables, sent = _tables(run)
    parts = [
        Part("process", PROCESS_BYTES, "Python, torch, libraries"),
        Part("items", sum(data.item_bytes.values()), f"{data.num_items:,} items; features: {columns}"),
        *_splits(run),
        *of_tables,
        _network(run),
        _batch(run),
    ]
    total = sum(part.bytes for part in parts)
    sent += _ring(4 * model.other, processes)
    if config.sync_batch_norm:  # mean and variance of its own rows to each other process, and a sum of two gradients
        sent += 8 * model.norm_channels * (processes - 1) + _ring(8 * model.norm_channels, processes)
    device = "GPU" if run.on_gpu else "CPU"
    return Plan(config.expid, processes, device, parts, tables, int(sent), total, int(limit), total <= limit)


@dataclass(frozen=True)
class _Run:
    """What is planned; ``limit`` is in bytes of each process."""

    config: ExperimentConfig
    data: DataSizes
    model: ModelSizes
    processes: int
    on_gpu: bool
    limit: float

    @property
    def batch_size(self) -> int:
        return min(self.config.batch_size, self.data.split_rows["train"])

    @property
    def batch_ids(self) -> int:
        """Ids of items in a batch."""
        return self.batch_size * (1 + self.data.history)

    @property
    def copies(self) -> int:
        """Copies of the weights: beside their average in an evaluation, and the best on the CPU while they are read."""
        return (not self.on_gpu) + self.config.averages_weights


def _check(experiment: Experiment, gpus: int | None, memory: float | None) -> None:
    """Refuse what cannot be planned."""
    from fuxictr_mm.compat import is_third_party

    config = experiment.config
    if is_third_party(experiment.model_class):
        raise ConfigError(
            f"plan: {config.model} is not a MultimodalModel, so its memory cannot be estimated; expected a "
            "model of this library"
        )
    if not config.dataset.item_files:
        raise ConfigError(
            f"plan: dataset {config.dataset_id} has no item_info; plan reads the sizes of tables from item "
            "files, and does not support datasets without them"
        )
    if not config.dataset.train_data:
        raise ConfigError(f"plan: dataset {config.dataset_id}: train_data is missing; set it to the file of the split")
    for name, value in (("--gpus", gpus), ("--memory", memory)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}, expected a number above 0")


def _splits(run: _Run) -> list[Part]:
    """Return the rows of each split, in memory or streamed; train comes last, and takes what the others leave."""
    from fuxictr_mm.data.memory import MEMORY_FRACTION

    config, data, parts = run.config, run.data, []
    budget = MEMORY_FRACTION * run.limit
    for name in sorted(data.split_bytes, key=lambda name: name == "train"):
        # Processes that share the rows of the split.
        sharing = run.processes if name != "train" or config.shuffle else 1
        size = data.split_bytes[name] // sharing
        resident = config.resident is True or (size <= budget and (name != "train" or config.resident is not False))
        rows = -(-data.split_rows[name] // sharing)
        if resident:
            budget -= size
        else:
            size = size * min(config.buffer_rows // sharing, rows) // max(rows, 1)
        parts.append(Part(f"rows of {name}", size, f"{rows:,} rows, {'in memory' if resident else 'streamed'}"))
    return parts


def _tables(run: _Run) -> tuple[list[Part], list[dict[str, Any]], float]:
    """Return a part and a description of each table, and the bytes that a process sends for them in a step."""
    from fuxictr_mm.tables.layout import TableShape, choose_layouts

    config, processes = run.config, run.processes
    spread = {t.name: t for t in run.model.tables if t.kind == "sharded" and processes > 1}
    shapes = {name: TableShape(t.rows, t.dim, t.sharding) for name, t in spread.items()}
    layouts = choose_layouts(shapes, run.model.rule or "", processes, "cuda" if run.on_gpu else "cpu", run.limit)

    def weights_of(table: str, rank: int) -> int:
        """Return the number of weights of a sharded table in a process."""
        part = layouts[table].part(rank)
        return part.rows * part.columns

    # The process that has most of the sharded tables.
    rank = max(range(processes), key=lambda rank: sum(weights_of(name, rank) for name in spread))
    parts, tables, sent = [], [], 0.0
    for table in run.model.tables:
        reached = min(table.rows, run.batch_ids) if table.touched else table.rows
        layout = layouts.get(table.name)
        weights = table.weights if layout is None else weights_of(table.name, rank)
        sizes = {
            "weights": 4.0 * weights,
            "optimizer": 4.0 * weights * table.state,
            # Twice: as the backward pass makes it, and with each row once.
            "gradient": 4.0 * reached * table.dim * (2 if table.touched else 1),
        }
        if run.copies and layout is None:
            sizes["copies"] = 4.0 * table.weights * run.copies
        if config.averages_weights:
            sizes["average"] = 4.0 * table.weights + 8.0 * table.rows * table.touched
        shown = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in sizes.items())
        kind = table.kind if layout is None else f"sharded by {layout.kind}"
        note = f"{table.rows:,} x {table.dim}, {kind}: {shown}"
        parts.append(Part(f"table {table.name}", int(sum(sizes.values())), note))
        if layout is not None:
            sent += reached * layout.bytes_sent(rank, processes)
        elif table.touched:
            sent += (processes - 1) * reached * (4 * table.dim + 8)
        else:
            sent += _ring(sizes["weights"], processes)
        entry = {"feature": table.name, "rows": table.rows, "dim": table.dim, "table": table.kind}
        tables.append(entry | ({} if layout is None else {"sharding": layout.kind}) | sizes)
    return parts, tables, sent


def _network(run: _Run) -> Part:
    model = run.model
    numbers = 2 + model.other_state + run.copies + run.config.averages_weights
    size = 4 * model.other * numbers + model.buffers
    return Part("network", int(size), f"{model.other:,} parameters, with gradients, optimizer and copies")


def _batch(run: _Run) -> Part:
    """Return what the forward pass keeps of a batch."""
    from fuxictr_mm.embedding_model import FLAGS_PER_ID

    data, rows, ids = run.data, run.batch_size, run.batch_ids
    size: float = 9 * data.num_items if data.num_items <= FLAGS_PER_ID * ids else 40 * ids  # to find distinct items
    if run.model.activations is None:
        return Part("batch", int(size), "unknown for a network of this size")
    fixed, per_row = run.model.activations
    note = f"approximate: saved by the forward pass of {rows:,} rows with {data.history} history items each"
    return Part("batch", int(size + fixed + per_row * rows), note)


def _ring(size: float, processes: int) -> float:
    """Return the bytes that a process sends to average ``size`` bytes with the others."""
    return 2 * size * (processes - 1) / processes
