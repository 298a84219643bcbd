"""List models, experiments or datasets, a line each."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm list``."""
    parser.add_argument("what", choices=("models", "experiments", "datasets"))
    parser.add_argument("--config", default=".", metavar="DIR", help="folder of the configuration (default: this one)")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")


def main_from_args(args: argparse.Namespace) -> None:
    """Print the list."""
    from fuxictr_mm.config import list_datasets, list_experiments
    from fuxictr_mm.registry import list_models

    if args.what == "models":
        rows = {name: _first_line(where) for name, where in list_models(args.model_zoo).items()}
    elif args.what == "experiments":
        rows = {name: _description(entry) for name, entry in list_experiments(args.config).items()}
    else:
        rows = {name: _description(entry) for name, entry in list_datasets(args.config).items()}
    width = max(map(len, rows), default=0)
    for name, line in rows.items():
        print(f"{name:{width}}  {line}".rstrip())


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
