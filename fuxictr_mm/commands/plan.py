"""``fuxictr-mm plan``: the memory that an experiment would take, without reading its rows or making its tables."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from fuxictr_mm.arguments import add_examples, add_experiment_options, add_output_options, load_experiment, show
from fuxictr_mm.plan.memory import Plan, make_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm plan``."""
    add_examples(
        parser,
        "fuxictr-mm plan --expid DIN_MM_tiny",
        "fuxictr-mm plan --expid DIN_MM_tiny --gpus 8 --memory 80",
    )
    add_experiment_options(parser)
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="number of processes, one on each GPU (default: one on the CPU)"
    )
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="memory of each process (default: the free memory of this machine)"
    )
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Print the plan."""
    experiment = load_experiment(args)
    plan = make_plan(experiment, args.gpus, args.memory)
    show(args, asdict(plan), format_plan(plan))


def format_plan(plan: Plan) -> str:
    """Return a plan as a table."""
    where = f"each of {plan.processes} processes" if plan.processes > 1 else "one process"
    width = max(len(part.part) for part in plan.parts)
    lines = [f"{plan.expid}, {where} on the {plan.device}, MB:"]
    lines += [f"  {p.part:{width}}  {p.bytes / 1e6:11,.1f}  {p.note}".rstrip() for p in plan.parts]
    answer = "fits" if plan.fits else "does not fit"
    lines.append(f"  {'total':{width}}  {plan.total / 1e6:11,.1f}  of {plan.limit / 1e6:,.0f}: {answer}")
    if plan.processes > 1:
        is_sharded = any(table["table"] == "sharded" for table in plan.tables)
        has = "its shard of the sharded tables" if is_sharded else "all tables"
        sent = f"{plan.sent / 1e6:,.1f} MB per step"
        lines.append(f"Every process has {has}, reads its part of the rows, and sends {sent}.")
    lines.append("Not counted: temporary copies while files are read or written, and of the backward pass.")
    return "\n".join(lines)
