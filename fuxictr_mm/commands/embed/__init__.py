"""``fuxictr-mm embed STAGE``: each stage reads and writes item files, and is a module of this package."""

from __future__ import annotations

import argparse
import importlib
from functools import partial
from typing import Any

from fuxictr_mm.arguments import Parser, add_debug, add_roles
from fuxictr_mm.errors import ConfigError

#: Stage, one line of help. The module of its name has its ``add_arguments`` and ``main_from_args``.
STAGES = {
    "encode": "turn titles and images into embeddings by a text or an image model",
    "reduce": "reduce and join embeddings by PCA: the strategies V1 to V4, for any modalities",
    "quantize": "turn embeddings into codes: VQ, RQ, PQ, OPQ, VQ-VAE",
    "align": "train embeddings in which items clicked by the same users are close",
    "pretrain": "train embeddings of ids and contents that predict the next item, for SEMINAR",
}


def _module(stage: str) -> Any:
    return importlib.import_module(f"{__name__}.{stage}")


def _load(stage: str, parser: Parser) -> None:
    _module(stage).add_arguments(parser)
    add_roles(parser)
    add_debug(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the stages; the arguments of one are added when it is asked for."""
    stages = parser.add_subparsers(dest="stage", metavar="STAGE", required=True, parser_class=Parser)
    for stage, summary in STAGES.items():
        description = summary[0].upper() + summary[1:] + "."
        stages.add_parser(stage, help=summary, description=description, load=partial(_load, stage))


def main_from_args(args: argparse.Namespace) -> None:
    """Run the stage that was asked for, on ids of any kind."""
    from fuxictr_mm.config import Roles
    from fuxictr_mm.embeddings.numbering import find_numbering
    from fuxictr_mm.encoding.text_encodings import Encoding

    encoding = Encoding(getattr(args, "encoding", None), "--encoding")
    train = getattr(args, "train", None)
    numbering = find_numbering(_item_files(args), Roles.parse(args.roles), args.ids, train, encoding)
    _module(args.stage).main_from_args(args, numbering)


def _item_files(args: argparse.Namespace) -> list[str]:
    """Return the item files that a stage reads ids from; what is wrong with their names is found by the stage."""
    from fuxictr_mm.embeddings.item_files import Source

    files = []
    for text in (*_of(args, "sources"), *_of(args, "among")):
        try:
            files.append(str(Source.parse(text).path))
        except ConfigError:
            continue
    read_neighbors = [] if getattr(args, "train", None) else _of(args, "neighbors")
    return [*files, *_of(args, "texts"), *_of(args, "items"), *read_neighbors]


def _of(args: argparse.Namespace, name: str) -> list[str]:
    value = getattr(args, name, None)
    return value if isinstance(value, list) else [value] if isinstance(value, str) else []
