"""``fuxictr-mm list``: models, experiments or datasets, one per line."""

from __future__ import annotations

import argparse
import ast
import fnmatch
import sys
from pathlib import Path
from typing import Any

from fuxictr_mm.arguments import add_examples, add_output_options, show
from fuxictr_mm.errors import ConfigError, nearest
from fuxictr_mm.terminal import fit_width


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm list``."""
    add_examples(
        parser,
        "fuxictr-mm list models",
        "fuxictr-mm list experiments DIN_MM           those with DIN_MM in their name",
        "fuxictr-mm list experiments '*_MicroLens' --json",
    )
    parser.add_argument("what", metavar="WHAT", choices=("models", "experiments", "datasets"), help="%(choices)s")
    parser.add_argument("pattern", nargs="?", metavar="NAME", help="part of a name, or a pattern such as 'DIN_*_tiny'")
    parser.add_argument(
        "--config", default=".", metavar="DIR", help="folder of the configuration (default: the working directory)"
    )
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")
    add_output_options(parser, quiet=False)


def main_from_args(args: argparse.Namespace) -> None:
    """Print the list."""
    from fuxictr_mm.config import list_datasets, list_experiments
    from fuxictr_mm.registry import list_models, names_a_model

    if args.what == "models":
        found = list_models(args.model_zoo)
        rows = {name: _first_line(where) for name, where in found.items() if names_a_model(name, where)}
    elif args.what == "experiments":
        rows = {name: _description(entry) for name, entry in list_experiments(args.config).items()}
    else:
        rows = {name: _description(entry) for name, entry in list_datasets(args.config).items()}
    if args.pattern is not None:
        rows = _matching(rows, args.pattern, args.what)
    width = max(map(len, rows), default=0)
    lines = [fit_width(f"{name:{width}}  {line}".rstrip(), sys.stdout) for name, line in rows.items()]
    show(args, [{"name": name, "description": line} for name, line in rows.items()], "\n".join(lines))


def _matching(rows: dict[str, str], pattern: str, what: str) -> dict[str, str]:
    """Keep the names that match a pattern, or contain it if it has no ``*``, ``?`` or ``[``; case-insensitive."""
    folded = pattern.lower() if any(mark in pattern for mark in "*?[") else f"*{pattern.lower()}*"
    kept = {name: line for name, line in rows.items() if fnmatch.fnmatchcase(name.lower(), folded)}
    if not kept:
        raise ConfigError(f"none of the {len(rows)} {what} matches '{pattern}'{nearest(pattern, rows)}")
    return kept


def _description(entry: dict[str, Any]) -> str:
    return " ".join(str(entry.get("description", "")).split())


def _first_line(where: Path | str) -> str:
    """Return the first line of a model class's docstring, without running its file."""
    if isinstance(where, str):
        return where
    try:
        tree = ast.parse(where.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        return f"({where}: cannot be read: {type(error).__name__})"
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == where.stem]
    doc = ast.get_docstring(classes[0]) if classes else None
    return (doc or str(where)).splitlines()[0]
