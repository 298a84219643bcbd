"""Time and peak memory of a training step of DIN_MM by the kind and the length of its item table.

    python -m benchmarks.tables --rows 10000 100000 1000000 --kinds dense touched rowwise

Every measurement has a process of its own. Its model takes steps alone first, for the peak of memory; then blocks of
steps in turn with a model with ``table: touched`` of ``--reference`` rows, so that a busy machine slows both. A batch
has the same number of distinct items whatever the length of the table, drawn anew from all of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.dataset import MODELS
from benchmarks.throughput import environment, spread
from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.data.batch import Batch
from fuxictr_mm.data.feature_map import build_feature_map
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import parse_features
from fuxictr_mm.jagged import Jagged
from fuxictr_mm.registry import load_model_class

#: Settings of each kind.
KINDS: dict[str, dict[str, Any]] = {
    "dense": {"table": "dense"},
    "touched": {"table": "touched"},
    "rowwise": {"table": "touched", "table_optimizer": "rowwise_adagrad"},
}
#: Copies of the table that a step has in memory: weights, gradient, state of the optimizer.
COPIES = {"dense": 4, "touched": 3, "rowwise": 1}
DIM = 64


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000], help="rows of the table")
    option("--kinds", choices=list(KINDS), nargs="+", default=list(KINDS), help="kinds of the table")
    option("--reference", type=int, default=100_000, help="rows of the touched table that each is compared with")
    option("--batch_size", type=int, default=2048, help="rows per batch")
    option("--distinct", type=int, default=8000, help="distinct items per batch")
    option("--steps", type=int, default=5, help="steps per block")
    option("--repeats", type=int, default=5, help="blocks")
    option("--threads", type=int, default=1, help="threads of torch")
    option("--memory", type=float, default=8.0, metavar="GIB", help="what would take more is left out")
    option("--json", type=Path, metavar="FILE", help="write the figures there")
    option("--alone", action="store_true", help="measure the one kind and length in this process")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the figures."""
    args = parse_arguments(argv)
    if args.alone:
        found = [measure(args, args.kinds[0], args.rows[0])]
    else:
        found = [measure_alone(args, kind, rows) for rows in args.rows for kind in args.kinds]
        print_table([figures for figures in found if figures], args)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


def measure_alone(args: argparse.Namespace, kind: str, rows: int) -> dict[str, Any]:
    """Measure in a new process; nothing where the table would take too much memory."""
    if COPIES[kind] * rows * DIM * 4 > (args.memory - 0.75) * 2**30:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        words = [sys.executable, "-m", "benchmarks.tables", "--alone", "--kinds", kind, "--rows", str(rows)]
        for name in ("reference", "batch_size", "distinct", "steps", "repeats", "threads"):
            words += [f"--{name}", str(getattr(args, name))]
        subprocess.run([*words, "--json", str(path)], check=True, cwd=Path(__file__).parents[1])
        return json.loads(path.read_text())[0]


def measure(args: argparse.Namespace, kind: str, rows: int) -> dict[str, Any]:
    """Return time, time beside the reference, and peak memory."""
    torch.set_num_threads(args.threads)
    memory.reset_peak("cpu")
    before = memory.in_use("cpu")
    side = make_steps(kind, rows, args)
    for _ in range(3):
        next(side)
    peak = memory.peak("cpu")
    reference = make_steps("touched", args.reference, args)
    for _ in range(3):
        next(reference)
    blocks: dict[str, list[float]] = {"side": [], "reference": []}
    for repeat in range(args.repeats):
        order = [("side", side), ("reference", reference)]
        for name, steps in order if repeat % 2 == 0 else reversed(order):
            started = time.process_time()
            for _ in range(args.steps):
                next(steps)
            blocks[name].append(1e3 * (time.process_time() - started) / args.steps)
    ratios = [ours / theirs for ours, theirs in zip(*blocks.values(), strict=True)]
    return {
        "kind": kind,
        "rows": rows,
        "milliseconds": spread(blocks["side"]),
        "ratio": spread(ratios),
        "start_mb": before / 1e6,
        "peak_mb": peak / 1e6,
        "environment": environment(),
    }


