"""A training step beside its floor: what this machine needs for the matrix products alone, and where the rest goes.

    python -m benchmarks.floor --model DIN DIN_MM --batch_size 2048 --precision bf16 --device cuda

The floor is the step's floating-point operations, as torch counts them, at the rate that one large product reaches on
this machine. Beside it stands what a step moves through memory at least: tensors that the backward pass reads, written
and read once; of the weights, gradients that are written, read for their norm, and read by Adam, which reads and writes
weights and its two averages. At the rate of a copy, that is a time that no order of work avoids, unless data stays in
the cache. Kernels and synchronisations are counted by torch's profiler.

On a CPU, the peak of the process is divided into libraries (in use after their import), tensors of the data, weights,
state of the optimizer, the most that tensors of a step take at once, gradients included, and the rest: memory that was
freed and is kept, and the code that oneDNN generates for products. With several models, the rest includes what earlier
ones left; take a process for each.
"""

from __future__ import annotations

import argparse
import collections
import gc
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import memory
from benchmarks.dataset import MODELS, add_sizes, make_data, parameters
from benchmarks.sides import Side, make_sides
from benchmarks.throughput import PRECISIONS, environment, matmul_precision
from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.data.batch import num_rows
from fuxictr_mm.data.dataset import read_dataset

#: Calls of the driver during which the host waits for the device.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write; return what was written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--model", nargs="+", choices=list(MODELS), default=["DIN", "DIN_MM"], help="models")
    option("--batch_size", nargs="+", type=int, default=[2048], help="rows per batch, one or several")
    option("--precision", nargs="+", choices=list(PRECISIONS), default=["fp32", "bf16"], help="one or several")
    option("--device", choices=["cpu", "cuda"], default="cpu", help="device")
    option("--threads", type=int, default=1, help="threads of torch")
    option("--steps", type=int, default=10, help="steps per block; five blocks are timed")
    option("--max_len", type=int, default=64, help="history positions")
    add_sizes(parser)
    option("--keep_freed_memory", action="store_true", help="let glibc keep freed memory, as a training run does")
    option("--fused_attention", action="store_true", help="also with fused_attention: True (on a GPU)")
    option("--top", type=int, default=0, help="also print this many of the most expensive kernels or operators")
    option("--json", type=Path, metavar="FILE", help="write the figures there")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.keep_freed_memory:
        memory.keep_freed_memory()
    args.libraries = memory.in_use(args.device)
    report: dict[str, Any] = {"environment": environment(), "machine": machine_speeds(args.device)}
    print(json.dumps(report), flush=True)
    report["steps"] = []
    for name in args.model:
        for batch_size in args.batch_size:
            for precision in args.precision:
                for fused in [False, True][: 1 + args.fused_attention]:
                    found = measure(args, name, batch_size, precision, fused, report["machine"])
                    report["steps"].append(found)
                    print_step(found)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


