"""Which models are tried within the budget."""

import time
from types import SimpleNamespace

import pytest

from fuxictr_mm.autopilot.clock import Clock, Journal
from fuxictr_mm.autopilot.search import compare, tune


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


@pytest.mark.parametrize(
    ("seconds", "trials"),
    [
        ((5, 5, 5, 5), (2, 2, 2, 2)),
        ((20, 8, 10, 10), (1, 1, 1, 1)),  # a slow start takes no model's first trial
        ((26, 10, 10, 10), (1, 1, 0, 0)),
        ((200, 1, 1, 1), (1, 0, 0, 0)),
    ],
)
def test_the_models_share_what_is_left(tmp_path, monkeypatch, seconds, trials):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(tmp_path / "state.json", 120)
    studies = [Study(str(number), each, now) for number, each in enumerate(seconds)]
    compare(studies, clock, Journal(clock, quiet=True))
    assert tuple(len(study.finished) for study in studies) == trials


@pytest.mark.parametrize(("cost", "trials"), [(1, 2), (5, 0)])
def test_a_slow_model_is_left_out_where_its_trial_would_take_too_long(tmp_path, monkeypatch, cost, trials):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(tmp_path / "state.json", 120)
    studies = [Study("quick", 10, now), Study("slow", 10, now, cost)]
    compare(studies, clock, Journal(clock, quiet=True))
    assert len(studies[1].finished) == trials


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
