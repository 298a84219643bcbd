"""docs/command_line.md names every command and every option of every command, and none that is not there."""

import re
import runpy
import sys

import pytest

from fuxictr_mm.cli import COMMANDS, main
from fuxictr_mm.commands.scripts import SCRIPTS
from tests.paths import ROOT

PAGE = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
STAGES = ("encode", "reduce", "quantize", "align", "pretrain")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def section(title):
    """Return what stands below a heading, up to the next one of any level."""
    parts = re.split(rf"^#+ {re.escape(title)}$", PAGE, flags=re.M)
    assert len(parts) == 2, f"docs/command_line.md: no heading '{title}'; describe the command there"
    return re.split(r"^#+ ", parts[1], flags=re.M)[0]


def options_of(words, capsys, monkeypatch):
    """Return the options that the help of a command lists."""
    is_script = words[0].endswith(".py")
    monkeypatch.setattr(sys, "argv", [*(() if is_script else ("fuxictr-mm",)), *words, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__") if is_script else main()
    shown = capsys.readouterr().out.split("\nexamples:\n")[0].split("\n\n", 1)[1]
    lines = [line for line in shown.splitlines() if re.match(r"  (-h, )?--", line)]
    return {option for line in lines for option in OPTION.findall(line.strip().split("  ")[0])} - {"--help"}


@pytest.mark.parametrize("words", [(c,) for c in COMMANDS if c != "embed"] + [("embed", s) for s in STAGES])
def test_options(words, capsys, monkeypatch):
    title = " ".join(words)
    tables = {
        option
        for line in section(title).splitlines()
        for option in OPTION.findall(line.split("|")[1] if line.startswith("|") else "")
    }
    common = set(OPTION.findall(section("Common options")))
    options = options_of(words, capsys, monkeypatch)
    missing = sorted(options - tables - common)
    assert not missing, f"docs/command_line.md, {title}: does not name {', '.join(missing)}; add them to its table"
    gone = sorted(tables - options)
    assert not gone, f"docs/command_line.md, {title}: names {', '.join(gone)}, which the command does not have"


@pytest.mark.parametrize(("command", "script"), SCRIPTS.items())
def test_a_script_has_the_options_of_its_command(command, script, capsys, monkeypatch):
    assert options_of((script,), capsys, monkeypatch) == options_of((command,), capsys, monkeypatch)


def test_no_command_is_described_that_is_not_there():
    titles = re.findall(r"^## (.*)$", PAGE, flags=re.M)
    assert sorted(titles) == sorted(["Common options", *COMMANDS])


def test_exit_codes_are_told():
    for code in (0, 1, 2, 130, 141, 143):
        assert f"| {code} |" in section("Common options")
