"""What the terminal shows of a search, and what the file keeps."""

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
