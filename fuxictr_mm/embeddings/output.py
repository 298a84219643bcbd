"""What is the same in the commands of all stages."""

from __future__ import annotations

import argparse

from fuxictr_mm.cli import add_output_options


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
