"""Submission files: what is written reads back, and every kind of bad file is named by its message."""

import argparse
import os
import zipfile

import numpy as np
import pytest

from fuxictr_mm import submission
from fuxictr_mm.commands import check_submission as command
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.submission import check_submission, write_submission
from tests.errors import raises_naming


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


@pytest.mark.parametrize(("dtype", "text"), [(np.float32, "0.1"), (np.float64, "0.10000000149011612")])
def test_numbers_are_the_shortest_of_their_type(tmp_path, dtype, text):
    values = np.array([0.1, 0.7], np.float32).astype(dtype)
    with zipfile.ZipFile(write_submission(tmp_path / "X.zip", values)) as archive:
        assert archive.read("prediction.csv").decode().splitlines()[1] == f"0,{text}"


def test_same_predictions_same_bytes(tmp_path):
    first = write_submission(tmp_path / "a.zip", predictions())
    second = write_submission(tmp_path / "b.zip", predictions().tolist())
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0.1, 0.2], ["2 predictions", "3"]),
        ([0.1, np.nan, 0.2], ["line 3", "nan"]),
        ([0.1, 0.3, np.inf], ["line 4", "inf"]),
        ([0.1, -0.3, 0.2], ["line 3", "-0.3"]),
        ([0.5, 0.5, 0.5], ["0.5"]),
        ([[0.1], [0.2], [0.3]], ["(3, 1)"]),
    ],
)
def test_bad_predictions_leave_nothing_behind(tmp_path, values, found):
    with raises_naming(DataError, *found):
        write_submission(tmp_path / "new" / "X.zip", values, expected_rows=3)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_is_refused(tmp_path):
    for call in (
        lambda: write_submission(tmp_path / "X.zip", [0.1, 0.2], "Task3"),
        lambda: check_submission("X", task="a"),
    ):
        with raises_naming(ConfigError, "Task1, Task2, Task1&2"):
            call()


def test_a_full_disk_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = write_submission(tmp_path / "X.zip", predictions())
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with raises_naming(UserError, path, "No space left on device"):
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
    ("content", "found"),
    [
        ("", ["line 1", "'ID,Task1'"]),
        ("id,Task2\n0,0.5\n", ["line 1", "'id,Task2'"]),
        ("ID,Task3\n0,0.5\n", ["line 1", "'ID,Task3'"]),
        (",ID,Task2\n0,0,0.5\n", ["line 1", "',ID,Task2'"]),
        ("ID,Task2\n", ["header"]),
        ("ID,Task2\n0,0.5\n1,0.1\n", ["2 predictions", "3"]),
        (GOOD + "3,0.5\n", ["4 predictions", "3"]),
        ("ID,Task2\n0,0.5\n2,0.5\n1,0.5\n", ["line 3", "ID is 2"]),
        ("ID,Task2\n0,0.5\n0,0.5\n1,0.5\n", ["line 3", "ID is 0"]),
        ("ID,Task2\n1,0.5\n2,0.5\n3,0.5\n", ["line 2", "ID is 1"]),
        ("ID,Task2\n0.0,0.5\n1.0,0.5\n", ["line 2", "ID is '0.0'"]),
        ("ID,Task2\n0,0.5\n,0.5\n", ["line 3", "ID is ''"]),
        ("ID,Task2\n0,0.5\n99999999999999999999,0.5\n", ["line 3", "'99999999999999999999'"]),
        ("ID,Task2\n0,0.5\n1,abc\n", ["line 3", "'abc'"]),
        ("ID,Task2\n0,0.5\n1,\n", ["line 3", "prediction is ''"]),
        ("ID,Task2\n0,0.5\n1,0_5\n", ["line 3", "'0_5'"]),
        ("ID,Task2\n0,0.5\n1,0.1\n2,NaN\n", ["line 4", "nan"]),
        ("ID,Task2\n0,0.5\n1,0.1\n2,-inf\n", ["line 4", "-inf"]),
        ("ID,Task2\n0,0.5\n1,1.5\n2,0.5\n", ["line 3", "1.5"]),
        ("ID,Task2\n0,0.5\n1,0.5\n2,0.5\n", ["3 predictions are 0.5"]),
        ("ID,Task2\n0,0.5\n1,0.5,7\n2,0.5\n", ["line 3", "'1,0.5,7'", "3 columns"]),
        ("ID,Task2\n0,0.5\n\n1,0.5\n", ["line 3", "ID is ''"]),
        ("ID,Task2\n0;0.5\n", ["line 2", "'0;0.5'", "1 columns"]),
        ("ID,Task2\n0,0.5\n1,0.5\xff\n".encode("latin-1"), ["line 3", "0xff"]),
    ],
)
def test_bad_files_are_named_by_line(tmp_path, content, found):
    path = zip_of(tmp_path / "X.zip", content)
    with raises_naming(DataError, f"{path}: prediction.csv", *found):
        check_submission(path, rows=3)


