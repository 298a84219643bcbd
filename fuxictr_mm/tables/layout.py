"""How a table is spread over processes: by rows, by columns, or as a whole; TorchRec's planner chooses.

Shape letters: R rows of a table, D its dim, W processes.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.tables.torchrec import check_torchrec, make_collection

#: Fraction of the memory that tables may not take: network, batches, interactions.
RESERVED = 0.3
#: Values of ``sharding``, and TorchRec's names of those that it may choose.
SHARDINGS = {"row": "row_wise", "table": "table_wise", "column": "column_wise"}


class Part(NamedTuple):
    """The part of a table ``(R, D)`` that one process has."""

    rank: int  #: Of the process.
    #: The first of each.
    row: int
    column: int
    #: How many.
    rows: int
    columns: int


class Layout(NamedTuple):
    """How one table is spread."""

    kind: str  #: ``row``, ``table`` (not split) or ``column``.
    parts: tuple[Part, ...]  #: At most one of each process, ascending by rank.

    def part(self, rank: int) -> Part:
        """Return the part of a process, which may be empty."""
        return next((part for part in self.parts if part.rank == rank), Part(rank, 0, 0, 0, 0))

    def bytes_sent(self, rank: int, processes: int) -> float:
        """Return what a process sends in a step for each row that every process looks up, in float32."""
        rows = sum(part.rows for part in self.parts if part.column == 0)
        own = self.part(rank)
        others = [part for part in self.parts if part.rank != rank]
        asked = sum((8 + 4 * part.columns) * part.rows / rows for part in others)  # ids, and gradients of their rows
        return asked + 4 * own.columns * own.rows / rows * (processes - 1)


class TableShape(NamedTuple):
    """A table to be spread."""

    #: R and D.
    rows: int
    dim: int
    sharding: str  #: Its setting: ``row``, ``table``, ``column`` or ``auto``.


def memory_of_process(device: str) -> float:
    """Return the bytes of memory that a process may use: of its GPU, or its part of this machine's."""
    if device == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def by_rows(rows: int, dim: int, processes: int) -> Layout:
    """Return the layout of a table of which each process has R / W rows, rounded up, and the last ones the rest."""
    block = -(-rows // processes)
    bounds = [min(rows, rank * block) for rank in range(processes + 1)]
    parts = [Part(rank, first, 0, last - first, dim) for rank, (first, last) in enumerate(pairwise(bounds))]
    return Layout("row", tuple(part for part in parts if part.rows))


def choose_layouts(
    tables: Mapping[str, TableShape], rule: str, processes: int, device: str, memory: float
) -> dict[str, Layout]:
    """Return the layout of every table; the same on all processes, if they call it with the same arguments.

    ``row`` needs no planner. If any table has another setting, TorchRec's planner places all of them, by its estimates
    of the time of a step and of the ``memory`` of each process in bytes. ``rule`` is that of ``TouchedOptimizer``.

    Raises
    ------
    ConfigError
        The tables do not fit.
    UserError
        TorchRec is needed and not installed.
    """
    if all(table.sharding == "row" for table in tables.values()):
        return {name: by_rows(table.rows, table.dim, processes) for name, table in tables.items()}
    check_torchrec()
    from torch import nn
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.distributed.planner.stats import NoopEmbeddingStats
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import PlannerError

    collections = nn.ModuleList(
        make_collection(name, table.rows, table.dim, {"rule": rule, "lr": 0.0, "eps": 0.0})
        for name, table in tables.items()
    )
    allowed = [kind for kind in SHARDINGS if kind != "column" or rule != "rowwise_adagrad"]
    constraints = {
        name: ParameterConstraints(
            sharding_types=[SHARDINGS[k] for k in (allowed if table.sharding == "auto" else [table.sharding])],
            min_partition=max(4, -(-table.dim // processes)),
        )
        for name, table in tables.items()
    }
    limits: Any = {"ddr_cap" if device == "cpu" else "hbm_cap": int(memory)}
    local = min(processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    logging.getLogger("torchrec.distributed.planner").setLevel(logging.ERROR)  # advice for its own users
    planner = EmbeddingShardingPlanner(
        topology=Topology(processes, device, local_world_size=local, **limits),
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
        stats=NoopEmbeddingStats(),
    )
    sharders: Any = [EmbeddingCollectionSharder()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plan = planner.plan(collections, sharders).plan
    except PlannerError as error:
        raise ConfigError(
            f"features {', '.join(tables)}: their sharded tables do not fit into {processes} processes by TorchRec's "
            "plan; start more, or set sharding: row"
        ) from error
    found: dict[str, Any] = {name: sharding for module in plan.values() for name, sharding in module.items()}
    return {name: _layout(found[name]) for name in tables}


def _layout(sharding: Any) -> Layout:
    """Return the layout in a ``ParameterSharding`` of TorchRec."""
    kind = next(k for k, name in SHARDINGS.items() if name == sharding.sharding_type)
    shards, ranks = sharding.sharding_spec.shards, list(sharding.ranks)
    if len(set(ranks)) < len(ranks):  # two blocks of columns on one process, which files cannot tell apart
        ranks = list(range(len(ranks)))
    parts = [Part(rank, *shard.shard_offsets, *shard.shard_sizes) for rank, shard in zip(ranks, shards, strict=True)]
    return Layout(kind, tuple(sorted(part for part in parts if part.rows)))
