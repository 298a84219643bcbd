"""Training steps of one process beside those of several that share the global batch, one thread each.

    python -m benchmarks.ranks --model DIN_MM --processes 2

``torchrun`` starts the processes once. Blocks of steps alternate: in one, rank 0 trains alone on the global batch while
the others wait; in the next, all train together, each on its part of it; in a third, rank 0 trains alone on such a
part, which is the least that a step of several processes can cost. The ratio is taken pair by pair, so that a busy
machine slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.dataset import MODELS, add_sizes, experiment_of, make_data, parameters
from benchmarks.sides import endless
from benchmarks.throughput import environment, spread
from fuxictr_mm.data.interactions import InteractionTable, concatenate
from fuxictr_mm.data.shards import Shard, default_streams
from fuxictr_mm.runtime import is_one_of_several, keep_freed_memory
from fuxictr_mm.training import distributed
from fuxictr_mm.training.replicas import distribute


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--model", choices=list(MODELS), default="DIN_MM", help="model, with the challenge's hyper-parameters")
    option("--processes", type=int, default=2, help="number of processes")
    option("--batch_size", type=int, default=2048, help="rows of the global batch")
    option("--max_len", type=int, default=64, help="history positions")
    option("--steps", type=int, default=6, help="steps per block")
    option("--pairs", type=int, default=5, help="pairs of blocks")
    option("--table", choices=["dense", "touched", "sharded"], default="dense", help="kind of the table of item ids")
    option("--own_batch_norm", action="store_true", help="sync_batch_norm: False")
    option("--data", type=Path, metavar="DIR", help="dataset folder, such as one of fuxictr-mm synth")
    add_sizes(parser)
    option("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)
    for name in ("processes", "steps", "pairs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, expected 1 or more")
    if args.batch_size % args.processes:
        parser.error(f"--batch_size is {args.batch_size}, expected a multiple of --processes {args.processes}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Start the processes, or be one of them."""
    args = parse_arguments(argv)
    if is_one_of_several() or args.processes == 1:
        with distributed.process_group(-1):
            measure(args)
        return
    args.data = args.data or make_data(args.rows, args.users, args.items)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(args.processes)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "benchmarks.ranks"]
    words = [sys.argv[1:] if argv is None else list(argv), ["--data", str(args.data)]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run([*launcher, *words[0], *words[1]], env=environment, check=False).returncode)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train alone and together in turn, print and write; return the figures."""
    torch.set_num_threads(1)
    keep_freed_memory()
    specs = [{"name": "item_id", "table": args.table}]
    changes: dict[str, Any] = {"batch_size": args.batch_size, "max_len": args.max_len, "feature_specs": specs}
    changes["sync_batch_norm"] = not args.own_batch_norm
    if args.table == "sharded":
        changes |= {"table_optimizer": "rowwise_adagrad", "embedding_regularizer": 0}
    params = parameters(args.model, args.data, **changes)
    dataset = experiment_of(params).load_dataset({"train": True}, shard=Shard())
    table = dataset.splits["train"]
    streams = default_streams(distributed.size())
    # One process has the whole table and updates the same rows.
    single = "touched" if args.table == "sharded" else args.table
    alone_params = {**params, "feature_specs": [{"name": "item_id", "table": single}]}
    # The kind of the table is a setting of the dataset's features.
    whole = (
        dataset if single == args.table else experiment_of(alone_params).load_dataset({"train": True}, shard=Shard())
    )
    alone, part_alone = (
        make_step({**alone_params, "batch_size": size}, whole, table, Shard(0, 1, streams))
        for size in (args.batch_size, args.batch_size // distributed.size())
    )
    shard = distributed.make_shard(streams)
    part = concatenate(table.slice(rows.start, rows.stop) for rows in shard.train_rows(len(table)))
    together = make_step({**params, "batch_size": args.batch_size // shard.size}, dataset, part, shard, len(table))
    steps = {"alone": alone, "together": together, "part": part_alone}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    load = os.getloadavg()
    for pair in range(args.pairs + 1):  # the first one warms up
        for name in list(steps)[:: 1 if pair % 2 else -1]:
            _wait_for_all()
            started, cpu_started = time.perf_counter(), time.process_time()
            if name == "together" or distributed.rank() == 0:
                for _ in range(args.steps):
                    steps[name]()
            took, busy = time.perf_counter() - started, time.process_time() - cpu_started
            busy = distributed.total(busy) / (shard.size if name == "together" else 1)
            if pair:
                seconds[name].append(took / args.steps)
                cpu[name].append(busy / args.steps)
    figures = {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "json"},
        "environment": {**environment(), "load_before": load, "load_after": os.getloadavg()},
        "seconds_per_step": {name: spread(values) for name, values in seconds.items()},
        "cpu_seconds_per_step": {name: spread(values) for name, values in cpu.items()},
        "samples_per_second": {n: args.batch_size / statistics.median(seconds[n]) for n in ("alone", "together")},
        "ratio": _ratio(seconds["alone"], seconds["together"]),
        "cpu_ratio": _ratio(cpu["alone"], cpu["together"]),
        "most": _ratio(cpu["alone"], cpu["part"]),
    }
    if distributed.rank() == 0:
        report(figures)
        if args.json is not None:
            args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


def make_step(
    params: dict[str, Any], dataset: Any, table: InteractionTable, shard: Shard, num_samples: int | None = None
) -> Callable[[], None]:
    """Return what takes a training step of a model of its own on the rows of a shard."""
    experiment = experiment_of(params)
    torch.manual_seed(params["seed"])
    model = experiment.build_model(dataset)
    torch.set_num_threads(1)
    if shard.size > 1:
        distribute(model)
    loader = experiment.make_loader(table, model, shuffle=True, training=True, shard=shard)
    assert num_samples is None or loader.num_samples == num_samples
    batches = endless(loader)
    model.train()

    def step() -> None:
        model.train_step(next(batches))

    return step


def _ratio(first: list[float], second: list[float]) -> dict[str, float]:
    return spread([one / other for one, other in zip(first, second, strict=True)])


def _wait_for_all() -> None:
    """Wait without spinning until every process is here."""
    if distributed.size() > 1:
        dist.barrier()


def report(figures: dict[str, Any]) -> None:
    """Print the figures."""
    options, found = figures["options"], figures["environment"]
    print(f"{options['model']}, table {options['table']}, global batch {options['batch_size']}, one thread a process")
    print(f"{found['cpu']}, {found['cpus']} CPUs, torch {found['torch']}, load {found['load_before'][0]:.1f}", end=" ")
    print(f"to {found['load_after'][0]:.1f}")
    for name, processes in (("alone", 1), ("together", options["processes"])):
        rate, busy = figures["samples_per_second"][name], figures["cpu_seconds_per_step"][name]["median"]
        print(f"{processes} processes: {rate:,.0f} samples/s; CPU time of each {1000 * busy:.0f} ms a step")
    print(f"a part alone: {1000 * figures['cpu_seconds_per_step']['part']['median']:.0f} ms")
    for name, what in (("ratio", "by the clock"), ("cpu_ratio", "by CPU time"), ("most", "at most, by CPU time")):
        ratio = figures[name]
        print(f"{ratio['median']:.2f} times ({ratio['min']:.2f} to {ratio['max']:.2f}) {what}")


if __name__ == "__main__":
    main(sys.argv[1:])
