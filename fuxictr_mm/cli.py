"""The command line ``fuxictr-mm``: its commands, each a module of ``fuxictr_mm.commands``."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from fuxictr_mm import __version__
from fuxictr_mm.arguments import Parser, add_debug, add_examples, run_main

#: Command, one line of help. ``fuxictr_mm.commands.COMMAND`` has its ``add_arguments`` and ``main_from_args``.
COMMANDS = {
    "synth": "generate a synthetic dataset in the challenge's layout",
    "prepare": "turn your own log or a public dataset into this library's layout",
    "check-submission": "check a submission file",
    "embed": "turn titles and images into the embeddings and codes that models read",
    "check-data": "find data-quality issues in a dataset, write a cleaned copy",
    "train": "train and evaluate one experiment",
    "predict": "score the test file of a trained experiment, or of several runs averaged",
    "tune": "run many experiments, and find good settings",
    "influence": "rank training rows by their effect on the validation loss",
    "diagnose": "find what a trained model uses, ignores and gets wrong",
    "export-hub": "write a trained experiment as a folder for the Hugging Face hub",
    "export": "write a trained experiment as ONNX graphs and tables",
    "score": "score a file of any size from an export, without torch",
    "serve": "answer HTTP requests from an export",
    "runs": "list runs and their metrics, newest or best first",
    "compare": "test whether a difference between experiments is significant",
    "report": "write one HTML page that compares runs",
    "plan": "print the memory that an experiment needs, before it runs",
    "autopilot": "from a dataset to a submission within a time budget",
    "list": "list models, experiments or datasets",
    "completion": "print a script for Tab completion of this command line",
}


#: The groups of the help; a command in none of them comes last.
GROUPS = {
    "data and items": ("prepare", "synth", "check-data", "embed"),
    "training": ("train", "tune", "predict", "autopilot"),
    "experiments": ("list", "plan", "runs", "compare", "diagnose", "influence", "report"),
    "files for others": ("check-submission", "export-hub"),
    "production": ("export", "score", "serve"),
    "this command line": ("completion",),
}


EXAMPLES = (
    "fuxictr-mm list experiments",
    "fuxictr-mm synth --preset tiny --out data/my_data",
    "fuxictr-mm runs --best AUC",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``fuxictr-mm``."""
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow
        from fuxictr_mm.commands.completion import complete

        complete(parser)
    run_main(lambda: _run(parser.parse_args(arguments)))


def _run(parsed: argparse.Namespace) -> None:
    _module(parsed.command).main_from_args(parsed)


def _module(command: str) -> Any:
    return importlib.import_module(f"fuxictr_mm.commands.{command.replace('-', '_')}")


def make_parser() -> Parser:
    """Return the parser of ``fuxictr-mm``; the module of a command is imported when its arguments are needed."""
    width = max(map(len, COMMANDS))
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "others": tuple(name for name in COMMANDS if name not in grouped)}
    lines = ["Multimodal click-through-rate prediction."]
    for title, names in groups.items():
        if not names:
            continue
        lines += ["", f"{title}:", *(f"  {name:{width}}  {COMMANDS[name]}" for name in names if name in COMMANDS)]
    lines += ["", "`fuxictr-mm COMMAND --help` describes one. A checkout also has train, tune and predict as scripts:"]
    lines += ["python run_expid.py, run_param_tuner.py and prediction.py."]
    usage = "fuxictr-mm [-h] [--version] COMMAND ..."
    parser = Parser(prog="fuxictr-mm", usage=usage, description="\n".join(lines))
    add_examples(parser, *EXAMPLES)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS, prog="fuxictr-mm"
    )
    for name, summary in COMMANDS.items():
        description = summary[0].upper() + summary[1:] + "."
        commands.add_parser(name, help=summary, description=description, load=partial(_load, name))
    return parser


def _load(name: str, parser: argparse.ArgumentParser) -> None:
    _module(name).add_arguments(parser)
    add_debug(parser)
