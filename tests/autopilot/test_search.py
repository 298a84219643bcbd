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


def study_of(model, seconds, score, now):
    study = Study(model, seconds, now)
    study.finished.append(SimpleNamespace(seconds=seconds, score=score, expid=f"{model}_0"))
    return study


@pytest.mark.parametrize("slow", [60, 700])
def test_one_slow_model_takes_no_time_of_the_tuning_of_the_best(tmp_path, monkeypatch, slow):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock(tmp_path / "state.json", 1000)
    studies = [study_of("LightFM", 2, 0.6, now), study_of("DIN_MM", 60, 0.7, now), study_of("DIN", 60, 0.65, now)]
    studies.append(study_of("Transformer_DCN", slow, 0.5, now))
    now[0] = 400.0
    tune(studies, clock, Journal(clock, quiet=True))
    counts = [len(study.finished) for study in studies]
    assert counts[0] == 20
    assert counts[1] > 5
    assert counts[2:] == [1, 1]
