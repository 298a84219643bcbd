"""``fuxictr-mm autopilot``: from a dataset to a submission within a time budget."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, fields
from pathlib import Path

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.errors import ConfigError

_UNITS_OF_TIME = {"s": 1, "m": 60, "h": 3600, "": 60}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm autopilot``."""
    add_examples(
        parser,
        "fuxictr-mm autopilot --dataset_id tiny_mm --budget 20m",
        "fuxictr-mm autopilot --dataset_id MicroLens_1M_x1 --budget 8h --gpu 0",
    )
    parser.add_argument("--dataset_id", required=True, metavar="ID", help="dataset in dataset_config.yaml")
    parser.add_argument(
        "--budget", type=_seconds, default=1800, metavar="TIME", help="time budget, such as 45m or 8h (default: 30m)"
    )
    parser.add_argument(
        "--config", default=".", metavar="DIR", help="folder of the configuration (default: the working directory)"
    )
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="parallel processes (default: one per core, on a GPU one)"
    )
    parser.add_argument("--data_root", type=Path, metavar="DIR", help="replaces the dataset's data_root")
    parser.add_argument("--model_zoo", type=Path, metavar="DIR", help="a folder of model files to search first")
    parser.add_argument("--task", default="Task2", choices=("Task1", "Task2", "Task1&2"), help="column of the scores")
    parser.add_argument(
        "--out", type=Path, default=Path("autopilot"), metavar="DIR", help="folder to write (default: autopilot)"
    )
    add_output_options(parser)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None or float(found[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 90s, 45m or 8h")
    return float(found[1]) * _UNITS_OF_TIME[found[2]]


def main_from_args(args: argparse.Namespace) -> None:
    """Run or resume the autopilot, and print its result."""
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"--jobs is {args.jobs}, expected 1 or more")
    from fuxictr_mm.autopilot.folder import Request
    from fuxictr_mm.autopilot.stages import run

    found = run(Request(**{field.name: getattr(args, field.name) for field in fields(Request)}))
    show(args, asdict(found), "\n".join([*found.told, f"page: {found.page}"]))
