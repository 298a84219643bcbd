"""``fuxictr-mm embed STAGE``: each stage reads and writes item files, and is a module of its own."""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from typing import Any, get_type_hints

from fuxictr_mm.arguments import Parser, add_debug, add_output_options

#: Stage, one line of help. ``fuxictr_mm.embeddings.STAGE`` has its ``add_arguments`` and ``main_from_args``.
STAGES = {
    "encode": "turn titles and images into embeddings by a text or an image model",
    "reduce": "reduce and join embeddings by PCA: the strategies V1 to V4, for any modalities",
    "quantize": "turn embeddings into codes: VQ, RQ, PQ, OPQ, VQ-VAE",
    "align": "train embeddings in which items that the same users like are near",
}


def _module(stage: str) -> Any:
    return importlib.import_module(f"fuxictr_mm.embeddings.{stage}")


def _load(stage: str, parser: Parser) -> None:
    _module(stage).add_arguments(parser)
    add_debug(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the stages; the arguments of one are added when it is asked for."""
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True, parser_class=Parser)
    for stage, summary in STAGES.items():
        description = summary[0].upper() + summary[1:] + "."
        stages.add_parser(stage, help=summary, description=description, load=partial(_load, stage))


def main_from_args(args: argparse.Namespace) -> None:
    """Run the stage that was asked for."""
    _module(args.stage).main_from_args(args)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``, and what ``fuxictr_mm.cli.show`` acts on."""
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    add_output_options(parser)


def flag(name: str) -> str:
    """Return the option that sets a Python parameter.

    Examples
    --------
    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


def check_options(options: Any, where: str) -> None:
    """Raise a ConfigError for fields of a dataclass that do not fit their annotated types and ranges."""
    from fuxictr_mm.checking import error_of, matches, mismatch

    types = get_type_hints(type(options), include_extras=True)
    problems = {k: mismatch(k, v, types[k]) for k, v in vars(options).items() if not matches(v, types[k])}
    if problems:
        raise error_of(where, problems)
