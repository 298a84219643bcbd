"""Submission files: what is written reads back, and every kind of bad file is named by its message."""

import argparse
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from fuxictr_mm import submission
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.submission import check_submission, write_submission


def predictions(rows=1000, dtype=np.float64):
    values = np.random.default_rng(0).random(rows).astype(dtype)
    values[:4] = 0, 1, 1e-30, 1 / 3
    return values


def zip_of(path, content, name="prediction.csv"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("task", ["Task1", "Task2", "Task1&2"])
def test_round_trip(tmp_path, dtype, task):
    values = predictions(dtype=dtype)
    path = write_submission(tmp_path / "new" / "X.zip", values, task, expected_rows=1000)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["prediction.csv"]
        header, *lines = archive.read("prediction.csv").decode().splitlines()
    assert header == f"ID,{task}"
    columns = list(zip(*(line.split(",") for line in lines), strict=True))
    assert list(columns[0]) == [str(row) for row in range(1000)]
    assert np.array_equal(np.array(columns[1], dtype), values)
    report = check_submission(path, rows=1000, task=task)
    assert (report.rows, report.task, report.min, report.max) == (1000, task, 0, 1)
    assert report.mean == pytest.approx(values.mean(), rel=1e-6)
    assert os.listdir(path.parent) == ["X.zip"]


def test_same_predictions_same_bytes(tmp_path):
    first = write_submission(tmp_path / "a.zip", predictions())
    second = write_submission(tmp_path / "b.zip", predictions().tolist())
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.1, 0.2], "2 predictions; expected 3"),
        ([0.1, np.nan, 0.2], "line 3: the prediction is nan"),
        ([0.1, 0.3, np.inf], "line 4: the prediction is inf"),
        ([0.1, -0.3, 0.2], "line 3: the prediction is -0.3; expected a probability"),
        ([0.5, 0.5, 0.5], "all 3 predictions are 0.5"),
        ([[0.1], [0.2], [0.3]], r"shape \(3, 1\)"),
    ],
)
def test_bad_predictions_leave_nothing_behind(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        write_submission(tmp_path / "new" / "X.zip", values, expected_rows=3)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_is_refused(tmp_path):
    for call in (
        lambda: write_submission(tmp_path / "X.zip", [0.1, 0.2], "Task3"),
        lambda: check_submission("X", task="a"),
    ):
        with pytest.raises(ConfigError, match="expected one of Task1, Task2, Task1&2"):
            call()


def test_a_full_disk_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = write_submission(tmp_path / "X.zip", predictions())
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=r"X\.zip: could not be written \(No space left on device\)"):
        write_submission(path, predictions()[::-1])
    assert os.listdir(tmp_path) == ["X.zip"]
    assert path.read_bytes() == before


GOOD = "ID,Task2\n0,0.5\n1,1e-7\n2,0.25\n"


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        GOOD.rstrip(),
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        GOOD.replace("0.5", '"0.5"'),
        GOOD.replace("0.5", "+.5"),
    ],
)
def test_other_writers_csv_is_fine(tmp_path, content):
    report = check_submission(zip_of(tmp_path / "X.zip", content), rows=3)
    assert (report.rows, report.min, report.max) == (3, 1e-7, 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the header is ''; expected 'ID,Task1' or 'ID,Task2' or 'ID,Task1&2'"),
        ("id,Task2\n0,0.5\n", "line 1: the header is 'id,Task2'"),
        ("ID,Task3\n0,0.5\n", "line 1: the header is 'ID,Task3'"),
        (",ID,Task2\n0,0,0.5\n", "line 1: the header is ',ID,Task2'"),
        ("ID,Task2\n", "no predictions below the header"),
        ("ID,Task2\n0,0.5\n1,0.1\n", "2 predictions; expected 3"),
        (GOOD + "3,0.5\n", "4 predictions; expected 3"),
        ("ID,Task2\n0,0.5\n2,0.5\n1,0.5\n", "line 3: ID is 2; expected 1: "),
        ("ID,Task2\n0,0.5\n0,0.5\n1,0.5\n", "line 3: ID is 0; expected 1: "),
        ("ID,Task2\n1,0.5\n2,0.5\n3,0.5\n", "line 2: ID is 1; expected 0: "),
        ("ID,Task2\n0.0,0.5\n1.0,0.5\n", "line 2: ID is '0.0'; expected 0, the row"),
        ("ID,Task2\n0,0.5\n,0.5\n", "line 3: ID is ''; expected 1"),
        ("ID,Task2\n0,0.5\n99999999999999999999,0.5\n", "line 3: ID is '99999999999999999999'"),
        ("ID,Task2\n0,0.5\n1,abc\n", "line 3: the prediction is 'abc'; expected a number"),
        ("ID,Task2\n0,0.5\n1,\n", "line 3: the prediction is ''"),
        ("ID,Task2\n0,0.5\n1,0_5\n", "line 3: the prediction is '0_5'"),
        ("ID,Task2\n0,0.5\n1,0.1\n2,NaN\n", "line 4: the prediction is nan; expected a finite"),
        ("ID,Task2\n0,0.5\n1,0.1\n2,-inf\n", "line 4: the prediction is -inf; expected a finite"),
        ("ID,Task2\n0,0.5\n1,1.5\n2,0.5\n", "line 3: the prediction is 1.5; expected a probability"),
        ("ID,Task2\n0,0.5\n1,0.5\n2,0.5\n", "all 3 predictions are 0.5"),
        ("ID,Task2\n0,0.5\n1,0.5,7\n2,0.5\n", "line 3: '1,0.5,7' has 3 columns; expected 2"),
        ("ID,Task2\n0,0.5\n\n1,0.5\n", "line 3: ID is ''; expected 1"),
        ("ID,Task2\n0;0.5\n", "line 2: '0;0.5' has 1 columns"),
        ("ID,Task2\n0,0.5\n1,0.5\xff\n".encode("latin-1"), "line 3: byte 0xff is not UTF-8"),
    ],
)
def test_bad_files_are_named_by_line(tmp_path, content, message):
    path = zip_of(tmp_path / "X.zip", content)
    with pytest.raises(DataError) as caught:
        check_submission(path, rows=3)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: prediction.csv")
    assert "\n" not in str(caught.value)


