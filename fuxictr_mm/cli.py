"""The command line ``fuxictr-mm``: its commands, and the completion of their arguments."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from fuxictr_mm import __version__
from fuxictr_mm.arguments import Parser, add_debug, add_examples, run_main
from fuxictr_mm.errors import UserError

#: Command, the module with its ``add_arguments`` and ``main_from_args``, one line of help.
COMMANDS = {
    "synth": ("fuxictr_mm.data.synthetic.spec", "generate a synthetic dataset in the challenge's layout"),
    "prepare": ("fuxictr_mm.datasets.prepare", "turn your own log or a public dataset into this library's layout"),
    "check-submission": ("fuxictr_mm.submission", "check a submission file"),
    "embed": ("fuxictr_mm.embeddings.command", "turn titles and images into the embeddings and codes that models read"),
    "check-data": ("fuxictr_mm.check_data.check", "find data-quality issues in a dataset, write a cleaned copy"),
    "train": ("fuxictr_mm.commands.train", "train and evaluate one experiment"),
    "predict": (
        "fuxictr_mm.commands.predict",
        "score the test file of a trained experiment, or of several runs averaged",
    ),
    "tune": ("fuxictr_mm.commands.tune", "run many experiments, and find good settings"),
    "influence": (
        "fuxictr_mm.evaluation.influence_command",
        "rank training rows by their effect on the validation loss",
    ),
    "diagnose": ("fuxictr_mm.diagnosis.diagnose", "find what a trained model uses, ignores and gets wrong"),
    "export-hub": ("fuxictr_mm.hub", "write a trained experiment as a folder for the Hugging Face hub"),
    "export": ("fuxictr_mm.serving.export", "write a trained experiment as ONNX graphs and tables"),
    "score": ("fuxictr_mm.serving.score", "score a file of any size from an export, without torch"),
    "serve": ("fuxictr_mm.serving.serve", "answer HTTP requests from an export"),
    "runs": ("fuxictr_mm.runs.command", "list runs and their metrics, newest or best first"),
    "compare": (
        "fuxictr_mm.evaluation.compare_command",
        "test whether a difference between experiments is significant",
    ),
    "report": ("fuxictr_mm.report.command", "write one HTML page that compares runs"),
    "plan": ("fuxictr_mm.plan.command", "print the memory that an experiment would take, before it runs"),
    "autopilot": ("fuxictr_mm.autopilot.command", "from a dataset to a submission within a time budget"),
    "list": ("fuxictr_mm.listing", "list models, experiments or datasets"),
    "completion": ("fuxictr_mm.cli", "print a script for Tab completion of this command line"),
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
    lines += ["", "`fuxictr-mm COMMAND --help` describes one. A checkout also has train, tune and predict as scripts:"]
    lines += ["python run_expid.py, run_param_tuner.py and prediction.py."]
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
        return []  # an error cannot be shown
    return list(FilesCompleter()(prefix))
