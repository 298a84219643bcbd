"""Checks are registered in one place, and the report joins, orders and prints what they find."""

import json
import math
from pathlib import Path

import polars as pl
import pytest

from fuxictr_mm.check_data import checks
from fuxictr_mm.check_data.check import choose_checks
from fuxictr_mm.check_data.checks import CHECKS, INFO, WARNING, Action, Fault, Measure, Report, check
from fuxictr_mm.errors import ConfigError
from tests.errors import raises_naming


class Number(int):
    """A subject."""


@pytest.fixture
def odd_number(monkeypatch):
    monkeypatch.setattr(checks, "CHECKS", {})
    monkeypatch.setattr(checks, "_FUNCTIONS", {})

    @check(Number, WARNING, "an even number", Action.DROP_ROW, "made even")
    def odd_number(number):
        """Odd numbers."""
        yield Measure(("seen", str(number)), int(number))
        if number % 2:
            yield Fault("f", "c", pl.DataFrame({"row": [number], "user_id": [-1], "value": [float("nan")]}))

    return checks.CHECKS["odd-number"]


def test_a_check_is_its_function_its_docstring_and_its_decorator(odd_number):
    assert odd_number == ("odd-number", WARNING, "odd numbers", "an even number", Action.DROP_ROW, "made even")
    report = Report()
    for number in (1, 2, 3):
        report.examine(Number(number))
    (finding,) = report.findings()
    assert (finding.found, finding.count) == (odd_number.found, 2)
    rows = [{"row": row, "user_id": None, "value": "nan"} for row in (1, 3)]
    assert json.loads(json.dumps(finding.to_dict(), allow_nan=False))["rows"] == rows
    assert report.measures == {"seen": {"1": 1, "2": 2, "3": 3}}
    assert not report.is_clean


def test_a_check_that_is_not_wanted_does_not_run(odd_number):
    report = Report([])
    assert not report.wants(Number, "odd-number")
    report.examine(Number(1))
    assert (report.findings(), report.measures, report.is_clean) == ([], {}, True)


def test_findings_are_ordered_and_milder_ones_are_apart(odd_number):
    report = Report()
    for file, severity in (("b", ""), ("a", INFO), ("a", "")):
        report.add(odd_number, Fault(file, severity=severity))
    report.add(odd_number, Fault("z", rows=pl.DataFrame({"row": [], "user_id": [], "value": []})))
    assert [(f.severity, f.file, f.count) for f in report.findings()] == [
        (WARNING, "a", 1),
        (WARNING, "b", 1),
        (INFO, "a", 1),
    ]


def test_rows_are_shown_up_to_the_limit(odd_number):
    report = Report()
    rows = pl.DataFrame({"row": range(5), "item_id": range(5), "value": [math.inf, *[1.0] * 4]})
    report.add(odd_number, Fault("f", "c", rows))
    lines = checks.format_findings(report.findings(), 2).splitlines()
    assert len(lines) == 6
    assert lines[2].split() == ["row", "0,", "item_id", "0:", "'inf'"]
    assert lines[4].split() == ["and", "3", "more"]


def test_checks_are_chosen_by_name():
    assert choose_checks(None, None) == set(CHECKS)
    assert choose_checks(None, ["mojibake"]) == set(CHECKS) - {"mojibake"}
    for only, skip, named in (
        (["mojibak"], None, ["--only", "'mojibak'"]),
        (None, ["mojibak"], ["--skip", "'mojibak'"]),
        (["mojibake"], ["mojibake", "unreadable"], ["--only", "--skip"]),
    ):
        with raises_naming(ConfigError, *named):
            choose_checks(only, skip)


def test_the_document_names_every_check_with_its_severity():
    text = (Path(__file__).parents[2] / "docs" / "check_data.md").read_text(encoding="utf-8")
    for name, known in CHECKS.items():
        assert f"| `{name}` | {known.severity} |" in text, name
    assert text.count("| error |") + text.count("| warning |") + text.count("| info |") == len(CHECKS)
