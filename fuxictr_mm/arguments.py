"""Parsing of command lines: the parser, the options that commands share, and errors in one line.

Light to import: modules with a command import this, and their ``--help`` must not wait for torch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fuxictr_mm.errors import OF_A_DISK, ConfigError, Interrupted, UserError, nearest
from fuxictr_mm.runtime import is_one_of_several, process_number
from fuxictr_mm.table_formats import FORMATS
from fuxictr_mm.terminal import BOLD, RED, paint

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment


class Parser(argparse.ArgumentParser):
    """A parser whose options ``load`` adds when they are first needed, so that ``--help`` imports little.

    Description and epilog are not wrapped.

    Examples
    --------
    >>> parser = Parser(prog="x", load=lambda parser: parser.add_argument("--seed", type=int))
    >>> parser.parse_args(["--seed", "3"]).seed
    3
    """

    def __init__(self, *, load: Callable[[Parser], object] | None = None, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)
        self._load = load
        self._commands: Any = None

    def add_subparsers(self, **options: Any) -> Any:
        """Add commands, which are parsers of this class by default."""
        self._commands = super().add_subparsers(**options)
        return self._commands

    def fill(self, words: Container[str] = ()) -> None:
        """Add the arguments now, and those of the commands among ``words``."""
        if self._load is not None:
            load, self._load = self._load, None
            load(self)
        for name, command in self._commands.choices.items() if self._commands is not None else ():
            if name in words and isinstance(command, Parser):
                command.fill(words)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; an unknown option is an error of the command that it was given to."""
        self.fill()
        words = [self._spell(word) for word in (sys.argv[1:] if args is None else args)]
        parsed, unknown = super().parse_known_args(words, namespace)
        for word in unknown:
            if word.startswith("-"):
                name = word.split("=")[0]
                self.error(f"unknown option '{name}'{self._hint(name, self._option_string_actions)}")
        if unknown:
            self.error(f"'{unknown[0]}' is an unexpected argument; see '{self.prog} --help'")
        return parsed, unknown

    def _spell(self, word: str) -> str:
        """Return an option in the spelling of this parser: ``--data-root`` means ``--data_root``, and vice versa."""
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        spelled = {option.replace("_", "-"): option for option in self._option_string_actions}
        return spelled.get(name.replace("_", "-"), name) + equals + value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not one of the choices."""
        if action.choices is None or value in action.choices:
            return
        if action is self._commands:
            noun = (action.metavar or "command") if isinstance(action.metavar, str) else "command"
            self.error(f"unknown {noun.lower()} '{value}'{self._hint(value, action.choices)}")
        known = ", ".join(map(str, action.choices))
        name = "/".join(action.option_strings) or action.metavar or action.dest
        self.error(f"{name} is '{value}'{nearest(value, action.choices)} (expected one of: {known})")

    def _hint(self, name: str, known: Any) -> str:
        return nearest(name, known) or f"; see '{self.prog} --help'"

    def error(self, message: str) -> NoReturn:
        """Write one line and exit with code 2."""
        if "required" in message and "--help" not in message:
            message += f"; see '{self.prog} --help'"
        self.exit(2, f"{paint('error:', RED, sys.stderr)} {' '.join(message.split())}\n")

    def format_help(self) -> str:
        """Return the help, its headings bold on a terminal."""
        self.fill()
        return re.sub(
            r"^[a-z][\w ,-]*:", lambda heading: paint(heading[0], BOLD, sys.stdout), super().format_help(), flags=re.M
        )


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add ``--debug``, which ``run_main`` reads."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_examples(parser: argparse.ArgumentParser, *examples: str) -> None:
    """End the help of a command with examples, not wrapped."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n  ".join(["examples:", *examples])


def add_experiment_options(parser: argparse.ArgumentParser, *, gpu: bool = False) -> None:
    """Add the options that name an experiment, as of ``Experiment.load``."""
    parser.add_argument("--expid", required=True, help="experiment id in model_config.yaml")
    parser.add_argument(
        "--config", default=".", metavar="DIR", help="folder of model_config.yaml (default: the working directory)"
    )
    if gpu:
        parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--data_root", metavar="DIR", help="replaces the dataset's data_root")
    parser.add_argument("--model_zoo", metavar="DIR", help="a folder of model files to search first")


def load_experiment(args: argparse.Namespace, config: Path | None = None, **settings: Any) -> Experiment:
    """Return the experiment that ``add_experiment_options`` names, with settings replaced where they are not None."""
    from fuxictr_mm.experiment import Experiment

    return Experiment.load(
        args.expid,
        args.config if config is None else config,
        gpu=getattr(args, "gpu", -1),
        data_root=args.data_root,
        model_zoo=args.model_zoo,
        **{key: value for key, value in settings.items() if value is not None},
    )


def add_roles(parser: argparse.ArgumentParser) -> None:
    """Add ``--roles`` and ``--ids``, which mean what they mean in ``dataset_config.yaml``; see ``Roles.parse``."""
    parser.add_argument(
        "--roles",
        nargs="+",
        metavar="ROLE=COLUMN",
        help="columns with a role: target, history, user, time, short_history, histories=A,B",
    )
    parser.add_argument(
        "--ids",
        choices=("auto", "as_is", "vocabulary"),
        default="auto",
        help="whether item ids are used as they are or numbered by a vocabulary (default: auto)",
    )


def add_output_options(parser: argparse.ArgumentParser, *, quiet: bool = True) -> None:
    """Add ``--json`` and ``--quiet``, which mean the same in every command; ``show`` acts on them."""
    parser.add_argument("--json", action="store_true", help="print only one JSON document")
    if quiet:
        parser.add_argument("--quiet", action="store_true", help="no progress, no log, no summary; errors are printed")


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add ``--format``, in which ``in_format`` writes the table of a command."""
    parser.add_argument("--format", choices=FORMATS, help="print one table in this form")


def show(args: argparse.Namespace, document: Any, summary: str) -> None:
    """Print the document as JSON, or the summary, or nothing, by the options of ``add_output_options``."""
    if args.json and getattr(args, "format", None) in FORMATS:
        raise ConfigError(f"--format {args.format}: is of tables, but --json was given; leave out one")
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


def run_main(main: Callable[[], object]) -> None:
    """Run a command; a ``UserError`` becomes one line and exit code 2, with ``--debug`` a traceback as well."""
    try:
        try:
            main()
        finally:
            print(end="", flush=True)  # here, where a closed pipe or a full disk is met
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        _exit_with(str(error))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()  # its reader has ended (`... | head`)
        sys.exit(141)
    except OSError as error:
        if not _is_of_output(error) or "--debug" in sys.argv:
            raise
        _drop_output()
        _exit_with(f"standard output: cannot be written ({error.strerror}); write it to another file or disk")


def _exit_with(message: str) -> NoReturn:
    process = f"process {process_number()}: " if is_one_of_several() else ""
    print(f"{process}{paint('error:', RED, sys.stderr)} " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _is_of_output(error: OSError) -> bool:
    """Whether the output cannot be written; another file's error names the file, or one more line can be written.

    No line is tried for errors that a disk does not have, such as those of a connection.
    """
    if error.filename is not None or error.errno not in OF_A_DISK:
        return False
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _drop_output() -> None:
    """Discard what is left of the output, which would be flushed again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
