"""Rows of CSV files with too few fields, against Python's reader."""

import csv
import random

import pytest

from fuxictr_mm.encoding.csv_files import count_short_rows, find_stray_quote


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
