"""``fuxictr-mm export-hub``: a trained experiment as a folder for the Hugging Face hub."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fuxictr_mm.arguments import add_examples, add_experiment_options, add_output_options, load_experiment, show
from fuxictr_mm.hub import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm export-hub``."""
    add_examples(
        parser,
        "fuxictr-mm export-hub --expid DIN_MM_tiny --out DIN_MM_tiny_hub",
        "fuxictr-mm export-hub --expid DIN_MM_tiny --out DIN_MM_tiny_hub --overwrite --quiet",
    )
    add_experiment_options(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--weights", metavar="RUN", help="weights other than the experiment's own: a run or a file")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that an earlier export wrote")
    add_output_options(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Write the folder."""
    from fuxictr_mm.logs import set_up_logging

    if not args.quiet:
        set_up_logging()
    experiment = load_experiment(args)
    export(experiment, args.out, weights=args.weights, overwrite=args.overwrite)
    files = sorted(os.listdir(args.out))
    show(args, {"folder": str(args.out), "expid": args.expid, "files": files}, f"{args.out}: {', '.join(files)}")
