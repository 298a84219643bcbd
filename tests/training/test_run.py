"""Runs that end, or are resumed, at an unlucky moment."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fuxictr_mm.errors import UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.metrics import constant_logloss
from fuxictr_mm.runs import RunPaths, find_runs
from fuxictr_mm.training import run as run_module
from fuxictr_mm.training.callbacks import RunWriter
from fuxictr_mm.training.resume import TrainingCheckpoint
from tests.errors import raises_naming
from tests.kills import Killed
from tests.paths import ROOT

QUICK = {"batch_size": 4096, "epochs": 2, "threads": 1}


def killed(*_, **__):
    raise Killed


@pytest.fixture(scope="module")
def interrupted(train, tmp_path_factory):
    """The folder of runs of DIN_tiny that was killed after its last step, before its files are written."""
    root = tmp_path_factory.mktemp("interrupted") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "finish", killed)
        with pytest.raises(Killed):
            train(root, **QUICK)
    root.rename(root.with_name("kept"))
    return root


@pytest.fixture
def root(interrupted):
    """As it was left; the path is part of the configuration."""
    shutil.rmtree(interrupted, ignore_errors=True)
    shutil.copytree(interrupted.with_name("kept"), interrupted)
    return interrupted


def files_of(root):
    return RunPaths(root, "tiny_mm", "DIN_tiny")


def test_the_log_ends_with_what_is_worse_than_a_constant(train, tmp_path):
    run = train(tmp_path, **QUICK, learning_rate=2.0, swa_start=None)
    rate = run.predictions("valid")[0].mean()
    assert run.metrics["valid"]["logloss"] > constant_logloss(rate)
    last = files_of(tmp_path).log.read_text().splitlines()[-1]
    for part in (f"{run.metrics['valid']['logloss']:.4f}", f"{rate:.4f}", "fuxictr-mm predict --expid DIN_tiny"):
        assert part in last


def test_killed_between_the_two_results_of_a_run_it_stays_one_run(root, train, monkeypatch):
    write = run_module.write_json

    def kill(path, content):
        if path == files_of(root).result:
            raise Killed
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_json", kill)
        with pytest.raises(Killed):
            train(root, resume=True, **QUICK)
    train(root, resume=True, **QUICK)
    (run,) = find_runs(root)
    assert run.finished
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert not files_of(root).checkpoint.exists()


def test_a_training_checkpoint_that_a_finished_run_left_is_deleted(root, train, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(TrainingCheckpoint, "remove", killed)
        with pytest.raises(Killed):
            train(root, resume=True, **QUICK)
    assert files_of(root).checkpoint.exists()
    train(root, resume=True, **QUICK)
    assert not files_of(root).checkpoint.exists()
    assert len(find_runs(root)) == 1


def test_a_finished_run_leaves_the_training_checkpoint_of_other_settings(root, train):
    """As of a seed whose files are published beside an interrupted run of another seed."""
    checkpoint = files_of(root).checkpoint
    kept = checkpoint.rename(root / "kept")
    train(root, **QUICK, seed=3)
    kept.rename(checkpoint)
    assert train(root, resume=True, **QUICK, seed=3).finished
    assert list(checkpoint.glob("step-*"))


def test_a_run_that_another_process_finishes_meanwhile_is_not_trained_again(root, train, monkeypatch):
    locked = run_module._locked

    @contextmanager
    def wait(paths):
        """Let the other process end before this one has the lock."""
        monkeypatch.setattr(run_module, "_locked", locked)
        experiment = Experiment.load("DIN_tiny", ROOT, model_root=str(root), verbose=0, tensorboard=False, **QUICK)
        run_module.TrainingRun(experiment, True, None).run()
        written.append(paths.result.stat().st_mtime_ns)
        with locked(paths):
            yield

    written = []
    monkeypatch.setattr(run_module, "_locked", wait)
    run = train(root, resume=True, **QUICK)
    assert run.finished
    assert len(find_runs(root)) == 1
    assert [files_of(root).result.stat().st_mtime_ns] == written


@pytest.mark.parametrize("resume", [False, True])
def test_an_experiment_that_trains_now_is_refused_before_its_files_are_read(root, train, monkeypatch, resume):
    monkeypatch.setattr(Experiment, "load_dataset", lambda *_, **__: pytest.fail("reads the files"))
    with run_module._locked(files_of(root)), raises_naming(UserError, "DIN_tiny", root):
        train(root, resume=resume, **QUICK)


def test_a_refused_resume_writes_nothing(root, train):
    files_of(root).result.write_text("{}")
    before = sorted(root.rglob("*"))
    with raises_naming(UserError, files_of(root).checkpoint):
        train(root, resume=True, **{**QUICK, "learning_rate": 0.02})
    assert sorted(root.rglob("*")) == before


def test_rows_that_are_streamed_now_are_named(root, train):
    """What fits into memory may have changed; nothing else has."""
    with raises_naming(UserError, "resident: True", "streamed"):
        train(root, resume=True, **QUICK, resident=False)


def test_a_seed_is_published_with_its_result_last(tmp_path, monkeypatch):
    newest = files_of(tmp_path)
    paths = replace(newest, suffix=".seed3")
    for one, text in ((newest, "old"), (paths, "new")):
        one.folder.mkdir(parents=True, exist_ok=True)
        for path in (one.log, one.weights, one.result):
            path.write_text(text)
    move = Path.replace

    def stop(source, target):
        if target == newest.result:
            raise Killed
        return move(source, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(Killed):
        run_module._publish(paths)
    assert newest.weights.read_text() == "new"
    assert not newest.result.exists()