def make_steps(kind: str, rows: int, args: argparse.Namespace) -> Iterator[torch.Tensor]:
    """Take a training step on a new batch each time that the next loss is asked for."""
    model = make_model(kind, rows)
    generator = torch.Generator().manual_seed(1)
    model._steps_per_epoch = 1
    while True:
        batch = make_batch(rows, args.batch_size, min(args.distinct, rows - 1), generator)
        yield model.train_step(batch)


def make_model(kind: str, rows: int) -> Any:
    """Return DIN_MM with the challenge's settings, two levels as context and the id of the item alone."""
    settings = dict(KINDS[kind])
    item_id = {"name": "item_id", "dtype": "int", "type": "categorical", "source": "item", "vocab_size": rows}
    config = ExperimentConfig.from_dict({
        "model": "DIN_MM",
        "dataset_id": "tables",
        "item_info": "none",
        "label_col": {"name": "label"},
        "embedding_dim": DIM,
        "feature_cols": [
            {"name": "likes_level", "dtype": "int", "type": "categorical", "vocab_size": 11},
            {"name": "views_level", "dtype": "int", "type": "categorical", "vocab_size": 11},
            {**item_id, "table": settings.pop("table")},
        ],
    })  # fmt: skip
    feature_map = build_feature_map(parse_features(config.columns), config)
    feature_map.items = ItemTable({}, torch.ones(rows, dtype=torch.bool))
    torch.manual_seed(0)
    model = load_model_class("DIN_MM")(
        feature_map, model_id="tables", embedding_dim=DIM, embedding_regularizer=1e-6, net_dropout=0.1, verbose=0,
        **MODELS["DIN_MM"], **settings,
    )  # fmt: skip
    return model.train()


def make_batch(rows: int, batch_size: int, distinct: int, generator: torch.Generator) -> Batch:
    """Return a batch of random rows with histories of 10 items on average, of ``distinct`` items in all."""
    catalogue = torch.randint(1, rows, (2 * distinct,), generator=generator).unique()
    catalogue = catalogue[torch.randperm(len(catalogue), generator=generator)[:distinct]]
    lengths = torch.randint(0, 21, (batch_size,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    chosen = torch.randint(0, len(catalogue), (int(offsets[-1]) + batch_size,), generator=generator)
    chosen[: len(catalogue)] = torch.arange(len(catalogue))[: len(chosen)]
    ids = catalogue[chosen]
    context = {
        name: torch.randint(1, 11, (batch_size,), generator=generator) for name in ("likes_level", "views_level")
    }
    label = torch.randint(0, 2, (batch_size,), generator=generator).float()
    return Batch(context, ids[-batch_size:], Jagged(ids[:-batch_size].int(), offsets), label)


def print_table(found: Sequence[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print the figures."""
    if not found:
        return
    machine = found[0]["environment"]
    loads = [figures["environment"]["load_before"][0] for figures in found]
    print(
        f"{machine['cpu']}, {args.threads} threads, torch {machine['torch']}, load {min(loads):.1f} to {max(loads):.1f}"
    )
    print(
        f"ratio: to touched of {args.reference:,} rows, CPU time, median of {args.repeats} blocks of {args.steps} steps"
    )
    print(f"{'rows':>12} {'kind':<8} {'ms per step':>12} {'ratio':>7} {'(from':>7} {'to)':>6} {'peak MB':>9}")
    for f in found:
        ratio = f["ratio"]
        print(
            f"{f['rows']:>12,} {f['kind']:<8} {f['milliseconds']['median']:>12.1f} {ratio['median']:>7.2f} "
            f"{ratio['min']:>7.2f} {ratio['max']:>6.2f} {f['peak_mb']:>9,.0f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
