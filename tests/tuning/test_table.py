"""What the terminal shows of a search, and what the file keeps."""

import math

import pytest

from fuxictr_mm.tuning.table import format_table, report
from fuxictr_mm.tuning.trial import TrialResult


def results():
    found = []
    for number, rate in enumerate((0.00012345678901234567, 0.5)):
        params = {"monitor": "AUC", "monitor_mode": "max", "learning_rate": rate}
        found.append(TrialResult(f"X_{number}", params, {"AUC": 0.7}, {}, 1234567.8, skipped=number == 0))
    return found


def test_the_terminal_shows_six_digits_and_the_file_all(tmp_path, capsys):
    text = format_table(results())
    assert "0.000123457 " in text
    assert "0.00012345678901" not in text
    assert "1234567.8" in text
    report(results(), tmp_path)
    assert "2 trials, 1 of them run" in capsys.readouterr().out
    assert "0.00012345678901234567" in (tmp_path / "results.csv").read_text()


def test_order_of_the_table():
    def result(name, auc, mode="max", monitor="AUC", **more):
        params = {"monitor": monitor, "monitor_mode": mode}
        return TrialResult(name, params, {"AUC": auc, "logloss": 0.5}, seconds=1.0, **more)

    results = [result("unknown", math.nan), result("low", 0.5), result("broken", 0.9, error="x"), result("high", 0.6)]
    lines = format_table(results).splitlines()[1:]
    assert [next(word for word in line.split() if word.isalpha()) for line in lines] == [
        "high",
        "low",
        "unknown",
        "broken",
    ]
    assert result("a", 0.3, mode="min").score == -0.3
    assert result("a", 0.3, monitor={"AUC": 1, "logloss": -1}).score == pytest.approx(-0.2)
    assert result("a", 0.3, monitor="gAUC").score == -math.inf
