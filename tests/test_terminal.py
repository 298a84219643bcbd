"""Progress where there is no terminal."""

import time

import pytest

from fuxictr_mm import terminal
from fuxictr_mm.terminal import item_bar, progress_bar


def test_a_line_now_and_then_in_a_file(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.001)
    for _ in progress_bar(range(3), "outer"):
        with item_bar(4000, "encoding", 1) as bar:
            for _ in range(4):
                time.sleep(0.01)
                bar.update(1000)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("encoding: 4.00k/4.00k [") for line in lines)
    assert any(line.startswith("outer: 3/3 [") for line in lines)
    assert all(line.startswith(("encoding: ", "outer: ")) for line in lines)


@pytest.mark.parametrize("verbose", [0, 1])
def test_nothing_of_what_is_quick_or_quiet(verbose, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "LINE_SECONDS", (30.0, 0.001)[verbose == 0])
    for _ in progress_bar(range(100), "quick", verbose):
        pass
    assert capsys.readouterr().err == ""
