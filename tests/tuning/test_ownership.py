"""Studies that are killed, and several processes on one study."""

import threading
import time

import pytest

from fuxictr_mm import tuning
from fuxictr_mm.config import list_experiments
from fuxictr_mm.tuning import ownership, pruning
from fuxictr_mm.tuning.space import point_key
from fuxictr_mm.tuning.study_trials import StudyTrials
from tests.tuning.studies import hunt, noted, points_of, tune, tuner_file, undisturbed

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("quick_trials")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search", "trials", "kills"), [("random", 6, (2, 4)), ("tpe", 12, (3, 11)), ("local", 6, (1, 4))]
)
def test_killed_twice_in_the_middle_it_ends_the_same(folder, forked, wait_for, search, trials, kills):
    path = tuner_file(folder, search=search, trials=trials)
    for killed, finished in enumerate(kills):
        (folder / f"slow{finished}").touch()  # the next trial after so many waits
        tuner = forked(tune(path))
        begun = finished + killed + 1
        wait_for(lambda begun=begun: len(noted(folder, "begin")) == begun)
        tuner.kill()
        tuner.join()
        (folder / f"slow{finished}").unlink()
    results = hunt(path)
    assert [result.state for result in results] == ["finished"] * trials
    ended = noted(folder, "end")
    assert len(ended) == len(set(ended)) == trials  # none lost, none twice
    assert len(noted(folder, "begin")) == trials + 2  # the two that were killed began again
    assert len({point_key(result.params) for result in results}) == trials
    assert points_of(results) == undisturbed(path)


@pytest.mark.slow
def test_two_tuners_on_one_study(folder, forked):
    path = tuner_file(folder, trials=7)
    other = forked(tune(path, [-1, -1]))
    results = hunt(path)
    other.join(60)
    assert other.exitcode == 0
    ended = noted(folder, "end")
    assert len(ended) == len(set(ended)) == len(noted(folder, "begin")) == 7
    assert len(list_experiments(folder / "hunt")) == 7
    assert {result.skipped for result in results} == {True, False}  # each had its part
    assert points_of(results) == undisturbed(path)


@pytest.mark.slow
def test_of_two_tuners_one_is_killed(folder, forked, wait_for):
    path = tuner_file(folder, search="tpe", trials=5)
    (folder / "slow").touch()
    other = forked(tune(path, [-1, -1]))
    wait_for(lambda: len(noted(folder, "begin")) == 2)
    other.kill()
    (folder / "slow").unlink()
    results = hunt(path)
    assert [result.state for result in results] == ["finished"] * 5
    assert len(set(noted(folder, "end"))) == len(noted(folder, "end")) == 5


def test_a_child_that_outlives_its_tuner_is_waited_for(folder, forked, wait_for):
    path = tuner_file(folder, "width: [7]", trials=1)
    (folder / "slow").touch()
    (folder / "stubborn").touch()
    other = forked(tune(path))
    wait_for(lambda: noted(folder, "begin"))
    other.kill()
    other.join()
    threading.Timer(1, (folder / "slow").unlink).start()
    results = hunt(path)
    assert [result.valid["AUC"] for result in results] == [0.5 + 7 / 1000 - 1e-3]
    assert len(noted(folder, "begin")) == 1


def test_stopped_it_gives_its_trials_back(folder, forked, wait_for):
    path = tuner_file(folder, "width: [7]", trials=1)
    (folder / "slow").touch()
    tuner = forked(tune(path))
    wait_for(lambda: noted(folder, "begin"))
    tuner.terminate()
    tuner.join(60)
    assert tuner.exitcode == 143
    loaded = optuna.load_study(study_name="hunt", storage=f"sqlite:///{folder}/hunt/study.db")
    assert [trial.state.name for trial in loaded.trials] == ["WAITING"]
    (folder / "slow").unlink()
    assert [result.state for result in hunt(path)] == ["finished"]


def test_a_second_worker_of_a_local_search_changes_the_first_trial(folder):
    ranges = {"learning_rate": "1.e-4, high: 1.e-2", "batch_size": "1, high: 4096", "seed": "1, high: 5000"}
    space = (
        "".join(f"{key}: {{low: {ends}}}\n" for key, ends in ranges.items()) + "width: {low: 1, high: 60}\nepochs: 2"
    )
    tuner = tuning.read_tuner(tuner_file(folder, space, search="local", trials=2))
    trials = StudyTrials(tuner, tuning.Source(), {})
    taken = [trials.take(), trials.take()]
    first, second = (trial.point for trial in trials.stored.all())
    base = {"learning_rate": 1e-3, "batch_size": 2048, "seed": 2025, "width": 1}
    assert first == {**base, "epochs": 2}  # a single value replaces that of the base
    assert any(second[key] == value for key, value in base.items())  # a random point has none of them
    for trial in taken:
        trial.release()


def test_a_machine_that_is_silent_loses_its_trial(folder, monkeypatch):
    url = f"sqlite:///{folder}/shared.db"
    here = StudyTrials(
        tuning.read_tuner(tuner_file(folder, "width: [7, 8]", trials=2, storage=url)), tuning.Source(), {}
    )
    trial = here.take()
    (folder / "there").mkdir()
    path = tuner_file(folder / "there", "width: [7, 8]", trials=2, storage=url)
    path.write_text(path.read_text().replace("base_config: base", f"base_config: {folder}/base"))
    there = StudyTrials(tuning.read_tuner(path), tuning.Source(), {})
    second = there.take()
    assert second.number == 1
    assert there._claim() is None
    assert not there.done
    assert here.may_continue(trial)
    monkeypatch.setattr(ownership, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    for _ in range(5):  # it beats, and keeps its trial
        time.sleep(0.1)
        assert here.may_continue(trial)
        assert there._claim() is None
    time.sleep(0.3)
    taken, lock = there._claim()
    assert taken == 0
    lock.release()
    assert not here.may_continue(trial)
    here.finish(trial, "too late")
    assert there.stored.get(0).error is None
    assert there.stored.get(0).is_running


def test_a_trial_that_ended_elsewhere_while_this_machine_slept_is_left(folder, monkeypatch):
    here = StudyTrials(tuning.read_tuner(tuner_file(folder, "width: [7]", trials=1)), tuning.Source(), {})
    trial = here.take()
    here.stored.study.tell(0, 0.5)
    monkeypatch.setattr(pruning, "read_evaluations", lambda _: [{"epoch": 1, "step": 10, "AUC": 0.6}])
    assert here.may_continue(trial)  # the clock of heartbeats stood still
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0)
    assert not here.may_continue(trial)
    here.finish(trial, "too late")
    assert [result.error for result in here.results()] == [None]
