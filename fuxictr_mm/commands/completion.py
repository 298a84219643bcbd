"""``fuxictr-mm completion``: a script for Tab completion, and the answers that it asks for."""

from __future__ import annotations

import argparse
import os
from typing import Any

from fuxictr_mm.arguments import Parser, add_examples
from fuxictr_mm.errors import UserError

#: Options (by ``dest``) whose values are names of the configuration.
EXPERIMENTS = ("expid", "names")


DATASETS = ("dataset", "dataset_id")


MODELS = ("model",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fuxictr-mm completion``."""
    add_examples(
        parser,
        'eval "$(fuxictr-mm completion bash)"       in ~/.bashrc',
        'eval "$(fuxictr-mm completion zsh)"        in ~/.zshrc, after compinit',
        "fuxictr-mm completion fish | source        in ~/.config/fish/config.fish",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that runs the script")


def main_from_args(args: argparse.Namespace) -> None:
    """Print the script."""
    import argcomplete

    print(argcomplete.shellcode(["fuxictr-mm"], shell=args.shell))


def complete(parser: Parser) -> None:
    """Answer the shell, which has put the line so far into the environment, and exit."""
    import argcomplete

    # Arguments that are added while it parses would not be seen.
    parser.fill(os.environ.get("COMP_LINE", "").split())
    argcomplete.autocomplete(parser, default_completer=complete_value)  # type: ignore[arg-type]  # a function will do


def complete_value(prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return possible values of an option: names of the configuration, or files."""
    from argcomplete.completers import FilesCompleter

    from fuxictr_mm.config import list_datasets, list_experiments
    from fuxictr_mm.registry import models

    folder = getattr(parsed_args, "config", None) or "."
    try:
        if action.dest in EXPERIMENTS:
            return list(list_experiments(folder))
        if action.dest in DATASETS:
            return list(list_datasets(folder))
        if action.dest in MODELS and parsed_args.command == "runs":
            return models()
    except UserError:
        return []  # an error cannot be shown
    return list(FilesCompleter()(prefix))
