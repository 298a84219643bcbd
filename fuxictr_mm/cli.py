"""``fuxictr-mm``: the commands beside run_expid.py, run_param_tuner.py and prediction.py."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fuxictr_mm import __version__
from fuxictr_mm.errors import Interrupted, UserError
from fuxictr_mm.parser import Parser
from fuxictr_mm.terminal import RED, paint
from fuxictr_mm.torchrun import is_one_of_several, process_number

#: Command, the module with its ``add_arguments`` and ``main_from_args``, one line of help.
COMMANDS = {
    "synth": ("fuxictr_mm.data.synthetic", "make a synthetic dataset in the challenge's layout"),
    "check-submission": ("fuxictr_mm.submission", "check a submission file"),
    "embed": ("fuxictr_mm.embeddings.command", "turn titles and images into the vectors and codes that models read"),
    "check-data": ("fuxictr_mm.embeddings.quality.command", "find what harms in a dataset, write a cleaned copy"),
    "influence": (
        "fuxictr_mm.evaluation.influence_command",
        "rank training rows by their effect on the validation loss",
    ),
    "diagnose": ("fuxictr_mm.evaluation.diagnosis.command", "find what a trained model uses, ignores and gets wrong"),
    "export-hub": ("fuxictr_mm.hub", "write a trained experiment as a folder for the Hugging Face hub"),
    "runs": ("fuxictr_mm.records.listing", "list runs and their metrics, newest or best first"),
    "compare": ("fuxictr_mm.records.compare_command", "tell whether one experiment is better than another, or chance"),
    "report": ("fuxictr_mm.report.command", "write one page about runs: what is best, by how much, and why"),
    "list": ("fuxictr_mm.listing", "list models, experiments or datasets"),
    "completion": ("fuxictr_mm.completion", "print a script that completes this command line by the Tab key"),
}

#: The order of the help; a command in none of them stands at the end.
GROUPS = {
    "data and items": ("synth", "check-data", "embed"),
    "experiments": ("list", "runs", "compare", "diagnose", "influence", "report"),
    "files for others": ("check-submission", "export-hub"),
    "this command line": ("completion",),
}

EXAMPLES = (
    "fuxictr-mm list experiments",
    "fuxictr-mm synth --preset tiny --out data/my_data",
    "fuxictr-mm runs --best AUC",
)


def run_main(main: Callable[[], object]) -> None:
    """Run a command; an error of the user's becomes one line and exit code 2, with ``--debug`` a traceback as well."""
    try:
        main()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        process = f"process {process_number()}: " if is_one_of_several() else ""
        print(f"{process}{paint('error:', RED, sys.stderr)} " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`... | head`); nothing is left to say, or to flush at exit.
        sys.stderr.close()
        sys.exit(141)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add ``--debug``, which ``run_main`` looks for."""
    parser.add_argument("--debug", action="store_true", help="show a traceback for errors")


def add_examples(parser: argparse.ArgumentParser, *examples: str) -> None:
    """End the help of a command with examples, shown as they are written."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n  ".join(["examples:", *examples])


def add_output_options(parser: argparse.ArgumentParser, *, quiet: bool = True, json: bool = True) -> None:
    """Add ``--json`` and ``--quiet``, which mean the same in every command; ``show`` acts on them."""
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON document, and nothing else")
    if quiet:
        parser.add_argument("--quiet", action="store_true", help="no progress, no log, no summary; errors are told")


def show(args: argparse.Namespace, document: Any, summary: str) -> None:
    """Print the document as JSON, or the summary for people, or nothing: as ``add_output_options`` was answered."""
    if args.json:
        print(json.dumps(_finite(document), indent=1, ensure_ascii=False, allow_nan=False))
    elif not getattr(args, "quiet", False):
        print(summary)


def _finite(value: Any) -> Any:
    """Return a document with null for numbers that JSON cannot write."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_parser() -> Parser:
    """Return the parser of ``fuxictr-mm``; the module of a command is imported when its arguments are needed."""
    width = max(map(len, COMMANDS))
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "others": tuple(name for name in COMMANDS if name not in grouped)}
    lines = ["Multimodal click-through-rate prediction."]
    for title, names in groups.items():
        if not names:
            continue
        lines += ["", f"{title}:", *(f"  {name:{width}}  {COMMANDS[name][1]}" for name in names if name in COMMANDS)]
    lines += ["", "`fuxictr-mm COMMAND --help` tells more of one. To train, tune and score: python run_expid.py,"]
    lines += ["run_param_tuner.py and prediction.py, each with --help."]
    usage = "fuxictr-mm [-h] [--version] COMMAND ..."
    parser = Parser(prog="fuxictr-mm", usage=usage, description="\n".join(lines))
    add_examples(parser, *EXAMPLES)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS, prog="fuxictr-mm"
    )
    for name, (_, summary) in COMMANDS.items():
        description = summary[0].upper() + summary[1:] + "."
        commands.add_parser(name, help=summary, description=description, load=partial(_load, name))
    return parser


def _load(name: str, parser: argparse.ArgumentParser) -> None:
    importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
    add_debug(parser)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``fuxictr-mm``."""
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow
        from fuxictr_mm.completion import complete

        complete(parser)
    run_main(lambda: _run(parser.parse_args(arguments)))


def _run(parsed: argparse.Namespace) -> None:
    importlib.import_module(COMMANDS[parsed.command][0]).main_from_args(parsed)
