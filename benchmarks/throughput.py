"""Samples per second, memory and waiting for data: this package beside the padded reference, in one process.

    python -m benchmarks.throughput --model DIN --batch_size 2048

Both sides take blocks of steps in turn, first one first, then the other first, with the same threads and allocator. The
ratio is taken block by block, so that a busy machine slows both; its spread over the blocks is printed with it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.curve import curve
from benchmarks.dataset import MODELS, add_sizes, make_data, parameters
from benchmarks.equality import equality
from benchmarks.files import measure_files
from benchmarks.sides import Side, make_scaled_sides, make_sides
from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.data.batch import num_rows
from fuxictr_mm.data.dataset import read_dataset

PRECISIONS = {
    "fp32": "float32",
    "medium": "float32 with torch.set_float32_matmul_precision('medium')",
    "bf16": "bfloat16 by torch.autocast",
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--what", choices=list(MEASUREMENTS), default="train", help="what to run")
    option("--model", choices=list(MODELS), default="DIN", help="model, with the challenge's hyper-parameters")
    option("--batch_size", type=int, default=2048, help="rows per batch")
    option("--max_len", type=int, default=64, help="history positions")
    option("--steps", type=int, default=10, help="steps per block")
    option("--reference_steps", type=int, help="steps per block of the reference (default: as ours)")
    option("--repeats", type=int, default=3, help="blocks of each side")
    option("--warmup", type=int, default=2, help="steps of each side before the first block")
    option("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch")
    option("--precision", choices=list(PRECISIONS), default="fp32", help="precision of ours")
    option("--reference_precision", choices=list(PRECISIONS), help="precision of the reference (default: as ours)")
    option("--compile", action="store_true", help="ours with compile: True; the warm-up takes minutes")
    option("--device", choices=["cpu", "cuda"], default="cpu", help="device of both")
    option("--num_workers", type=int, default=0, help="worker processes of the reference's DataLoader")
    option(
        "--as_run", action="store_true", help="ours keeps freed memory, as run_expid.py does, the reference does not"
    )
    option("--sides", choices=["both", "ours", "reference"], default="both", help="one side alone, without a ratio")
    option("--memory", action="store_true", help="also run each side alone, in a process of its own, for its peak")
    option("--data", type=Path, metavar="DIR", help="dataset folder, such as one of fuxictr-mm synth")
    add_sizes(parser)
    option("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)
    for name in ("steps", "reference_steps", "repeats", "warmup", "threads"):
        least = 0 if name == "warmup" else 1
        if (value := getattr(args, name)) is not None and value < least:
            parser.error(f"--{name} is {value}, expected {least} or more")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write; return what was written."""
    args = parse_arguments(argv)
    args.reference_precision = args.reference_precision or args.precision
    args.reference_steps = args.reference_steps or args.steps
    args.data = args.data or make_data(args.rows, args.users, args.items)
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "json"}
    }
    report["environment"] = environment()
    report.update(MEASUREMENTS[args.what](args))
    report["environment"]["load_after"] = os.getloadavg()
    print_report(report)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def environment() -> dict[str, Any]:
    """Return what the figures depend on besides the options."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    found = {"python": platform.python_version(), "torch": torch.__version__, "cpu": names[0] if names else "unknown"}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    allocator = {key: value for key, value in os.environ.items() if key.startswith(("MALLOC_", "LD_PRELOAD"))}
    return {**found, "cpus": os.cpu_count(), "allocator": allocator, "load_before": os.getloadavg()}


def measure_steps(args: argparse.Namespace) -> dict[str, Any]:
    """Measure training steps, scoring, the loaders, or training on all rows beside a tenth of them."""
    params = parameters(
        args.model,
        args.data,
        batch_size=args.batch_size,
        max_len=args.max_len,
        compile=args.compile,
        gpu=-1 if args.device == "cpu" else torch.cuda.current_device(),
    )
    precisions = {"ours": args.precision, "reference": args.reference_precision}
    if args.sides != "both":
        precisions = {args.sides: precisions[args.sides]}
    dataset = read_dataset(ExperimentConfig.from_dict(params), {"train": True})
    sides = []
    made = (
        make_scaled_sides(dataset, params, args.precision)
        if args.what == "scale"
        else make_sides(args.what, dataset, params, precisions, args.num_workers)
    )
    for side in made:
        if args.warmup:
            run_block(side, args.warmup, args.device, args.as_run)
        for measured in (side.rates, side.cpu, side.waits, side.peaks):
            measured.clear()
        sides.append(side)
    for repeat in range(args.repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):
            steps = args.reference_steps if side.name == "reference" else args.steps
            run_block(side, steps, args.device, args.as_run)
    figures = {side.name: summary(side, sides[-1], args.what) for side in sides}
    if args.memory:
        for name in precisions:
            figures[name]["process_peak_mb"] = peak_alone(args, name)
    table = dataset.splits["train"]
    history = table.history_values.numel() / len(table)
    return {
        "data": {"rows": len(table), "items": dataset.items.num_items - 1, "history_mean": history},
        "sides": figures,
        "process_peak_mb": max(side.highest for side in sides) / 1e6,
    }


def run_block(side: Side, steps: int, device: str, as_run: bool = False) -> None:
    """Take a block of steps and note its figures; ``as_run`` with the side's own allocator settings."""
    if as_run:
        memory.keep_freed_memory() if side.name != "reference" else memory.return_freed_memory()
        side.step(next(side.batches))  # what the change of settings costs is not the side's
        side.finish()
    side.highest = max(side.highest, memory.reset_peak(device))
    held = memory.in_use(device)
    waited, rows = 0.0, 0
    with matmul_precision("medium" if side.precision == "medium" else "highest"):
        started, cpu_started = time.perf_counter(), time.process_time()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(side.batches)
            waited += time.perf_counter() - asked
            rows += num_rows(batch)
            side.step(batch)
        side.finish()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    side.rates.append(rows / seconds)
    side.cpu.append((time.process_time() - cpu_started) / rows)
    side.waits.append(waited / seconds)
    side.peaks.append(max(memory.peak(device) - held, 0))
    side.highest = max(side.highest, memory.peak(device))


