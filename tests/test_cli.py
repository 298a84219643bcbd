"""``fuxictr-mm``: help that answers at once, errors of one line, JSON and nothing else, a Tab that completes."""

import errno
import json
import os
import pty
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fuxictr_mm import arguments
from fuxictr_mm.arguments import Parser, run_main
from fuxictr_mm.cli import COMMANDS, GROUPS, main
from tests.errors import check_names, exits_naming
from tests.paths import ROOT

HEAVY = (
    "torch",
    "fuxictr.pytorch",
    "transformers",
    "PIL",
    "faiss",
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
    "optuna",
)


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_every_command_is_in_one_group():
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(COMMANDS)


def test_the_help_shows_commands_by_group(capsys):
    shown = help_of(capsys)
    for title, names in GROUPS.items():
        section = shown.split(f"\n{title}:\n")[1].split("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines()] == list(names)
        assert [line.split(maxsplit=1)[1] for line in section.splitlines()] == [COMMANDS[name] for name in names]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_examples_of_it(command, capsys):
    shown = help_of(capsys, command)
    if command == "embed":  # its stages have them, see tests/commands/test_embed.py
        return
    examples = shown.split("\nexamples:\n")[1].strip("\n").splitlines()
    assert 1 <= sum(f"fuxictr-mm {command}" in line for line in examples) <= 4
    assert all(line.startswith("  ") for line in examples)


@pytest.mark.parametrize("command", ["run_expid.py", "prediction.py", "run_param_tuner.py"])
def test_the_help_of_a_script_has_examples_of_it(command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(ROOT / command), run_name="__main__")
    assert f"python {command} --" in capsys.readouterr().out.split("\nexamples:\n")[1]


def test_no_help_imports_what_is_slow():
    """The help of every command, in one process: what none of them imports is what no user waits for."""
    code = f"""
import sys
from fuxictr_mm.cli import COMMANDS, main
stages = ("encode", "reduce", "quantize", "align", "pretrain")
for words in [[], *([name] for name in COMMANDS), *(["embed", stage] for stage in stages)]:
    try:
        main([*words, "--help"])
    except SystemExit:
        found = [name for name in {HEAVY!r} if name in sys.modules]
        if found:
            sys.exit(f"{{words}} imports {{found}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["runz"], ["'runz'", "'runs'"]),
        (["xyz"], ["'xyz'", "'fuxictr-mm --help'"]),
        ([], ["COMMAND", "'fuxictr-mm --help'"]),
        (["list"], ["WHAT", "'fuxictr-mm list --help'"]),
        (["list", "models", "--jsom"], ["'--jsom'", "'--json'"]),
        (["synth", "--out", "x", "--itmes=5"], ["'--itmes'", "'--items'"]),
        (["list", "models", "a", "b"], ["'b'", "'fuxictr-mm list --help'"]),
        (["list", "experimants"], ["WHAT", "'experimants'", "'experiments'", "models, experiments, datasets"]),
        (["synth", "--out", "x", "--items", "many"], ["--items", "'many'"]),
        (["check-submission", "none.zip", "--rows", "0"], ["--rows", "'0'"]),
        (["completion", "basch"], ["shell", "'basch'", "'bash'", "bash, zsh, fish"]),
        (["list", "models", "DIN_MN"], ["'DIN_MN'", "'DIN_MM'"]),
    ],
)
def test_what_is_mistyped_is_one_line(arguments, names, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    check_names(printed.err, *names)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["check-data"], ["DIR", "'fuxictr-mm check-data --help'"]),
        (["check-data", "a.csv"], ["a.csv", "folder", "train.parquet"]),
        (["serve", "a.csv"], ["a.csv: ", "a file", "fuxictr-mm export"]),
        (["serve", "nowhere"], ["nowhere/manifest.json", "fuxictr-mm export"]),
        (["prepare", "log", "--source", "a.csv", "--out", "b"], ["--source a.csv", "file", "folder"]),
        (["prepare", "mind", "--source", "nowhere", "--out", "b"], ["--source nowhere", "no such folder"]),
        (["embed", "encode", "--texts", "nowhere", "--model", "m", "--out", "b"], ["nowhere"]),
        (["runs"], ["checkpoints", "fuxictr-mm train", "--root"]),
    ],
)
def test_what_is_not_there_or_no_folder_is_one_line(arguments, names, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").touch()
    with exits_naming(capsys, *names):
        main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_scripts_speak_the_same_way(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_expid.py", "--expid", "x", "--res", "--modelzoo", "y"])
    with exits_naming(capsys, "'--modelzoo'", "'--model_zoo'"):
        runpy.run_path(str(ROOT / "run_expid.py"), run_name="__main__")


def test_dashes_and_underscores_are_the_same():
    parser = Parser(prog="x")
    parser.add_argument("--data_root")
    parser.add_argument("--drop-worst", type=float)
    parser.add_argument("values", nargs="*")
    parsed = parser.parse_args(["--data-root", "a_b-c", "--drop_worst=5", "a_b", "c-d"])
    assert (parsed.data_root, parsed.drop_worst, parsed.values) == ("a_b-c", 5, ["a_b", "c-d"])


@pytest.mark.parametrize(
    ("options", "out"),
    [
        ([], "said\n"),
        (["--quiet"], ""),
        (["--json"], '{\n "a": "é"\n}\n'),
        (["--json", "--quiet"], '{\n "a": "é"\n}\n'),
    ],
)
def test_output_options(options, out, capsys):
    parser = Parser(prog="x")
    arguments.add_output_options(parser)
    arguments.show(parser.parse_args(options), {"a": "é"}, "said")
    assert capsys.readouterr().out == out


def test_lists(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)

    def names(*arguments):
        main(["list", *arguments])
        return [line.split()[0] for line in capsys.readouterr().out.splitlines()]

    assert {"DIN", "DIN_MM"} <= set(names("models"))
    assert names("models", "din_M") == ["DIN_MM"]
    assert names("models", "?IN") == ["DIN", "QIN"]
    assert names("datasets", "*lens*") == ["MicroLens_1M_x1"]
    assert set(names("experiments", "DIN_MM_*_tiny")) == {
        name for name in names("experiments") if name.startswith("DIN_MM_") and name.endswith("_tiny")
    } - {"DIN_MM_tiny"}


def test_a_list_as_json(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    main(["list", "datasets", "tiny_mm", "--json"])
    assert json.loads(capsys.readouterr().out) == [
        {"name": "tiny_mm", "description": "synthetic, 2,000 users and 1,000 items, in the challenge's layout"}
    ]


def test_the_list_has_a_line_for_a_file_that_cannot_be_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "Broken.py").write_text("class Broken(:\n")
    (tmp_path / "zoo" / "Plain.py").write_text("class Plain:\n    pass\n")
    main(["list", "models", "--model_zoo", "zoo"])
    lines = capsys.readouterr().out.splitlines()
    assert any("Broken.py: cannot be read: SyntaxError" in line for line in lines)
    assert any(line.split() == ["Plain", "zoo/Plain.py"] for line in lines)


def in_terminal(*arguments, **environment):
    """Return what a command shows on a terminal of 60 columns."""
    parent, child = pty.openpty()
    settings = {**os.environ, "COLUMNS": "60", "TERM": "xterm", **environment}
    settings = {name: value for name, value in settings.items() if value}
    command = [sys.executable, "-m", "fuxictr_mm", *arguments]
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, cwd=ROOT, env=settings) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                chunk = os.read(parent, 65536)
            except OSError:  # the other side is closed
                break
            if not chunk:
                break
            shown += chunk
    os.close(parent)
    return process.returncode, shown.decode().replace("\r\n", "\n")


def test_lines_fit_the_terminal_and_are_whole_elsewhere(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, shown = in_terminal("list", "models", "Transformer_DCN_Quant")
    main(["list", "models", "Transformer_DCN_Quant"])
    whole = capsys.readouterr().out.rstrip("\n")
    assert len(whole) > 60
    assert shown == f"{whole[:59]}…\n"


def test_colours_are_for_terminals_without_no_color():
    assert in_terminal("runz", NO_COLOR="") == (
        2,
        "\033[31merror:\033[0m unknown command 'runz'; did you mean 'runs'?\n",
    )
    assert in_terminal("runz", NO_COLOR="1") == (2, "error: unknown command 'runz'; did you mean 'runs'?\n")
    _, shown = in_terminal("list", "--help", NO_COLOR="")
    assert "\033[1mexamples:\033[0m\n  fuxictr-mm list models\n" in shown


@pytest.mark.parametrize("words", [["list", "experiments"], ["list", "datasets"], ["--help"]])
def test_a_closed_pipe_is_no_error(words):
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "fuxictr_mm", *words]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, env=buffered, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("words", "unbuffered"), [(["list", "models"], ""), (["list", "models"], "1"), (["--help"], "")]
)
def test_a_full_disk_behind_the_output_is_one_line(words, unbuffered):
    command = [sys.executable, "-m", "fuxictr_mm", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 2
    check_names(done.stderr.decode(), "error: standard output", os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("number", "printed"), [(errno.ENOSPC, "\n"), (errno.ECONNREFUSED, "")])
def test_another_error_of_the_system_is_not_taken_for_one_of_the_output(number, printed, capsys):
    def fail():
        raise OSError(number, "of another file")

    with pytest.raises(OSError, match="of another file"):
        run_main(fail)
    assert capsys.readouterr().out == printed


def test_a_file_of_the_working_directory_is_no_module_of_a_command(tmp_path):
    """Children of ``fuxictr-mm train --seeds`` and ``torchrun -m`` are ``python -m``, which looks there first."""
    for name in ("random", "torch", "polars"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the working directory')")
    (tmp_path / "mine.py").write_text("from torch import nn\n\nclass Mine(nn.Module):\n    pass\n")
    (tmp_path / "model_zoo").mkdir()
    (tmp_path / "model_zoo" / "Zoo.py").write_text("from mine import Mine\n\nclass Zoo(Mine):\n    pass\n")
    (tmp_path / "model_config.yaml").write_text("X: {model: Zoo, dataset_id: d}\n")
    (tmp_path / "dataset_config.yaml").write_text(
        "d:\n  {train_data: none.parquet, valid_data: none.parquet, item_info: none.parquet,\n"
        "  feature_cols: [{name: item_id, dtype: int, type: categorical, vocab_size: 9, source: item}],\n"
        "  label_col: {name: label, dtype: float}}\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fuxictr_mm", "train", "--expid", "X"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    check_names(done.stderr.splitlines()[-1], "error: ", "none.parquet")  # the model has been imported


def test_a_checkout_in_the_working_directory_has_all_its_packages(tmp_path):
    """Beside an installed version, ``python -m fuxictr_mm`` in a checkout would mix its packages with those of that."""
    (tmp_path / "fuxictr_mm_serving").mkdir()
    (tmp_path / "fuxictr_mm_serving" / "__init__.py").write_text("raise SystemExit('another version')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "fuxictr_mm", "score", "none", "none", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 2
    check_names(done.stderr, "error: none")


def test_a_working_directory_that_is_deleted(tmp_path):
    script = f'rmdir "$PWD"; exec {shlex.quote(sys.executable)} -m fuxictr_mm --help'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, cwd=tmp_path / "here", env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


COMPLETE = """
eval "$(fuxictr-mm completion bash)"
for line in "$@"; do
    read -ra COMP_WORDS <<< "$line"
    [[ $line == *" " ]] && COMP_WORDS+=("")
    COMP_LINE=$line COMP_POINT=${#line} COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete fuxictr-mm
    echo ${COMPREPLY[@]}
done
"""


def test_the_script_completes_in_bash(tmp_path):
    """Commands, options, choices, experiments and files, by the script itself in a bash."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    program = tmp_path / "fuxictr-mm"
    program.write_text(f"#!{sys.executable}\nfrom fuxictr_mm.cli import main\nmain()\n")
    program.chmod(0o755)
    expected = {
        "fuxictr-mm comp": "compare completion",
        "fuxictr-mm list e": "experiments",
        "fuxictr-mm influence --drop": "--drop-worst",
        "fuxictr-mm influence --expid DIN_MM_cross_v2_": "DIN_MM_cross_v2_tiny DIN_MM_cross_v2_MicroLens",
        "fuxictr-mm compare DIN_ti": "DIN_tiny",
        "fuxictr-mm synth --preset ": "long microlens-1m path taobao-mm tasks tiny",
        "fuxictr-mm embed red": "reduce",
        "fuxictr-mm check-submission REA": "README.md",
    }
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "-c", COMPLETE, "bash", *expected]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=True)
    assert done.stderr == ""
    assert dict(zip(expected, map(str.strip, done.stdout.splitlines()), strict=True)) == expected


@pytest.mark.parametrize(("shell", "part"), [("zsh", "#compdef fuxictr-mm"), ("fish", "complete --command fuxictr-mm")])
def test_scripts_of_other_shells(shell, part, capsys):
    main(["completion", shell])
    assert part in capsys.readouterr().out


def test_completion_of_names(tmp_path, monkeypatch):
    import argparse

    from fuxictr_mm.commands.completion import complete_value

    monkeypatch.chdir(ROOT)

    def values(dest, **given):
        action = argparse.Action([f"--{dest}"], dest)
        return complete_value("", action, argparse.Namespace(command="runs", **given))

    assert "tiny_mm" in values("dataset")
    assert "DIN_MM" in values("model")
    assert "DIN_MM_tiny" in values("expid", config=None)
    assert values("expid", config=str(tmp_path)) == []
    assert "README.md" in values("out")
