"""Which models are tried within the budget."""

import time
from types import SimpleNamespace

import pytest

from fuxictr_mm.autopilot.clock import Clock, Journal
from fuxictr_mm.autopilot.search import tune


class Study:
    """A study whose trials take seconds of a clock that stands still otherwise."""

    def __init__(self, model, seconds, now, cost=1):
        self.plan, self.seconds, self.now = SimpleNamespace(model=model, cost=cost), seconds, now
        self.has_begun, self.error, self.finished = False, "", []

    def run(self, trials, until):
        while len(self.finished) < trials and self.now[0] < until:
            self.now[0] += self.seconds
            self.finished.append(SimpleNamespace(seconds=1.0, score=0.5))  # without the start of its process

    @property
    def best(self):
        return self.finished[0]


@pytest.mark.parametrize(("budget", "trials"), [(1000, 39), (20, 1)])
def test_the_journal_says_whether_there_is_time_to_tune(tmp_path, monkeypatch, budget, trials):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(tmp_path / "state.json", budget)
    (study := Study("DIN_MM", 20, now)).run(1, 1)
    study.finished[0].expid = "DIN_MM_1"
    journal = Journal(clock, quiet=True)
    tune([study], clock, journal)
    assert len(study.finished) == trials
    assert ("not tuned" in journal.lines[0]) == (trials == 1)