def peak_alone(args: argparse.Namespace, name: str) -> float:
    """Return the peak memory in MB of a process in which one side alone takes a few steps."""
    options = {key: value for key, value in vars(args).items() if key not in ("memory", "json") and value is not None}
    options.update(sides=name, steps=2, reference_steps=2, repeats=1, warmup=1)
    with tempfile.TemporaryDirectory() as folder:
        options["json"] = Path(folder) / "figures.json"
        flags = [f"--{flag}" for flag in ("compile", "as_run") if options.pop(flag)]
        arguments = flags + [part for key, value in options.items() for part in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "benchmarks.throughput", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(options["json"].read_text())["process_peak_mb"]


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Set the precision of float32 products of matrices for a block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(side: Side, reference: Side, what: str) -> dict[str, Any]:
    """Return a side's figures."""
    figures: dict[str, Any] = {
        "precision": side.precision,
        "samples_per_second": spread(side.rates),
        "cpu_seconds_per_sample": spread(side.cpu),
        "step_memory_mb": max(side.peaks) / 1e6,
    }
    if what != "loader":
        figures["waiting_share"] = spread(side.waits)
    if reference.name == "reference" and side is not reference:
        figures["ratio"] = spread([ours / theirs for ours, theirs in zip(side.rates, reference.rates, strict=True)])
        # Other work on the machine slows a block down: these compare the least disturbed, and count CPU time only.
        figures["ratio"]["of_best"] = max(side.rates) / max(reference.rates)
        figures["ratio"]["of_cpu_time"] = min(reference.cpu) / min(side.cpu)
    return figures


def measure_reading(args: argparse.Namespace) -> dict[str, Any]:
    """Measure from files to the first batch, each time in a new process."""
    sides: dict[str, Any] = {}
    for name in ("ours", "reference") if args.sides == "both" else (args.sides,):
        runs = [
            measure_files(name, args.model, args.data, args.batch_size, args.max_len, args.threads)
            for _ in range(args.repeats)
        ]
        sides[name] = {
            "rows": runs[0]["rows"],
            "seconds": spread([run["seconds"] for run in runs]),
            "samples_per_second": spread([run["rows"] / run["seconds"] for run in runs]),
            "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
        }
    if args.sides == "both":
        ours, theirs = sides["ours"]["seconds"], sides["reference"]["seconds"]
        sides["ours"]["ratio"] = {
            "median": theirs["median"] / ours["median"],
            "min": theirs["min"] / ours["max"],
            "max": theirs["max"] / ours["min"],
        }
    return {"sides": sides}


def measure_equality(args: argparse.Namespace) -> dict[str, Any]:
    """Compare loss and gradients in float64 at as many points of a run as there are repeats."""
    return {
        "equality": equality(
            args.model,
            args.data,
            batch_size=args.batch_size,
            max_len=args.max_len,
            points=args.repeats,
            every=args.steps,
        )
    }


def measure_curve(args: argparse.Namespace) -> dict[str, Any]:
    """Compare loss curves of as many steps as a block has."""
    found = curve(args.model, args.data, batch_size=args.batch_size, max_len=args.max_len, steps=args.steps)
    return {"curve": found}


MEASUREMENTS = {
    "train": measure_steps,
    "loader": measure_steps,
    "scoring": measure_steps,
    "scale": measure_steps,
    "files": measure_reading,
    "equality": measure_equality,
    "curve": measure_curve,
}


def print_report(report: dict[str, Any]) -> None:
    """Print the figures as a table."""
    options, found = report["options"], report["environment"]
    print(f"{options['what']}: {options['model']}, batch {options['batch_size']}, {options['max_len']} positions")
    print(
        f"{found['cpu']}, {options['threads']} threads, {options['device']}, torch {found['torch']}, "
        f"allocator {found['allocator'] or 'default'}, "
        f"load {found['load_before'][0]:.1f} to {found['load_after'][0]:.1f}"
    )
    if "data" in report:
        data = report["data"]
        print(f"{data['rows']} rows, {data['items']} items, {data['history_mean']:.1f} history items a row")
    if "equality" in report:
        same = report["equality"]
        print(
            f"largest relative difference: loss {same['loss']:.1e}, gradient {same['gradient']:.1e} ({same['worst']})"
        )
    if "curve" in report:
        found_curve = report["curve"]
        touched = ", ".join(f"{distance:.1e}" for distance in found_curve["touched"])
        print(f"loss {found_curve['loss'][0]:.4f} to {found_curve['loss'][-1]:.4f}; largest distance at any step:")
        print(f"ours {found_curve['ours']:.1e}; the reference after a perturbation: {touched}")
    for name, side in report.get("sides", {}).items():
        rate = side["samples_per_second"]
        parts = [f"{name:<16}{rate['median']:>12,.0f} samples/s ({rate['min']:,.0f} to {rate['max']:,.0f})"]
        if "ratio" in side:
            parts.append("{median:.1f} times the reference ({min:.1f} to {max:.1f})".format(**side["ratio"]))
        if "of_best" in side.get("ratio", {}):
            parts.append("best blocks {of_best:.1f}, CPU time {of_cpu_time:.1f}".format(**side["ratio"]))
        if "seconds" in side:
            parts.append(f"{side['seconds']['median']:.1f} s, peak {side['peak_memory_mb']:,.0f} MB")
        if "waiting_share" in side:
            parts.append(f"waits {side['waiting_share']['median']:.1%}")
        if "precision" in side and options["what"] != "loader":
            parts.append(PRECISIONS[side["precision"]])
        if "step_memory_mb" in side:
            parts.append(f"a step takes up to {side['step_memory_mb']:,.0f} MB")
        if "process_peak_mb" in side:
            parts.append(f"alone in a process: peak {side['process_peak_mb']:,.0f} MB")
        print("; ".join(parts))
    if "process_peak_mb" in report:
        print(f"peak of the process with all of this: {report['process_peak_mb']:,.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
