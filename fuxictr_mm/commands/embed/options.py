"""Options that the stages of ``fuxictr-mm embed`` share: those of groups of settings, and of outputs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from fuxictr_mm.arguments import add_output_options, show
from fuxictr_mm.embeddings.item_files import Source, write_embeddings

if TYPE_CHECKING:
    from fuxictr_mm.checking import Settings
    from fuxictr_mm.embeddings.contrastive import Alignment
    from fuxictr_mm.embeddings.search_unit import Pretrained


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``, and what ``show`` acts on."""
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


def add_training(parser: argparse.ArgumentParser, what: str, train: str) -> None:
    """Add the options of a stage that trains ``what`` on embeddings and clicks, or applies it; ``train`` is a help."""
    add_sources(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="item file to write")
    parser.add_argument("--train", metavar="FILE", help=train)
    parser.add_argument("--label", metavar="NAME", help="column of the label (default: label)")
    parser.add_argument("--save", metavar="FILE", help=f"write the trained {what}, a safetensors file")
    parser.add_argument("--apply", metavar="FILE", help=f"apply this saved {what} to new items instead of training one")
    add_output(parser)


def apply_saved(trained: Alignment | Pretrained, sources: Sequence[Source], arguments: argparse.Namespace) -> None:
    """Write the embeddings that ``trained``, the file of ``--apply``, gives the items of the sources."""
    write_embeddings(sources, trained, arguments.out, arguments.overwrite)
    report = {"applied": arguments.apply, "columns": trained.columns}
    show(arguments, report, f"wrote {arguments.out}: {', '.join(trained.columns)} by {arguments.apply}")


def wrote(path: str, features: Iterable[str]) -> list[str]:
    """Return the lines that name a written item file, and its features as entries of dataset_config.yaml."""
    return [
        f"wrote {path}; for dataset_config.yaml (add the file to item_info:):",
        *(f"  {entry}" for entry in features),
    ]


def embedding_entries(columns: Iterable[str]) -> list[str]:
    """Return the entries of dataset_config.yaml of columns of embeddings."""
    return [f"- {{name: {column}, active: False, dtype: float, type: embedding, source: item}}" for column in columns]


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument ``sources`` of a stage that reads embeddings; see ``Source.parse``."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="NAME=FILE:COLUMN",
        help="a modality: its name, and the file and column of its embeddings",
    )