def test_another_task_than_asked_for(tmp_path):
    with pytest.raises(DataError, match="header is 'ID,Task2'; expected 'ID,Task1'"):
        check_submission(zip_of(tmp_path / "X.zip", GOOD), task="Task1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../prediction.csv", "points outside the folder"),
        ("/etc/prediction.csv", "points outside the folder"),
        ("C:\\prediction.csv", "points outside the folder"),
        ("a\\..\\..\\prediction.csv", "points outside the folder"),
        ("submission/prediction.csv", "expected exactly one member, prediction.csv"),
        ("predictions.csv", "holds 'predictions.csv'; expected exactly one member"),
    ],
)
def test_bad_names_of_members(tmp_path, name, message):
    path = tmp_path / "X.zip"
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo("x")
        member.filename = name
        archive.writestr(member, GOOD)
    with pytest.raises(DataError, match=message):
        check_submission(path)


def test_more_than_one_member(tmp_path):
    path = zip_of(tmp_path / "X.zip", GOOD)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/prediction.csv", "")
    with pytest.raises(DataError, match=r"holds 'prediction\.csv', '__MACOSX/prediction\.csv'; expected exactly one"):
        check_submission(path)


def test_an_empty_zip(tmp_path):
    zipfile.ZipFile(tmp_path / "X.zip", "w").close()
    with pytest.raises(DataError, match="holds nothing"):
        check_submission(tmp_path / "X.zip")


def test_an_encrypted_member(tmp_path):
    path = zip_of(tmp_path / "X.zip", GOOD)
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted; zip it without a password"):
        check_submission(path)


def test_a_member_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "MAX_BYTES", 10_000)
    path = zip_of(tmp_path / "X.zip", b"0" * 10_001)
    with pytest.raises(DataError, match="unpacks to 10001 bytes; expected at most 10000"):
        check_submission(path)


def test_a_member_that_lies_about_its_size(tmp_path):
    path = zip_of(tmp_path / "X.zip", b"0" * 1_000_000)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a complete zip file"):
        check_submission(path)


def test_other_compression(tmp_path):
    with zipfile.ZipFile(tmp_path / "X.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("prediction.csv", GOOD)
    with pytest.raises(DataError, match="compression method 14"):
        check_submission(tmp_path / "X.zip")


def test_files_that_are_no_zip(tmp_path):
    (tmp_path / "X.zip").write_text(GOOD)
    with pytest.raises(DataError, match="not a complete zip file"):
        check_submission(tmp_path / "X.zip")
    whole = write_submission(tmp_path / "Y.zip", predictions()).read_bytes()
    (tmp_path / "Y.zip").write_bytes(whole[:200] + whole[300:])
    with pytest.raises(DataError, match="not a complete zip file"):
        check_submission(tmp_path / "Y.zip")
    with pytest.raises(MissingFileError, match="no such file"):
        check_submission(tmp_path / "Z.zip")


def test_the_command_prints_one_line(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    submission.add_arguments(parser)
    path = zip_of(tmp_path / "X.zip", GOOD)
    submission.main_from_args(parser.parse_args([str(path), "--rows", "3", "--task", "Task2"]))
    assert capsys.readouterr().out == f"OK: {path}: 3 rows, Task2, min 1e-07, max 0.5, mean 0.25\n"


def test_importing_it_is_light():
    code = (
        "import sys, fuxictr_mm.errors; before = set(sys.modules); import fuxictr_mm.submission; "
        "print([m for m in ('numpy', 'pandas', 'pyarrow', 'torch') if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
