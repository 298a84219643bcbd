"""The time that an autopilot has spent."""

import json
import sys
import time

import pytest
from tqdm import tqdm

from fuxictr_mm.autopilot import clock
from fuxictr_mm.autopilot.clock import Clock, Journal
from fuxictr_mm.errors import ConfigError
from tests.errors import raises_naming


def test_what_is_spent_is_noted_while_a_stage_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "NOTE_SECONDS", 0.01)
    path = tmp_path / "state.json"
    path.write_text('{"spent": 100}')
    with Clock(path, 300).noted():
        deadline = time.monotonic() + 10
        while json.loads(path.read_text())["spent"] == 100 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(path.read_text())["spent"] > 100
    again = Clock(path, 300)
    assert again.before > 100
    assert again.left(0.5) < 50
    assert again.until(1.0) - time.monotonic() == pytest.approx(again.left(1.0), abs=1)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "state.json"
    path.write_text('{"spent": "long"}')
    with raises_naming(ConfigError, str(path), "long"):
        Clock(path, 300)


def test_a_line_stands_above_the_bar_of_running_trials(tmp_path, capsys):
    with tqdm(total=3, file=sys.stderr):
        capsys.readouterr()
        Journal(Clock(tmp_path / "state.json", 300), quiet=False).tell("DIN: not tried.")
        first, line = capsys.readouterr().err.split("\n")[0].rsplit("\r", 1)
    assert first.strip() == ""  # the bar is cleared
    assert line.endswith("s  DIN: not tried.")
