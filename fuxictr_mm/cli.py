"""``fuxictr-mm``: the commands beside run_expid.py, run_param_tuner.py and prediction.py."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from fuxictr_mm import __version__
from fuxictr_mm.errors import Interrupted, UserError
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
    "export-hub": ("fuxictr_mm.hub", "write a trained experiment as a folder for the Hugging Face hub"),
    "list": ("fuxictr_mm.listing", "list models, experiments or datasets"),
}


def run_main(main: Callable[[], object]) -> None:
    """Run a command; an error of the user's becomes one line and exit code 2, with ``--debug`` a traceback as well."""
    try:
        main()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        process = f"process {process_number()}: " if is_one_of_several() else ""
        print(f"{process}error: " + " ".join(str(error).split()), file=sys.stderr)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``fuxictr-mm``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="fuxictr-mm", description="Multimodal click-through-rate prediction.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        # Only the command that is run is imported: `fuxictr-mm --help` stays instant.
        if name in arguments[:1]:
            importlib.import_module(module).add_arguments(command)
        add_debug(command)
    parsed = parser.parse_args(arguments)
    run_main(lambda: importlib.import_module(COMMANDS[parsed.command][0]).main_from_args(parsed))
