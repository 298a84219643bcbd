"""Commands that texts of the package name are those of ``fuxictr-mm``: a wheel has no scripts."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuxictr_mm.cli import COMMANDS, make_parser
from fuxictr_mm.commands.scripts import SCRIPTS
from fuxictr_mm.config import Fold
from fuxictr_mm.experiment import Experiment
from tests.paths import ROOT

FILES = sorted(path for name in ("fuxictr_mm", "fuxictr_mm_serving") for path in (ROOT / name).rglob("*.py"))

#: They say which scripts there are, or speak of what was started as one.
OF_SCRIPTS = {"commands/scripts.py", "commands/train.py", "cli.py", "tuning/runner.py"}


def texts_of(path: Path) -> Iterator[str]:
    """Yield the strings of a file that are no docstrings; what is filled in is shown as ?."""
    nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    others = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    others |= {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "?" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in others:
            yield node.value


def test_texts_name_commands_that_every_install_has():
    for path in FILES:
        name = path.relative_to(ROOT / path.relative_to(ROOT).parts[0]).as_posix()
        for text in texts_of(path):
            if name not in OF_SCRIPTS:
                assert not any(script in text != script for script in SCRIPTS.values()), f"{path}: {text}"
            for word in re.findall(r"fuxictr-mm ([a-z][a-z-]*)", text):
                assert word in COMMANDS, f"{path}: {text}"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_command_of_an_experiment_finds_it(elsewhere, tmp_path, monkeypatch):
    given = {}
    if elsewhere:
        zoo = tmp_path / "my zoo"
        zoo.mkdir()
        given = {"config": ROOT, "data_root": ROOT / "data", "model_zoo": zoo}
    monkeypatch.chdir(tmp_path if elsewhere else ROOT)
    experiment = Experiment.load("DIN_tiny", **given).with_settings(seed=3)
    for one in (experiment.of_seed(1), experiment.of_fold(Fold(number=1, of=3))):
        assert one.command("plan") == experiment.command("plan")  # neither has a name in the configuration
    for name in ("train", "predict", "plan"):
        program, *words = shlex.split(experiment.command(name))
        parsed = make_parser().parse_args(words)
        assert (program, parsed.command, parsed.expid) == ("fuxictr-mm", name, "DIN_tiny")
        assert parsed.config in ((str(ROOT),) if elsewhere else (None, "."))
        assert (parsed.data_root, parsed.model_zoo) == ((str(ROOT / "data"), str(zoo)) if elsewhere else (None, None))
