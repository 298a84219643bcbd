"""Trials as processes: several at once, and their end with that of the tuner."""

import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from fuxictr_mm.tuning import enumerate_trials, run_tuner, runner
from fuxictr_mm.tuning.trial import Trial
from tests.tuning.grids import run, runs, tuner_file


def test_each_trial_is_a_line_without_a_terminal(folder, capsys):
    written = enumerate_trials(tuner_file(folder, "width: [1, 3, 2]"))
    run(written)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"trial {n} of 3" for n in (1, 2, 3)]
    assert re.search(r"Fake_tiny_001_\w+ finished, AUC 0.500000, 2 s$", lines[0])
    assert re.search(r"; best 0.502000 Fake_tiny_002_\w+$", lines[2])
    run(written)
    run(enumerate_trials(tuner_file(folder, "width: [4]", "quiet.yaml")), quiet=True)
    assert capsys.readouterr().err == ""


def test_two_workers_run_at_the_same_time(folder):
    written = enumerate_trials(tuner_file(folder, "width: [50]\nlearning_rate: [1e-3, 1e-4, 1e-5]"))
    results = run(written, gpus=[-1, -1])
    assert [result.error for result in results] == [None] * 3
    assert sorted(runs(folder)) == sorted(result.expid for result in results)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_killed_half_way_and_run_again(folder, forked, wait_for, number, code):
    path = tuner_file(folder, "width: [1, 99]")
    (folder / "slow").touch()
    tuner = forked(lambda: run_tuner(path, [-1], Path("fake_run.py")))
    wait_for(lambda: len(runs(folder)) == 2 or not tuner.is_alive())
    os.kill(tuner.pid, number)
    tuner.join(60)
    assert tuner.exitcode == code
    pid = int((folder / "runs.txt").read_text().split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    (folder / "slow").unlink()
    results = run(enumerate_trials(path))
    assert [(result.error, result.skipped) for result in results] == [(None, True), (None, False)]
    assert len(runs(folder)) == 3


def test_a_trial_ends_with_its_tuner_even_by_kill_9(folder, forked, wait_for):
    path = tuner_file(folder, "width: [99]")
    (folder / "slow").touch()
    tuner = forked(lambda: run_tuner(path, [-1], Path("fake_run.py")))
    wait_for(lambda: runs(folder))
    tuner.kill()
    tuner.join()
    (folder / "slow").unlink()
    # Begins once the child has let go of the lock.
    assert [result.skipped for result in run(enumerate_trials(path))] == [False]
    status = Path("/proc") / (folder / "runs.txt").read_text().splitlines()[0].split()[-1] / "status"
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_running_trials_are_given_back_after_an_error(tmp_path, monkeypatch):
    class Failing:
        total, done = 3, False

        def __init__(self):
            self.given_back, self.free = [], [Trial(name, config_dir=tmp_path) for name in ("one", "two")]

        def take(self):
            if not self.free:
                raise RuntimeError("the database is gone")
            return self.free.pop()

        def give_back(self, trial):
            self.given_back.append(trial.expid)

    ends, trials = [], Failing()
    process = SimpleNamespace(poll=lambda: None, terminate=lambda: ends.append(1), wait=lambda seconds: 0)
    monkeypatch.setattr(runner, "_start", lambda *arguments: process)
    with pytest.raises(RuntimeError, match="database"):
        runner.run_trials(trials, [-1] * 3, None, [], quiet=True)
    assert sorted(trials.given_back) == ["one", "two"]
    assert len(ends) == 2


@pytest.mark.parametrize(("cores", "workers", "share"), [(8, 1, "8"), (8, 3, "2"), (2, 3, "1")])
def test_workers_share_the_cores(folder, monkeypatch, cores, workers, share):
    (folder / "fake_run.py").write_text("import os\nopen('cores.txt', 'w').write(os.environ['FUXICTR_MM_CORES'])\n")
    monkeypatch.delenv("FUXICTR_MM_CORES", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    run(enumerate_trials(tuner_file(folder, "width: [1]")), [-1] * workers, quiet=True)
    assert (folder / "cores.txt").read_text() == share