def test_another_task_than_asked_for(tmp_path):
    with raises_naming(DataError, "'ID,Task2'", "'ID,Task1'"):
        check_submission(zip_of(tmp_path / "X.zip", GOOD), task="Task1")


@pytest.mark.parametrize(
    "names",
    [
        ["../prediction.csv"],
        ["/etc/prediction.csv"],
        ["C:\\prediction.csv"],
        ["a\\..\\..\\prediction.csv"],
        ["submission/prediction.csv"],
        ["predictions.csv"],
        ["prediction.csv", "__MACOSX/prediction.csv"],
        [],
    ],
)
def test_other_members_than_one_of_the_name(tmp_path, names):
    path = tmp_path / "X.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            member = zipfile.ZipInfo("x")
            member.filename = name
            archive.writestr(member, GOOD)
    with raises_naming(DataError, path, *(repr(name) for name in names)):
        check_submission(path)


def test_a_member_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "MAX_BYTES", 10_000)
    path = zip_of(tmp_path / "X.zip", b"0" * 10_001)
    with raises_naming(DataError, "10001", "10000"):
        check_submission(path)


def test_other_compression(tmp_path):
    with zipfile.ZipFile(tmp_path / "X.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("prediction.csv", GOOD)
    with raises_naming(DataError, tmp_path / "X.zip", "14"):
        check_submission(tmp_path / "X.zip")


def encrypted(content):
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1


def lying_about_its_size(content):
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = (100).to_bytes(4, "little")


def cut_in_the_middle(content):
    del content[20:30]


def no_zip(content):
    content[:] = GOOD.encode()


def no_text_as_name(content):
    at = content.index(b"PK\x01\x02")
    content[at + 9] |= 8  # the name is UTF-8
    content[at + 46] = 0xFF


@pytest.mark.parametrize("damage", [encrypted, lying_about_its_size, cut_in_the_middle, no_zip, no_text_as_name])
def test_damaged_files(tmp_path, damage):
    path = zip_of(tmp_path / "X.zip", GOOD + "0" * 1000)
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    with raises_naming(DataError, path) as caught:
        check_submission(path)
    assert "prediction.csv, line" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with raises_naming(MissingFileError, tmp_path / "Z.zip"):
        check_submission(tmp_path / "Z.zip")


def test_the_command_prints_one_line(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    path = zip_of(tmp_path / "X.zip", GOOD)
    command.main_from_args(parser.parse_args([str(path), "--rows", "3", "--task", "Task2"]))
    assert capsys.readouterr().out == f"OK: {path}: 3 rows, Task2, min 1e-07, max 0.5, mean 0.25\n"


@pytest.mark.parametrize(("offset", "byte"), [(6, 0xFF), (8, 0x20)])
def test_a_zip_of_a_later_version_is_refused(offset, byte, tmp_path):
    """Version needed to unpack, and the flag of patched data, in the directory at the end of the file."""
    path = tmp_path / "x.zip"
    write_submission(path, np.array([0.1, 0.9]))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + offset] = byte
    path.write_bytes(content)
    with raises_naming(DataError, path):
        check_submission(path)
