"""Tables in CSV, Markdown and LaTeX hold the values, and texts cannot break them."""

import csv
import io

import pytest

from fuxictr_mm.table_formats import in_format

HEADER = ["run", "95 % low", "AUC"]
ROWS = [["DIN_a|b, c", None, 0.712345678], ["x & y\\", float("nan"), 1e-7]]


def test_csv_has_all_digits():
    found = list(csv.reader(io.StringIO(in_format("csv", HEADER, ROWS))))
    assert found == [HEADER, ["DIN_a|b, c", "", "0.712345678"], ["x & y\\", "", "1e-07"]]


def test_markdown_aligns_numbers():
    assert in_format("markdown", HEADER, ROWS).splitlines() == [
        "| run | 95 % low | AUC |",
        "| --- | ---: | ---: |",
        r"| DIN_a\|b, c |  | 0.7123 |",
        "| x & y\\ |  | 1.0e-07 |",
    ]


def test_latex_escapes_texts():
    lines = in_format("latex", HEADER, ROWS).splitlines()
    assert lines[0] == r"\begin{tabular}{lrr}"
    assert lines[2] == r"run & 95 \% low & AUC \\"
    assert lines[4:6] == [r"DIN\_a|b, c &  & 0.7123 \\", r"x \& y\textbackslash{} &  & 1.0e-07 \\"]


def test_no_text_is_an_option_of_the_line_before():
    lines = in_format("latex", ["[run]", "b"], [["[x]", "[y]"], ["*", 1]]).splitlines()
    assert [line.partition(" & ")[0] for line in (lines[2], *lines[4:6])] == ["{[}run]", "{[}x]", "{*}"]


def test_a_table_without_rows():
    assert in_format("markdown", ["run"], []).splitlines() == ["| run |", "| --- |"]


@pytest.mark.parametrize("form", ["markdown", "latex"])
def test_a_row_is_one_line(form):
    rows = [in_format(form, ["run", "AUC"], [[name, 0.5]]) for name in ("a\nb", "a b")]
    assert rows[0] == rows[1]
