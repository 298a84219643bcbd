"""Search for good settings: ``fuxictr-mm tune`` and ``python run_param_tuner.py``."""

import argparse
from pathlib import Path

from fuxictr_mm.arguments import add_examples, add_output_options
from fuxictr_mm.commands.scripts import command_of, script_of

DESCRIPTION = """Run many experiments: the YAML names a base_expid and a tuner_space of values to try.

A grid (the default) runs every combination of the lists in tuner_space. With search: random, tpe or local, and
trials: N, points are sampled from lists and from ranges such as {low: 1.e-4, high: 1.e-2, log: True}.
The same command resumes an interrupted study; several machines with the same storage: URL share the trials."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    command = command_of(parser, "tune")
    parser.description = DESCRIPTION
    add_examples(
        parser,
        f"{command} --config tuner.yaml                  one trial at a time on the CPU",
        f"{command} --config tuner.yaml --gpu 0 1        two at a time, one on each GPU",
        f"{command} --config tuner.yaml --tag 001        only the experiment ids of a grid with 001",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="tuner file")
    parser.add_argument("--tag", help="run only the experiment ids of a grid that contain this, e.g. 001")
    parser.add_argument(
        "--gpu",
        type=int,
        nargs="+",
        default=[-1],
        metavar="N",
        help="device of each worker; -1 is the CPU, may be repeated",
    )
    parser.add_argument("--data_root", type=Path, metavar="DIR", help="replaces the dataset's data_root")
    parser.add_argument("--model_zoo", type=Path, metavar="DIR", help="a folder of model files to search first")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Run the trials, print the table of results."""
    from fuxictr_mm import tuning

    tuning.run_tuner(
        args.config,
        args.gpu,
        script_of(args),
        tag=args.tag,
        source=tuning.Source(args.data_root, args.model_zoo),
        quiet=args.quiet,
        as_json=args.json,
    )
