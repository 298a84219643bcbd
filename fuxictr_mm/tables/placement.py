"""Tables with ``table: sharded`` in the place of a model's, and their initial weights.

Shape letters: R rows of a table, D its dim.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from fuxictr_mm.tables.layout import Part, TableShape, choose_layouts, memory_of_process
from fuxictr_mm.tables.sharded import Processes, ShardedTable, is_spread

logger = logging.getLogger(__name__)

#: Rows that one random generator initializes.
BLOCK = 2**16
#: Standard deviation of initial weights, as FuxiCTR has it.
INITIAL_STD = 1e-4


class WholeTable(nn.Embedding):
    """A table with ``table: sharded`` in one process.

    FuxiCTR initializes tables of the class ``nn.Embedding`` itself, by the global generator, and passes over this one.
    """

    def __init__(self, shape: TableShape, padding_idx: int | None) -> None:
        super().__init__(shape.rows, shape.dim, padding_idx, _weight=torch.empty(shape.rows, shape.dim))
        self.part = Part(0, 0, 0, shape.rows, shape.dim)


@torch.no_grad()
def initialize(table: WholeTable | ShardedTable, number: int) -> None:
    """Sample the initial weights of table ``number`` of a model; they depend only on the seed and on it.

    The global generator is not used, so that the weights of the other layers do not depend on the parts either.
    """
    weight, part, dim = table.weight, table.part, table.embedding_dim
    columns = slice(part.column, part.column + part.columns)
    for first in range(part.row // BLOCK * BLOCK, part.row + part.rows, BLOCK):
        seeds = np.random.SeedSequence([torch.initial_seed(), number, first // BLOCK])
        generator = torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        values = torch.empty(BLOCK, dim).normal_(0, INITIAL_STD, generator=generator)
        begin, end = max(first, part.row), min(first + BLOCK, part.row + part.rows)
        weight[begin - part.row : end - part.row] = values[begin - first : end - first, columns]
    if table.padding_idx is not None and part.row <= table.padding_idx < part.row + part.rows:
        weight[table.padding_idx - part.row] = 0.0


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
    made: Mapping[str, WholeTable | ShardedTable]
    if is_spread():
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # TorchRec samples from it
            made = _spread(shapes, found, group, Processes(dist.new_group(), device, folder))
    else:
        made = {name: WholeTable(shape, found[name].padding_idx) for name, shape in shapes.items()}
    for number, (name, table) in enumerate(made.items()):
        if not table.weight.is_meta:
            initialize(table, number)
        for other in [key for key, layer in layers.items() if layer is found[name]]:
            layers[other] = table


def _spread(
    shapes: Mapping[str, TableShape], found: Mapping[str, Any], group: dict[str, Any], processes: Processes
) -> dict[str, ShardedTable]:
    """Return the tables of several processes, in the layouts that rank 0 chooses."""
    device = processes.device.type
    # The planner may break a tie differently in every process.
    layouts = [choose_layouts(shapes, group["rule"], dist.get_world_size(), device, memory_of_process(device))]
    dist.broadcast_object_list(layouts)
    made = {}
    for number, (name, shape) in enumerate(shapes.items()):
        table = ShardedTable(shape, layouts[0][name], found[name].padding_idx, number, group, processes)
        own = " x ".join(f"{size:,}" for size in table.weight.shape)
        logger.info(
            f"feature '{name}': table of {shape.rows:,} rows, sharded by {table.layout.kind}, {own} in this process"
        )
        made[name] = table
    return made
