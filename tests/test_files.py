"""Outputs are refused before any work where they cannot be written."""

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.files import check_outputs, check_replaceable, write_folder
from tests.errors import exits_naming, raises_naming
from tests.paths import ROOT


@pytest.fixture
def folder(tmp_path):
    for name in ("read.parquet", "there.json"):
        (tmp_path / name).write_text("kept")
    return tmp_path


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_read_is_never_written(folder, overwrite, monkeypatch):
    monkeypatch.chdir(folder)
    for output in ("read.parquet", folder / "read.parquet", "x/../read.parquet"):
        with raises_naming(ConfigError, "read.parquet"):
            check_outputs([None, output], [None, "read.parquet"], overwrite)
    with raises_naming(ConfigError, "read.parquet"):
        check_outputs(["read.parquet"], ["read"], overwrite)  # the ending may be left out
    for output in ("new.parquet", "dt=1/new.parquet", "dt=1/hour=2/new.parquet"):
        with raises_naming(ConfigError, output):
            check_outputs([folder / output], [folder], overwrite)
    check_outputs([folder / "other" / "dt=1" / "new.parquet"], [folder], overwrite)


def test_two_outputs_of_one_name_folders_and_old_files(folder):
    with raises_naming(ConfigError, folder / "a"):
        check_outputs([folder / "a", folder / "a"], [], True)
    with raises_naming(ConfigError, folder):
        check_outputs([folder], [], True)
    with raises_naming(ConfigError, "there.json", "--overwrite"):
        check_outputs([folder / "there.json"], [], False)
    with raises_naming(ConfigError, "below"):
        check_outputs([folder / "there.json" / "below"], [], False)
    check_outputs([folder / "there.json", folder / "deep" / "new", None], [folder / "read.parquet"], True)


@pytest.mark.parametrize(
    ("content", "names"), [("<!DOCTYPE html><p>", ["<html>"]), ('{"a": 1, "b": 2}', ["a", "b"]), ("", ["a", "b"])]
)
def test_a_file_of_another_kind_is_not_replaced(tmp_path, content, names):
    path = tmp_path / "notes"
    check_replaceable(path, names, "page")
    path.write_text(content)
    check_replaceable(path, names, "page")
    for other in ("my notes", '{"a": 1}', "{", "[1]", "PAR1"):
        path.write_text(other)
        with raises_naming(ConfigError, path, "page"):
            check_replaceable(path, names, "page")
    pq.write_table(pa.table({"b": [1], "a": [2], "c": [3]}), path)
    check_replaceable(path, ["a", "b"], "table")
    with raises_naming(ConfigError, path):
        check_replaceable(path, ["d"], "table")


@pytest.mark.parametrize(
    "command",
    [
        ["check-data", "data/tiny_mm", "--report"],
        ["report", "--out"],
        ["diagnose", "--expid", "DIN_MM_tiny", "--weights", "README.md", "--out"],
        ["influence", "--expid", "DIN_MM_tiny", "--out"],
    ],
)
def test_no_command_replaces_a_file_of_another_kind(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with exits_naming(capsys, path):
        main([*command, str(path)])
    assert path.read_text() == "my notes"


def test_a_full_disk_that_an_error_of_numpy_does_not_name(tmp_path, monkeypatch):
    def write(new):
        raise OSError("30000 requested and 2544 written")  # of ndarray.tofile, without a number

    with raises_naming(UserError, tmp_path / "out", "30000 requested"):
        write_folder(tmp_path / "out", write)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with raises_naming(UserError, tmp_path / "out", os.strerror(errno.ENOSPC)):
        write_folder(tmp_path / "out", write)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_whole_or_kept(tmp_path, monkeypatch):
    out, rename = tmp_path / "out", Path.rename
    write_folder(out, lambda new: (new / "old.txt").write_text("old"))

    def refuse_new(path, target):
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse_new)
        with raises_naming(UserError, out, "No space left"):
            write_folder(out, lambda new: (new / "new.txt").write_text("new"))
    assert [path.name for path in out.iterdir()] == ["old.txt"]
    write_folder(out, lambda new: (new / "new.txt").write_text("new"))
    assert [path.name for path in out.iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
