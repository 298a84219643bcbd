"""The first trials of several models: which begin when, by a clock that the trials move."""

import time
from types import SimpleNamespace

import pytest

from fuxictr_mm.autopilot.clock import Clock, Journal
from fuxictr_mm.autopilot.first_trials import FirstTrials
from fuxictr_mm.files import write_json
from fuxictr_mm.tuning.trial import Trial, TrialResult

BUDGET = 120  # 36 seconds for more than one trial of a model, 60 for its first


class Trials:
    """The trials of a study, as many as it may have."""

    def __init__(self, study, count, until):
        self.study, self.count, self.until, self.done = study, count, until, False

    def take(self):
        study = self.study
        self.done = time.monotonic() > self.until or (len(study.taken) >= self.count and not study.running)
        if self.done or len(study.taken) >= self.count:
            return None
        trial = Trial(f"{study.plan.model}_{len(study.taken)}")
        study.taken.append(trial)
        study.running.add(trial.expid)
        return trial

    def finish(self, trial, error):
        self.study.running.remove(trial.expid)
        self.study.ended.append(TrialResult(trial.expid, {}, seconds=1.0, error=error or None))

    def results(self):
        return self.study.ended[: self.count]


class Study:
    """A study of a model, as far as its first trials go."""

    def __init__(self, model, seconds, cost=1, before=0):
        self.plan, self.seconds = SimpleNamespace(model=model, cost=cost), seconds
        self.taken, self.running, self.ended, self.finished, self.error = [], set(), [], [], ""
        self.has_begun = before > 0
        for number in range(before):
            self.taken.append(f"{model}_{number}")
            self.ended.append(TrialResult(f"{model}_{number}", {}, seconds=seconds))

    def trials(self, count, until=float("inf")):
        return Trials(self, count, until)

    def keep(self, results):
        self.finished = [result for result in results if result.error is None]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the first trials of studies in so many processes; return the starts of all, by experiment id."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def run(studies, workers=1, error="", spent=0.0):
        write_json(tmp_path / "state.json", {"spent": spent})
        clock = Clock(tmp_path / "state.json", BUDGET)
        trials = FirstTrials(studies, clock, Journal(clock, quiet=True))
        assert len(trials.results()) == sum(len(study.ended) for study in studies)  # reported as ended before
        seconds = {study.plan.model: study.seconds for study in studies}
        starts, running = {}, []
        while True:
            while len(running) < workers and (trial := trials.take()) is not None:
                starts[trial.expid] = now[0]
                running.append((now[0] + seconds[trial.expid.partition("_")[0]], trial))
            if not running:
                assert trials.done  # otherwise the command says that other processes run the remaining trials
                break
            running.sort(key=lambda each: each[0])
            now[0], trial = running.pop(0)
            trials.finish(trial, error)
        trials.compared()
        assert sum(len(study.taken) for study in studies) <= trials.total
        return starts

    return run


@pytest.mark.parametrize(
    ("seconds", "counts"),
    [
        ((1, 1, 1, 1), (3, 3, 3, 3)),
        ((5, 5, 5, 5), (2, 2, 2, 2)),
        ((20, 8, 10, 10), (1, 1, 1, 1)),  # a slow start takes no model's first trial
        ((27, 10, 10, 10), (1, 1, 0, 0)),
        ((200, 1, 1, 1), (1, 0, 0, 0)),
    ],
)
def test_the_models_share_what_is_left(run, seconds, counts):
    studies = [Study(str(number), each) for number, each in enumerate(seconds)]
    run(studies)
    assert tuple(len(study.taken) for study in studies) == counts


def test_every_model_begins_before_any_has_a_second_trial(run):
    starts = run([Study(name, 2) for name in "ABC"])
    order = sorted(starts, key=starts.__getitem__)
    assert [expid.partition("_")[0] for expid in order] == list("ABC") * 3


def test_several_processes_run_the_models_side_by_side(run):
    starts = run([Study("A", 1), Study("B", 10), Study("C", 10)], workers=2)
    assert (starts["A_0"], starts["B_0"], starts["C_0"]) == (0, 0, 1)
    # A core that is free has no first trial left: the model with the fewest trials goes on.
    assert starts["A_1"] == 10


@pytest.mark.parametrize(("cost", "count"), [(1, 2), (2, 0), (6, 0)])
def test_a_slow_model_is_left_out_where_its_trial_would_take_too_long(run, cost, count):
    studies = [Study("quick", 10), Study("slow", 10, cost)]
    run(studies)
    assert len(studies[1].taken) == count


@pytest.mark.parametrize(("seconds", "count"), [(5, 1), (20, 0)])
def test_a_model_of_slow_trials_begins_after_the_others(run, seconds, count):
    starts = run([Study("A", 1), Study("B", seconds), Study("C", 5, cost=2)], workers=4)
    assert [starts[expid] for expid in starts if expid.startswith("C")][:1] == [seconds] * count


def test_a_later_start_goes_on_with_what_is_missing(run):
    studies = [Study("A", 2, before=2), Study("B", 2)]
    starts = run(studies)
    assert list(starts) == ["B_0", "B_1", "A_2", "B_2"]


@pytest.mark.parametrize(("spent", "counts"), [(0, (3, 0)), (40, (2, 0))])
def test_a_later_start_leaves_out_a_model_by_the_trials_of_an_earlier_one(run, spent, counts):
    studies = [Study("A", 15, before=2), Study("B", 1, cost=5)]
    run(studies, spent=spent)
    assert tuple(len(study.taken) for study in studies) == counts


def test_a_later_start_counts_all_trials_of_an_earlier_one_once_the_time_for_more_is_over(run):
    studies = [Study("A", 2, before=3), Study("B", 2, before=2)]
    assert run(studies, spent=100) == {}
    assert [len(study.finished) for study in studies] == [3, 2]


def test_a_model_whose_trials_fail_is_not_among_the_compared(run, tmp_path):
    study = Study("A", 2)
    run([study], error="a loss of nan")
    assert len(study.taken) == 3
    assert study.finished == []
