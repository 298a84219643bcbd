"""``fuxictr-mm embed STAGE``: each stage reads and writes item files, and is a module of its own."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

from fuxictr_mm.cli import add_debug

#: Stage, one line of help. ``fuxictr_mm.embeddings.STAGE`` has its ``add_arguments`` and ``main_from_args``.
STAGES = {
    "encode": "turn titles and images into vectors by a text or an image model",
    "reduce": "reduce and join vectors by PCA: the strategies V1 to V4, for any modalities",
    "quantize": "turn vectors into codes: VQ, RQ, PQ, OPQ, VQ-VAE",
    "align": "train vectors in which items that the same users like lie near",
}


class _StageParser(argparse.ArgumentParser):
    """A parser that imports its stage only when it is to parse: `embed --help` stays instant."""

    def __init__(self, *, stage: str, **options: Any) -> None:
        super().__init__(**options)
        self._stage: str | None = stage

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, with the arguments of the stage added first."""
        if self._stage is not None:
            stage, self._stage = self._stage, None
            _module(stage).add_arguments(self)
            add_debug(self)
        return super().parse_known_args(args, namespace)


def _module(stage: str) -> Any:
    return importlib.import_module(f"fuxictr_mm.embeddings.{stage}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the stages; the arguments of one are added when it is asked for."""
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True, parser_class=_StageParser)
    for stage, summary in STAGES.items():
        stages.add_parser(
            stage,
            stage=stage,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )


def main_from_args(args: argparse.Namespace) -> None:
    """Run the stage that was asked for."""
    _module(args.stage).main_from_args(args)
