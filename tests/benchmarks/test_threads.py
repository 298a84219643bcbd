"""The benchmark of threads: settings take turns beside busy processes that it starts and ends."""

import json
import subprocess

import pytest

from benchmarks import threads


@pytest.mark.slow
def test_settings_are_compared_with_one_thread(tmp_path, capsys):
    file = tmp_path / "figures.json"
    options = ["--steps", "2", "--pairs", "2", "--busy", "1", "--settings", "auto", "--json", str(file)]
    (figures,) = threads.main(options)
    assert json.loads(file.read_text()) == [figures]
    assert (figures["busy"], figures["setting"], figures["threads"]) == (1, "auto", 1)
    ratios = [a / b for a, b in zip(figures["seconds"]["auto"], figures["seconds"]["one"], strict=True)]
    assert figures["ratios"] == ratios
    assert len(ratios) == 2
    assert threads.row(figures) == capsys.readouterr().out.splitlines()[-1]


def test_neighbours_are_busy_and_end(monkeypatch):
    started = []

    class Kept(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Kept)
    with threads.neighbours(2):
        assert [process.poll() for process in started] == [None, None]
    assert None not in [process.poll() for process in started]
    assert len(started) == 2
