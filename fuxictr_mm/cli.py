"""The command line: the commands of ``fuxictr-mm``, its parser, errors, common options and completion."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any, NoReturn

from fuxictr_mm import __version__
from fuxictr_mm.errors import Interrupted, UserError, nearest
from fuxictr_mm.runtime import is_one_of_several, process_number
from fuxictr_mm.terminal import BOLD, RED, paint

#: Command, the module with its ``add_arguments`` and ``main_from_args``, one line of help.
COMMANDS = {
    "synth": ("fuxictr_mm.data.synthetic.spec", "make a synthetic dataset in the challenge's layout"),
    "check-submission": ("fuxictr_mm.submission", "check a submission file"),
    "embed": ("fuxictr_mm.embeddings.command", "turn titles and images into the embeddings and codes that models read"),
    "check-data": ("fuxictr_mm.check_data.check", "find data-quality issues in a dataset, write a cleaned copy"),
    "influence": (
        "fuxictr_mm.evaluation.influence",
        "rank training rows by their effect on the validation loss",
    ),
    "diagnose": ("fuxictr_mm.diagnosis.diagnose", "find what a trained model uses, ignores and gets wrong"),
    "export-hub": ("fuxictr_mm.hub", "write a trained experiment as a folder for the Hugging Face hub"),
    "runs": ("fuxictr_mm.runs", "list runs and their metrics, newest or best first"),
    "compare": ("fuxictr_mm.evaluation.compare", "tell whether a difference between experiments is more than noise"),
    "report": ("fuxictr_mm.report.page", "write one page about runs: what is best, by how much, and why"),
    "list": ("fuxictr_mm.listing", "list models, experiments or datasets"),
    "completion": ("fuxictr_mm.cli", "print a script that completes this command line by the Tab key"),
}


#: The groups of the help; a command in none of them comes last.
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``fuxictr-mm``."""
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what may follow
        complete(parser)
    run_main(lambda: _run(parser.parse_args(arguments)))


def _run(parsed: argparse.Namespace) -> None:
    importlib.import_module(COMMANDS[parsed.command][0]).main_from_args(parsed)


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
    lines += ["", "`fuxictr-mm COMMAND --help` describes one. To train, tune and score: python run_expid.py,"]
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


class Parser(argparse.ArgumentParser):
    """A parser that adds its options when they are first needed, so that help does not wait for imports.

    Parameters
    ----------
    load : callable, optional
        Adds the arguments to the parser that it is given; called once, when the parser is about to parse.
    **options
        Of ``argparse.ArgumentParser``; description and epilog are shown as they are written.

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
            self.error(f"'{unknown[0]}' is one argument too many; see '{self.prog} --help'")
        return parsed, unknown

    def _spell(self, word: str) -> str:
        """Return an option in the spelling of this parser: ``--data-root`` means ``--data_root``, and vice versa."""
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        spelled = {option.replace("_", "-"): option for option in self._option_string_actions}
        return spelled.get(name.replace("_", "-"), name) + equals + value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is none of the choices."""
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


def run_main(main: Callable[[], object]) -> None:
    """Run a command; a ``UserError`` becomes one line and exit code 2, with ``--debug`` a traceback as well."""
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
        # The reader of our output is gone (`... | head`); nothing is left to write, or to flush at exit.
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
        parser.add_argument("--quiet", action="store_true", help="no progress, no log, no summary; errors are shown")


def show(args: argparse.Namespace, document: Any, summary: str) -> None:
    """Print the document as JSON, or the summary, or nothing, by the options of ``add_output_options``."""
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
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that is to run the script")


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
    from fuxictr_mm.registry import list_models

    folder = getattr(parsed_args, "config", None) or "."
    try:
        if action.dest in EXPERIMENTS:
            return list(list_experiments(folder))
        if action.dest in DATASETS:
            return list(list_datasets(folder))
        if action.dest in MODELS and parsed_args.command == "runs":
            return list(list_models())
    except UserError:
        return []  # there is no line to write an error to
    return list(FilesCompleter()(prefix))
