"""Rows of CSV files with too few fields, against Python's reader."""

import bz2
import csv
import gzip
import random
import zlib

import polars as pl
import pytest

from fuxictr_mm.encoding.csv_files import count_short_rows, find_stray_quote
from fuxictr_mm.errors import DataError, UserError
from tests.configs import load_any_dataset as load_dataset
from tests.encoding.raw import flatten, params_of, rows_of, write_csv
from tests.errors import raises_naming


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b,c\n1,2,3\n1,2\n\n1\n1,2,3", (2, 1)),  # a blank line is no row
        ("\n\na,b\r\n1,2\r\n1\r\n", (1, 1)),
        ("a,b,c\n,,\n1,2,\n", (0, -1)),  # empty fields are fields
        ("a\n1\n", (0, -1)),
        ("a,b\n", (0, -1)),
        ('a,b,c\n"1,x",2,3\n"1,2",2\n', (1, 1)),
        ('a,b,c\n"1\n,x",2,3\n"1,2",2\n', (1, 1)),  # a line break in a field
        ('a,b,c\n5" screen,2,3\n5" screen,2\n', (1, 1)),
    ],
)
def test_short_rows(tmp_path, text, expected):
    path = tmp_path / "a.csv"
    path.write_text(text, newline="")
    assert count_short_rows(path, ",") == expected


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_short_rows_of_any_texts(tmp_path, separator):
    choose = random.Random(1)
    texts = ["1", "", "a b", 'say "yes"', f"a{separator}b"]
    for breaks in ([], ["one\nline", "two\n\nlines"]):
        rows = [[choose.choice(texts + breaks) for _ in range(4)] for _ in range(200)]
        rows = [["x", *row][: choose.choice([5, 5, 5, 4, 2])] for row in rows]
        path = tmp_path / "a.csv"
        with path.open("w", newline="") as stream:
            csv.writer(stream, delimiter=separator).writerows([list("abcde"), *rows])
        short = [number for number, row in enumerate(rows) if len(row) < 5]
        assert count_short_rows(path, separator) == (len(short), short[0])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a,b\n"x\ny",2\n"1,2\n3,4\n5,6\n', 4),  # never closed
        ('a,b\n1,2\n"1,2\n3,"4"\n5,6\n', 3),  # closed by the quotes of another field
        ('a,b\n"x\ny",2\n1,5" disk\n3,4\n', 4),
        ('a,b\n1,"di"sk\n', 2),
        ('a,b\n1,"\n' + "x,y\n" * 50_000, 2),
        ('a,b\n"say ""yes""","x\n\ny"\n', 0),
    ],
)
def test_stray_quotes(tmp_path, text, line):
    path = tmp_path / "a.csv"
    path.write_text(text, newline="")
    assert find_stray_quote(path, ",") == line


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'a,b\n"unfinished\n'])
def test_a_damaged_file_is_an_error(folder, content):
    (folder / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.csv"):
        load_dataset(params_of(folder), {"train": True}, flat=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.encode("utf-16"), ["UTF-16"]),
        (lambda text: text.encode("utf-16-be"), ["UTF-16"]),
        (
            lambda text: gzip.compress(text.encode()),
            ["gunzip"],
        ),  # polars reads it, and blank lines are looked for in it
        (lambda text: zlib.compress(text.encode()), ["zlib"]),
        (lambda text: bz2.compress(text.encode()), ["bunzip2"]),
        (lambda text: b"PAR1" + text.encode() + b"PAR1", ["data_format: parquet"]),
        (lambda text: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + text.encode(), ["Excel"]),
        (lambda text: b"ARROW1\0\0" + text.encode(), ["Feather"]),
        (lambda text: b"\x04\x22\x4d\x18" + text.encode(), ["lz4"]),
        (lambda text: b"\xff\x06\x00\x00sNaPpY" + text.encode(), ["snappy"]),
        (lambda text: b"\n<!DOCTYPE html><html>", ["web page"]),
        (lambda text: text.replace("\n", "\r").encode(), ["end in CR"]),
        (lambda text: text.encode("cp1252", errors="replace"), ["UTF-8"]),
        (lambda text: text.replace(",", ";").encode(), ['sep: ";"']),
        (lambda text: text.replace(",", "\t").encode(), ['sep: "\\t"']),
        (lambda text: (text + text.split("\n")[3].replace(",", ',"', 1)).encode(), ["line 62", '"5"" disk"']),
        (lambda text: text.replace(",city", ",price,city", 1).replace("\n", ",x\n").encode(), ["'price'"]),
    ],
)
def test_a_csv_file_as_a_spreadsheet_leaves_it_says_what_to_change(folder, change, words):
    path = folder / "train.csv"
    path.write_bytes(change(path.read_text()))
    with raises_naming(DataError, "train.csv", *words):
        load_dataset(params_of(folder), {"train": True}, flat=True)


@pytest.mark.parametrize("name", ["PAR1", "BZh", "BZh9", "ARROW1", "PK", "ORC", "BM"])
def test_a_column_may_have_the_name_of_a_format(folder, name):
    rows = [{name: row["city"], **row} for row in rows_of(60)]
    write_csv(folder / "train.csv", rows)
    column = {"name": name, "active": True, "dtype": "str", "type": "categorical"}
    loaded = load_dataset({**params_of(folder), "feature_cols": [column]}, {"train": True}, flat=True)
    assert len(loaded.splits["train"]) == 60


@pytest.mark.parametrize("unused", [True, False])
def test_a_row_with_more_fields_than_the_header_is_named(folder, unused):
    """It would be read shifted, where a column is not used."""
    path = folder / "train.csv"
    header, *lines = path.read_text().split("\n")
    if not unused:
        header, *lines = pl.read_csv(path, infer_schema=False).drop("unused").write_csv().split("\n")
    lines[41] = "red, " + lines[41]
    path.write_text("\n".join([header, "", *lines]))
    with raises_naming(DataError, "train.csv", "row 41", f"expected {header.count(',') + 1}"):
        load_dataset(params_of(folder), {"train": True}, flat=True)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_are_skipped_and_rows_of_missing_values_are_not(folder, caplog, end):
    """As pandas does; a blank line inside quotes belongs to its field."""
    path, params = folder / "test.csv", params_of(folder)
    header, *lines = path.read_text().split("\n")[:-1]
    lines[7] = '"a\n\nb"' + lines[7][lines[7].index(",") :]
    lines.append("," * header.count(","))

    def columns(*lines):
        path.write_bytes(end.join(lines).encode())
        table = load_dataset(params, {"test": None}, flat=True).splits["test"]
        return {name: column.tolist() for name, column in flatten(table).items() if column is not None}

    expected = columns(header, *lines, "")
    assert len(expected["city"]) == 61
    assert columns("", header, "", *lines[:9], " ", "", *lines[9:], "", "  ") == expected
    assert "test.csv: 5 blank lines are skipped" in caplog.text


def test_rows_with_fewer_fields_than_the_header_are_counted(folder, caplog):
    path, params = folder / "train.csv", params_of(folder)
    frame = pl.read_csv(path, infer_schema=False)
    header, *lines = frame.with_columns(last=pl.lit("1")).write_csv().split("\n")[:-1]
    lines[41], lines[50] = (line.rsplit(",", 1)[0] for line in (lines[41], lines[50]))
    path.write_text("\n".join([header, "", *lines]))
    found = load_dataset(params, {"train": True}, flat=True).summaries["train"]
    assert found.num_rows == len(lines)
    assert [r.message for r in caplog.records if "2 rows" in r.message and "row 41" in r.message]
