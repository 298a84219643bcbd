"""``fuxictr-mm serve``: the server of ``fuxictr_mm_serving``, where both are installed."""

from __future__ import annotations

import argparse

from fuxictr_mm.arguments import add_examples
from fuxictr_mm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm serve``, those of ``fuxictr-mm-serve``."""
    from fuxictr_mm_serving import command

    add_examples(
        parser,
        "fuxictr-mm serve DIN_MM_tiny_export",
        "fuxictr-mm serve DIN_MM_tiny_export --port 9000 --workers 2 --users data/tiny_mm/test.parquet",
    )
    command.add_arguments(parser)


def main_from_args(args: argparse.Namespace) -> None:
    """Run the server."""
    from fuxictr_mm_serving.command import serve
    from fuxictr_mm_serving.errors import ServingError

    try:
        serve(args)
    except ServingError as error:
        raise UserError(str(error)) from error
