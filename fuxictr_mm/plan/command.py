"""``fuxictr-mm plan``: the memory that an experiment would take, without reading its rows or making its tables."""

from __future__ import annotations

import argparse
import math
from typing import Any

from fuxictr_mm.arguments import add_examples, add_experiment_options, add_output_options, show

#: Of a process with torch and this library, before it reads data.
PROCESS_BYTES = 350_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm plan``."""
    add_examples(
        parser,
        "fuxictr-mm plan --expid DIN_MM_tiny",
        "fuxictr-mm plan --expid DIN_MM_tiny --gpus 8 --memory 80",
    )
    add_experiment_options(parser)
    parser.add_argument("--gpus", type=int, metavar="N", help="processes, one on each GPU (default: one on the CPU)")
    parser.add_argument("--memory", type=float, metavar="GB", help="memory of each (default: what is free here)")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Print the plan."""
    from fuxictr_mm.experiment import Experiment

    experiment = Experiment.load(args.expid, args.config, data_root=args.data_root, model_zoo=args.model_zoo)
    document = make_plan(experiment, args.gpus, args.memory)
    show(args, document, describe(document))


def make_plan(experiment: Any, gpus: int | None = None, memory: float | None = None) -> dict[str, Any]:
    """Return the memory of each process in bytes, part by part, and whether it fits.

    Parameters
    ----------
    experiment : Experiment
        Of a MultimodalModel and a dataset with item files.
    gpus : int, optional
        Number of processes, each on a GPU; None for one on the CPU.
    memory : float, optional
        GB of each; by default what is free on this machine, shared by the processes.

    Returns
    -------
    dict
        ``parts``: name, bytes and a note of each part; ``tables``: shape, kind and bytes of each; ``total``, ``limit``,
        ``fits``; ``sent``, bytes that a process sends in a step.

    Raises
    ------
    ConfigError
        Another kind of model or dataset, or an option out of range.
    """
    import torch

    from fuxictr_mm.compat import is_third_party
    from fuxictr_mm.data.memory import MEMORY_FRACTION, free_memory
    from fuxictr_mm.embedding_model import FLAGS_PER_ID
    from fuxictr_mm.errors import ConfigError
    from fuxictr_mm.plan.footers import measure_data
    from fuxictr_mm.plan.model import measure_model
    from fuxictr_mm.tables.layout import TableShape, choose_layouts

    config = experiment.config
    if is_third_party(experiment.model_class):
        raise ConfigError(f"plan: {config.model} is no MultimodalModel, expected one; its memory is not known before")
    if not config.dataset.item_files:
        raise ConfigError(
            f"plan: dataset {config.dataset_id} has no item_info; plan reads the sizes of tables from item files, and "
            "takes no dataset without them, of whatever roles"
        )
    if not config.dataset.train_data:
        raise ConfigError(f"plan: dataset {config.dataset_id}: train_data is missing; name the split's file")
    for name, value in (("--gpus", gpus), ("--memory", memory)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}, expected a number above 0")
    processes = gpus or 1
    free = free_memory(torch.device("cpu"))
    limit = memory * 1e9 if memory is not None else free / processes
    data = measure_data(config)
    model = measure_model(experiment, data.features, data.num_items, data.history)
    batch = min(config.batch_size, data.split_rows["train"])
    ids = batch * (1 + data.history)
    parts: list[dict[str, Any]] = []
    tables: list[dict[str, Any]] = []

    def add(name: str, size: float, note: str = "") -> None:
        parts.append({"part": name, "bytes": int(size), "note": note})

    add("process", PROCESS_BYTES, "Python, torch, libraries")
    columns = ", ".join(name for name in data.item_bytes if name != "known") or "none"
    add("items", sum(data.item_bytes.values()), f"{data.num_items:,} items; features: {columns}")

    def parts_of(split: str) -> int:
        """Return the number of processes that share the rows of a split."""
        return processes if split != "train" or config.shuffle else 1

    budget = MEMORY_FRACTION * limit
    for name in sorted(data.split_bytes, key=lambda name: name == "train"):
        size = data.split_bytes[name] // parts_of(name)
        resident = config.resident is True or (size <= budget and (name != "train" or config.resident is not False))
        rows = -(-data.split_rows[name] // parts_of(name))
        if resident:
            budget -= size
        else:
            size = size * min(config.buffer_rows // parts_of(name), rows) // max(rows, 1)
        add(f"rows of {name}", size, f"{rows:,} rows, {'in memory' if resident else 'streamed'}")
    sent = 0.0
    # The weights beside their average in an evaluation, and the best weights on the CPU while they are read at the end.
    copies = (gpus is None) + config.averages_weights
    spread = {t.name: t for t in model.tables if t.kind == "sharded" and processes > 1}
    shapes = {name: TableShape(t.rows, t.dim, t.sharding) for name, t in spread.items()}
    layouts = choose_layouts(shapes, model.rule or "", processes, "cpu" if gpus is None else "cuda", limit)

    def weights_of(table: str, rank: int) -> int:
        """Return the number of weights of a sharded table in a process."""
        part = layouts[table].part(rank)
        return part.rows * part.columns

    # The process that has most of the sharded tables.
    rank = max(range(processes), key=lambda rank: sum(weights_of(name, rank) for name in spread))
    for table in model.tables:
        reached = min(table.rows, ids) if table.touched else table.rows
        layout = layouts.get(table.name)
        weights = table.weights if layout is None else weights_of(table.name, rank)
        sizes = {
            "weights": 4.0 * weights,
            "optimizer": 4.0 * weights * table.state,
            # Twice: as the backward pass makes it, and with each row once.
            "gradient": 4.0 * reached * table.dim * (2 if table.touched else 1),
        }
        if copies and layout is None:
            sizes["copies"] = 4.0 * table.weights * copies
        if config.averages_weights:
            sizes["average"] = 4.0 * table.weights + 8.0 * table.rows * table.touched
        shown = ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in sizes.items())
        kind = table.kind if layout is None else f"sharded by {layout.kind}"
        add(f"table {table.name}", sum(sizes.values()), f"{table.rows:,} x {table.dim}, {kind}: {shown}")
        if layout is not None:
            sent += reached * layout.bytes_sent(rank, processes)
        elif table.touched:
            sent += (processes - 1) * reached * (4 * table.dim + 8)
        else:
            sent += _ring(sizes["weights"], processes)
        entry = {"feature": table.name, "rows": table.rows, "dim": table.dim, "table": table.kind}
        tables.append(entry | ({} if layout is None else {"sharding": layout.kind}) | sizes)
    numbers = 2 + model.other_state + copies + config.averages_weights
    of_network = 4 * model.other * numbers + model.buffers
    add("network", of_network, f"{model.other:,} parameters, with gradients, optimizer and copies")
    sent += _ring(4 * model.other, processes)
    note = "not known for a network of this size"
    kept: float = 9 * data.num_items if data.num_items <= FLAGS_PER_ID * ids else 40 * ids  # to find the distinct items
    if model.activations is not None:
        fixed, per_row = model.activations
        kept += fixed + per_row * batch
        note = f"approximate: of {batch:,} rows, with {data.history} history items each, what the forward pass keeps"
    add("batch", kept, note)
    total = sum(part["bytes"] for part in parts)
    return {
        "expid": config.expid,
        "processes": processes,
        "device": "CPU" if gpus is None else "GPU",
        "parts": parts,
        "tables": tables,
        "sent": int(sent),
        "total": total,
        "limit": int(limit),
        "fits": total <= limit,
    }


def _ring(size: float, processes: int) -> float:
    """Return the bytes that a process sends to average ``size`` bytes with the others."""
    return 2 * size * (processes - 1) / processes


def describe(plan: dict[str, Any]) -> str:
    """Return a plan as a table."""
    where = f"each of {plan['processes']} processes" if plan["processes"] > 1 else "one process"
    width = max(len(part["part"]) for part in plan["parts"])
    lines = [f"{plan['expid']}, {where} on the {plan['device']}, MB:"]
    lines += [f"  {p['part']:{width}}  {p['bytes'] / 1e6:11,.1f}  {p['note']}".rstrip() for p in plan["parts"]]
    answer = "fits" if plan["fits"] else "does not fit"
    lines.append(f"  {'total':{width}}  {plan['total'] / 1e6:11,.1f}  of {plan['limit'] / 1e6:,.0f}: {answer}")
    if plan["processes"] > 1:
        sent = f"{plan['sent'] / 1e6:,.1f} MB a step"
        has = "its part of the sharded tables" if any(t["table"] == "sharded" for t in plan["tables"]) else "all tables"
        lines.append(f"Every process has {has}, reads its part of the rows, and sends {sent}.")
    lines.append("Not counted: temporary copies while files are read or written, and of the backward pass.")
    return "\n".join(lines)