def machine_speeds(device: str) -> dict[str, float]:
    """Return FLOP/s of one large product by precision, and bytes/s (read and written) of a large copy."""
    size = 8192 if device == "cuda" else 1024
    speeds = {}
    for name, dtype in (("fp32", torch.float32), ("medium", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        with matmul_precision("medium" if name == "medium" else "highest"):
            speeds[name] = 2 * size**3 / seconds(lambda a=a, b=b: a @ b, device)
    source = torch.randn(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    speeds["copy"] = 2 * source.nbytes / seconds(lambda: target.copy_(source), device)
    return speeds


def seconds(work: Callable[[], Any], device: str) -> float:
    """Return the median time of ten runs of some work, each waited for, after two that are not counted."""
    times = []
    for _ in range(12):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def measure(
    args: argparse.Namespace, name: str, batch_size: int, precision: str, fused: bool, speeds: dict[str, float]
) -> dict[str, Any]:
    """Return the figures of one model, batch size and precision, with or without ``fused_attention``."""
    folder = make_data(args.rows, args.users, args.items)
    gpu = -1 if args.device == "cpu" else 0
    sizes = {"batch_size": batch_size, "max_len": args.max_len}
    params = parameters(name, folder, **sizes, gpu=gpu, fused_attention=fused)
    before = tensor_bytes()
    dataset = read_dataset(ExperimentConfig.from_dict(params), {"train": True})
    parts = {"libraries": args.libraries, "data": tensor_bytes() - before}
    (side,) = make_sides("train", dataset, params, {"ours": precision}, 0)
    parts["weights"] = tensor_bytes() - before - parts["data"]
    with matmul_precision("highest" if precision == "fp32" else "medium"):
        take(side, 5, args.device)
        parts["optimizer"] = tensor_bytes() - before - parts["data"] - parts["weights"]
        memory.reset_peak(args.device)
        blocks = [take(side, args.steps, args.device) for _ in range(5)]
        peak = memory.peak(args.device)
        torch.set_num_threads(1)  # the counter sees the operations of its own thread
        with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: flops_of_addmm}) as counter:
            take(side, 1, args.device)
        torch.set_num_threads(args.threads)
        moved = 2 * saved_bytes(lambda: take(side, 1, args.device)) + 9 * parts["weights"]
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (args.device == "cuda")
        with profile(activities=activities) as profiler:
            take(side, 5, args.device)
        if args.device == "cpu":
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as of_memory:
                take(side, 1, args.device)
            parts["step"] = peak_of_tensors(of_memory)
            parts["other"] = peak - sum(parts.values())
    step = statistics.median(wall for wall, _, _ in blocks)
    floor = counter.get_total_flops() / speeds[precision]
    return {
        "model": name,
        "batch_size": batch_size,
        "precision": precision,
        "fused_attention": fused,
        "samples_per_second": statistics.median(rows / wall for wall, _, rows in blocks),
        "step_ms": 1e3 * step,
        "step_ms_range": [1e3 * min(b[0] for b in blocks), 1e3 * max(b[0] for b in blocks)],
        "cpu_ms": 1e3 * statistics.median(cpu for _, cpu, _ in blocks),
        "gflop": counter.get_total_flops() / 1e9,
        "floor_ms": 1e3 * floor,
        "ratio": step / floor,
        "moved_mb": moved / 1e6,
        "moved_ms": 1e3 * moved / speeds["copy"],
        "peak_mb": peak / 1e6,
        "peak_parts_mb": {part: size / 1e6 for part, size in parts.items()} if args.device == "cpu" else {},
        **where_time_goes(profiler.events(), 5, args.device, args.top),
    }


def tensor_bytes() -> int:
    """Return the bytes of all tensors of the process, each storage once; not those that torch's compiler leaves."""
    kinds = (torch.Tensor, torch.nn.Parameter)
    return sum(storages(t for t in gc.get_objects() if type(t) in kinds).values())


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Return address and bytes of every storage of tensors, without sparse ones."""
    found = [t.untyped_storage() for t in tensors if t.layout == torch.strided]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def saved_bytes(step: Callable[[], Any]) -> int:
    """Return the bytes that a step saves for its backward pass, without parameters, each storage once."""
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            saved.update(storages([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(saved.values())


def peak_of_tensors(profiler: profile) -> int:
    """Return the most bytes that tensors on the CPU took at once, beside those from before the profiler started."""
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    changes = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns())))  # type: ignore[attr-defined]


def flops_of_addmm(total: Sequence[int], a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
    """Return the operations of a product that is added in place, which torch's counter leaves out, from shapes."""
    return 2 * a[0] * a[1] * b[1]


def take(side: Side, steps: int, device: str) -> tuple[float, float, float]:
    """Take a block of steps; return wall and CPU seconds and rows per step."""
    rows, started, cpu = 0, time.perf_counter(), time.process_time()
    for _ in range(steps):
        batch = next(side.batches)
        rows += num_rows(batch)
        side.step(batch)
    side.finish()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps, (time.process_time() - cpu) / steps, rows / steps


def where_time_goes(events: EventList, steps: int, device: str, top: int) -> dict[str, Any]:
    """Return time in matrix products, in all kernels or operators, and counts, each per step."""
    cost: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    products = 0.0
    for event in events:
        on_device = event.device_type == torch.autograd.DeviceType.CUDA
        if device == "cuda":
            if any(event.name.startswith(p) for p in PRODUCTS) and not on_device:
                products += event.self_device_time_total
            if not on_device:
                calls[event.name] += 1
                continue
            spent = event.self_device_time_total
        else:
            spent = event.self_cpu_time_total
            products += spent if event.name.startswith(PRODUCTS) else 0
        cost[event.name] += spent
        calls[event.name] += 1
    found: dict[str, Any] = {
        "products_ms": products / steps / 1e3,
        "busy_ms": sum(cost.values()) / steps / 1e3,
        "top": [[n[:90], t / steps / 1e3, calls[n] / steps] for n, t in cost.most_common(top)],
    }
    if device == "cuda":
        found["kernels"] = sum(calls[n] for n in cost) / steps
        found["waits"] = sum(calls[n] for n in WAITS) / steps
    return found


def print_step(found: dict[str, Any]) -> None:
    """Print the figures of one step."""
    line = (
        "{model}, {batch_size}, {precision}{fused}: {samples_per_second:,.0f} samples/s, "
        "step {step_ms:.2f} ms (CPU {cpu_ms:.2f}), "
        "floor {floor_ms:.3f} ms ({gflop:.1f} GFLOP), ratio {ratio:.1f}, products {products_ms:.2f} ms, "
        "all {busy_ms:.2f} ms, moves at least {moved_mb:,.0f} MB ({moved_ms:.2f} ms), peak {peak_mb:,.0f} MB"
    ).format(**found, fused=", fused" if found["fused_attention"] else "")
    if "kernels" in found:
        line += ", {kernels:.0f} kernels, {waits:.1f} waits".format(**found)
    print(line, flush=True)
    if found["peak_parts_mb"]:
        parts = ", ".join(f"{part} {mb:,.0f}" for part, mb in found["peak_parts_mb"].items())
        print(f"    peak, MB: {parts}", flush=True)
    for name, ms, calls in found["top"]:
        print(f"    {ms:8.3f} ms {calls:6.1f}  {name}", flush=True)


if __name__ == "__main__":
    main()
