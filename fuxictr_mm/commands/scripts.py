"""The commands that are scripts as well: ``python run_expid.py`` is ``fuxictr-mm train``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from fuxictr_mm.arguments import Parser, add_debug, run_main

#: Script of each command.
SCRIPTS = {"train": "run_expid.py", "predict": "prediction.py", "tune": "run_param_tuner.py"}


def run_script(command: str, file: str, description: str) -> None:
    """Run a command as the script ``file``."""
    module = importlib.import_module(f"fuxictr_mm.commands.{command}")
    parser = Parser(description=description)
    module.add_arguments(parser)
    parser.set_defaults(started_as=Path(file).resolve())
    add_debug(parser)
    run_main(lambda: module.main_from_args(parser.parse_args()))


def command_of(parsed: argparse.ArgumentParser | argparse.Namespace, command: str) -> str:
    """Return the start of a command line: the script if a script was started, otherwise ``fuxictr-mm``."""
    started = parsed.prog if isinstance(parsed, argparse.ArgumentParser) else getattr(parsed, "started_as", "")
    return f"python {SCRIPTS[command]}" if str(started).endswith(".py") else f"fuxictr-mm {command}"


def script_folder(args: argparse.Namespace) -> Path:
    """Return the folder of the script that was started, the working directory for ``fuxictr-mm``."""
    return args.started_as.parent if hasattr(args, "started_as") else Path(".")


def script_of(args: argparse.Namespace) -> Path | None:
    """Return run_expid.py beside the script that was started, which trials start; None for ``fuxictr-mm train``."""
    return args.started_as.with_name(SCRIPTS["train"]) if hasattr(args, "started_as") else None
