"""Training steps by wait policy and number of torch's threads, on an idle machine and with busy processes.

    python -m benchmarks.threads --expid DIN_MM_tiny --busy 0 1

Each setting has a process of its own, which takes a block of steps when it is asked to, while the others sleep. Each
block of a setting is paired with a block of one thread, so that other work on the machine slows down both; the ratio is
taken pair by pair. The benchmark starts the busy processes itself, and ends them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment

#: Name, what it is. "one" is what the others are compared with.
SETTINGS = {
    "torch": "torch's default: all cores, waiting threads spin",
    "all": "all cores, waiting threads sleep",
    "auto": "threads: auto",
    "one": "one thread",
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads", description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--config", default=".", metavar="DIR", help="folder of model_config.yaml")
    option("--expid", default="DIN_MM_tiny", help="experiment")
    option("--model", help="instead: this model with the challenge's hyper-parameters on data of its shape")
    option("--batch_size", type=int, help="rows per batch (default: the experiment's; 2048 for --model)")
    option("--steps", type=int, default=63, help="steps per block (default: 63, an epoch of tiny_mm)")
    option("--pairs", type=int, default=10, help="blocks of each setting")
    option("--busy", type=int, nargs="+", default=[0, 1], help="how many busy processes to start, in turn")
    option("--settings", nargs="+", choices=[name for name in SETTINGS if name != "one"], help="default: all")
    option("--json", type=Path, metavar="FILE", help="file for the figures")
    option("--serve", choices=list(SETTINGS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.settings = args.settings or [name for name in SETTINGS if name != "one"]
    return args


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print and write; return the figures."""
    args = parse_arguments(argv)
    if args.serve:
        serve(args)
        return []
    figures: list[dict[str, Any]] = []
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before, {args.steps} steps a block")
    print("| busy processes | setting | threads | seconds a block | against one thread |", "| --- " * 5 + "|", sep="\n")
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(Side(args, name)) for name in [*args.settings, "one"]}
        for busy in args.busy:
            with neighbours(busy):
                for name in args.settings:
                    figures.append({"busy": busy, **compare(sides[name], sides["one"], args.steps, args.pairs)})
                    print(row(figures[-1]), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return figures


class Side:
    """A process with a setting, which takes blocks of steps when asked."""

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        from fuxictr_mm.threads import CORES_VARIABLE, COUNT_VARIABLES, WAIT_VARIABLES

        self.name = name
        command = [sys.executable, "-m", "benchmarks.threads", "--serve", name, "--config", args.config]
        for option in ("expid", "model", "batch_size"):
            if (value := getattr(args, option)) is not None:
                command += [f"--{option}", str(value)]
        chosen_by_user = (CORES_VARIABLE, *COUNT_VARIABLES, *WAIT_VARIABLES)
        environment = {key: value for key, value in os.environ.items() if key not in chosen_by_user}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.threads = int(self.process.stdout.readline())

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def block(self, steps: int) -> float:
        """Return the seconds of a block of steps."""
        print(steps, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def serve(args: argparse.Namespace) -> None:
    """Build the model and print the number of threads, then the seconds of a block for each number of steps read."""
    if args.serve == "torch":
        import torch  # noqa: F401 - before the package, which sets the wait policy
    with tempfile.TemporaryDirectory() as folder:
        threads = {"auto": "auto", "one": 1}.get(args.serve, os.cpu_count() or 1)
        experiment = load(args, threads=threads, model_root=folder, verbose=0)
        dataset = experiment.load_dataset({"train": True})
        model = experiment.build_model(dataset)
        model._max_gradient_norm = 10.0
        model.train()
        train = experiment.make_loader(dataset.splits["train"], model, shuffle=True, training=True)
        batches = (batch for _ in iter(int, 1) for batch in train)
        for _ in range(3):
            model.train_step(next(batches))
        print(count_threads(), flush=True)
        for line in sys.stdin:
            started = time.perf_counter()
            for _ in range(int(line)):
                model.train_step(next(batches))
            print(time.perf_counter() - started, flush=True)


def load(args: argparse.Namespace, **changes: Any) -> Experiment:
    """Return the experiment that the options name, with other settings."""
    if args.model is not None:
        from benchmarks.dataset import experiment_of, make_data, parameters

        data = make_data(rows=100_000, users=20_000, items=91_717)
        return experiment_of(parameters(args.model, data, batch_size=args.batch_size or 2048, max_len=64, **changes))
    from fuxictr_mm.experiment import Experiment

    if args.batch_size is not None:
        changes["batch_size"] = args.batch_size
    return Experiment.load(args.expid, args.config, **changes)


def count_threads() -> int:
    """Return how many threads torch uses."""
    import torch

    return torch.get_num_threads()


@contextlib.contextmanager
def neighbours(number: int) -> Iterator[None]:
    """Keep so many processes busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def compare(side: Side, one: Side, steps: int, pairs: int) -> dict[str, Any]:
    """Take blocks of both in turn, first one first, then the other first."""
    seconds: dict[str, list[float]] = {side.name: [], one.name: []}
    for pair in range(pairs):
        for each in (side, one) if pair % 2 == 0 else (one, side):
            seconds[each.name].append(each.block(steps))
    ratios = [a / b for a, b in zip(seconds[side.name], seconds[one.name], strict=True)]
    return {"setting": side.name, "threads": side.threads, "seconds": seconds, "ratios": ratios}


def row(figures: dict[str, Any]) -> str:
    """Return a line of the table."""
    name, ratios = figures["setting"], figures["ratios"]
    own, one = (statistics.median(figures["seconds"][each]) for each in (name, "one"))
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    cells = [figures["busy"], SETTINGS[name], figures["threads"], f"{own:.2f} (one thread: {one:.2f})", ratio]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
