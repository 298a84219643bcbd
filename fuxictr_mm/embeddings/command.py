"""``fuxictr-mm embed STAGE``: each stage reads and writes item files, and is a module of its own."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from fuxictr_mm.arguments import Parser, add_debug, add_output_options, add_roles
from fuxictr_mm.errors import ConfigError

if TYPE_CHECKING:
    from fuxictr_mm.checking import Settings

#: Stage, one line of help. ``fuxictr_mm.embeddings.STAGE`` has its ``add_arguments`` and ``main_from_args``.
STAGES = {
    "encode": "turn titles and images into embeddings by a text or an image model",
    "reduce": "reduce and join embeddings by PCA: the strategies V1 to V4, for any modalities",
    "quantize": "turn embeddings into codes: VQ, RQ, PQ, OPQ, VQ-VAE",
    "align": "train embeddings in which items that the same users click are close",
}


def _module(stage: str) -> Any:
    return importlib.import_module(f"fuxictr_mm.embeddings.{stage}")


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

    roles = Roles.parse(args.roles)
    with find_numbering(_item_files(args), roles, args.ids, getattr(args, "train", None)).active():
        _module(args.stage).main_from_args(args)


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


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``, and what ``fuxictr_mm.cli.show`` acts on."""
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_output_options(parser)


def flag(name: str) -> str:
    """Return the option that sets a Python parameter.

    Examples
    --------
    >>> flag("batch_size")
    '--batch-size'
    """
    return "--" + name.replace("_", "-")


def add_settings(parser: Any, settings: type[Settings], without: Sequence[str] = ()) -> None:
    """Add an option for each field of a group of settings; those that are not given are None."""
    for name, field in settings.model_fields.items():
        if name in without:
            continue
        if field.default is True:
            parser.add_argument(
                flag(f"no_{name}"), dest=name, action="store_false", default=None, help=f"do not {field.description}"
            )
            continue
        default = "" if field.default is None or field.default is False else f" (default {field.default})"
        parser.add_argument(flag(name), help=f"{field.description}{default}", **_argument(field.annotation))


def _argument(annotation: Any) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` for a value of an annotated type."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return {"choices": arguments}
    if get_origin(annotation) is Sequence:
        return {**_argument(arguments[0]), "nargs": "+"}
    if bool in arguments:  # or None, which is not False
        return {"action": argparse.BooleanOptionalAction}
    if arguments:  # Annotated, or the type or None
        return _argument(arguments[0])
    return {"action": "store_true", "default": None} if annotation is bool else {"type": annotation}


def given_settings(arguments: argparse.Namespace, settings: type[Settings]) -> dict[str, Any]:
    """Return the fields of a group of settings that are given on the command line."""
    return {name: value for name in settings.model_fields if (value := getattr(arguments, name)) is not None}
