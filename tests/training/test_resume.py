"""A run that was killed at any moment resumes and ends as if it had not been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.errors import Interrupted, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.tables.gradients import sparse_gradient, touched_parameters
from fuxictr_mm.training import loop, tensor_files
from fuxictr_mm.training.resume import Progress, TrainingCheckpoint
from tests.errors import raises_naming
from tests.kills import Killed, kill_at_step, kill_run_at_step
from tests.paths import ROOT
from tests.projects import write_project
from tests.tensors import assert_equal_tensors, read_tensors


def prepare(folder, expid="DIN_MM_tiny", **settings):
    """Return model, training and validation loader and training checkpoint of an experiment in `folder`."""
    overrides = {"model_root": str(folder), "verbose": 0, "epochs": 2, "net_dropout": 0.2, "batch_size": 200}
    experiment = Experiment.load(expid, ROOT, **{**overrides, **settings})
    torch.manual_seed(experiment.config.seed)
    dataset = experiment.load_dataset({"train": True, "valid": True})
    model = experiment.build_model(dataset)
    train = experiment.make_loader(dataset.splits["train"].slice(0, 3200), model, shuffle=True)
    valid = experiment.make_loader(dataset.splits["valid"].slice(0, 500), model)
    return model, train, valid, TrainingCheckpoint(folder / "run.snapshot", "hash", every_seconds=0)


def train(parts, resume=False):
    model, loader, valid, checkpoint = parts
    history = loop.fit(model, loader, 2, valid, checkpoint=checkpoint, resume=resume)
    return model.state_dict(), history


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Give weights and evaluations of a training with these settings that nothing ends; trained once."""
    found = {}

    def give(**settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in found:
            found[key] = train(prepare(tmp_path_factory.mktemp("whole"), **settings))
        return found[key]

    return give


@pytest.mark.parametrize(
    ("settings", "step"),
    [({}, 1), ({}, 9), ({}, 16), ({}, 17)]
    + [({"accumulation_steps": 3, "eval_steps": 5}, step) for step in (2, 16, 17, 31)],
)
def test_the_same_weights_after_a_kill(undisturbed, tmp_path, settings, step):
    expected, history = undisturbed(**settings)
    parts = prepare(tmp_path / "killed", **settings)
    kill_at_step(parts[0], step)
    with pytest.raises(Killed):
        train(parts)
    torch.manual_seed(999)
    found, resumed_history = train(prepare(tmp_path / "killed", **settings), resume=True)
    assert resumed_history == history
    assert_equal_tensors(found, expected)


#: What has a state of its own, or draws random numbers, besides weights and optimizer.
SETTINGS = {
    "ema": 0.9,
    "warmup_steps": 5,
    "weight_decay": 1e-3,
    "embedding_weight_decay": 0.1,
    "embedding_learning_rate": 3e-3,
    "label_smoothing": 0.1,
    "feature_specs": [{"name": ["item_id", "txt_emb_pca8"], "dropout": 0.3}],
}


TOUCHED = {
    **SETTINGS,
    "embedding_regularizer": 1e-4,
    "feature_specs": [
        {"name": "item_id", "table": "touched", "dropout": 0.3},
        {"name": "txt_emb_pca8", "freeze_emb": False, "table": "touched"},
    ],
}


@pytest.mark.parametrize(
    "settings",
    [
        {**SETTINGS, "eval_steps": 2, "plateau_patience": 2, "early_stop_patience": 20},
        {**SETTINGS, "lr_schedule": "cosine", "accumulation_steps": 3, "precision": "bf16"},
        {**TOUCHED, "eval_steps": 5, "accumulation_steps": 3},
        {**TOUCHED, "table_optimizer": "rowwise_adagrad", "eval_steps": 2, "early_stop_patience": 20},
        {**TOUCHED, "embedding_regularizer": None, "factor_dim": 5, "factor_table_regularizer": 0.1},
    ],
    ids=["plateau", "cosine", "touched", "touched, row-wise", "touched, factors"],
)
def test_settings_with_a_state_of_their_own_resume(undisturbed, tmp_path, settings):
    test_the_same_weights_after_a_kill(undisturbed, tmp_path, settings, 19)


@pytest.mark.slow
def test_killed_again_and_again(undisturbed, tmp_path):
    expected, history = undisturbed()
    for step in (3, 1, 7, 20):
        parts = prepare(tmp_path / "killed")
        kill_at_step(parts[0], step)
        with pytest.raises(Killed):
            train(parts, resume=True)
    found, resumed_history = train(prepare(tmp_path / "killed"), resume=True)
    assert resumed_history == history
    assert_equal_tensors(found, expected)


def test_a_signal_ends_the_run_after_the_step(undisturbed, tmp_path):
    expected, _ = undisturbed()
    parts = prepare(tmp_path / "stopped")
    inner = parts[0].train_step

    def train_step(batch):
        if parts[0]._total_steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(batch)

    parts[0].train_step = train_step
    with raises_naming(Interrupted, "epoch 1, batch 5 of 16", "--resume") as stopped:
        train(parts)
    assert stopped.value.exit_code == 143
    found, _ = train(prepare(tmp_path / "stopped"), resume=True)
    assert_equal_tensors(found, expected)


def test_without_resume_a_run_starts_again(undisturbed, tmp_path):
    parts = prepare(tmp_path / "killed")
    kill_at_step(parts[0], 3)
    with pytest.raises(Killed):
        train(parts)
    expected, _ = undisturbed()
    found, _ = train(prepare(tmp_path / "killed"))
    assert_equal_tensors(found, expected)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    model, _, _, checkpoint = prepare(tmp_path)
    checkpoint.save(model, Progress(None, None))
    with raises_naming(UserError, checkpoint.path):
        TrainingCheckpoint(checkpoint.path, "other").load(model)
    (tensors,) = checkpoint.path.glob("*/*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:1000])
    with raises_naming(UserError, checkpoint.path):
        checkpoint.load(model)
    checkpoint.remove()
    checkpoint.path.write_bytes(b"of an earlier version")
    with raises_naming(UserError, checkpoint.path):
        checkpoint.load(model)


def test_a_run_is_resumed_only_on_the_files_that_it_began_with(tmp_path, caplog):
    shutil.copytree(ROOT / "data", tmp_path, dirs_exist_ok=True)
    options = {"model_root": str(tmp_path / "checkpoints"), "verbose": 0, "epochs": 1, "record": False}

    def fit(resume, die_at=None):
        experiment = Experiment.load("DIN_MM_tiny", ROOT, data_root=tmp_path, **options)
        if die_at is not None:
            kill_run_at_step(experiment, die_at)
        experiment.fit(resume=resume)

    # The state is written at every step.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingCheckpoint, "is_due", lambda *_: True)
        with pytest.raises(Killed):
            fit(False, die_at=3)
    data = Experiment.load("DIN_MM_tiny", ROOT, data_root=tmp_path).config.dataset
    for path in map(Path, (data.train_data, data.valid_data, data.item_files[0])):
        before = path.read_bytes()
        pq.write_table(pq.read_table(path)[::-1], path)  # the same rows in another order
        with raises_naming(UserError, path):
            fit(True)
        path.write_bytes(before)  # the time of the change does not count
    fit(True)
    for changed in (False, True):  # finished: trained again where data has changed, with a warning
        if changed:
            pq.write_table(pq.read_table(path)[::-1], path)
        caplog.clear()
        result = tmp_path / "checkpoints" / "tiny_mm" / "DIN_MM_tiny.json"
        written = result.stat().st_mtime_ns
        fit(True)
        assert any(str(path) in r.message for r in caplog.records if r.levelname == "WARNING") is changed
        assert (result.stat().st_mtime_ns != written) is changed


@pytest.mark.slow
def test_checkpoints_in_the_background_are_complete_and_the_newest_are_kept(tmp_path, monkeypatch):
    expected, history = train(prepare(tmp_path / "whole"))
    model, rows, valid, _ = prepare(tmp_path / "killed")
    options = {"every_steps": 5, "keep": 2, "in_background": True}
    checkpoint = TrainingCheckpoint(tmp_path / "killed" / "run.snapshot", "hash", **options)
    kill_at_step(model, 19)
    with pytest.raises(Killed):
        train((model, rows, valid, checkpoint))
    checkpoint.wait()
    assert sorted(p.name[-2:] for p in checkpoint.path.iterdir()) == ["15", "16"]  # after 16 steps an epoch ends
    found, resumed_history = train(prepare(tmp_path / "killed"), resume=True)
    assert resumed_history == history
    assert_equal_tensors(found, expected)


def test_gradients_of_few_rows_are_kept(tmp_path):
    specs = [{"name": "item_id", "table": "touched"}]
    model, _, _, checkpoint = prepare(tmp_path, feature_specs=specs)
    (table,) = touched_parameters(model)
    table.grad = sparse_gradient(table, torch.tensor([3, 7]), torch.ones(2, table.shape[1]))
    checkpoint.save(model, Progress(None, None))
    table.grad = None
    checkpoint.load(model)
    assert table.grad.is_sparse
    assert table.grad.to_dense().nonzero()[:, 0].unique().tolist() == [3, 7]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    model, _, _, checkpoint = prepare(tmp_path)
    checkpoint.save(model, Progress(None, None, step=7))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoint.save(model, Progress(None, None, step=8))
    found = checkpoint.load(model)
    assert found is not None
    assert found.step == 7
    assert [p.name for p in checkpoint.path.iterdir()] == ["step-000000000007"]


@pytest.mark.slow
def test_a_last_checkpoint_that_fails_in_the_background_leaves_the_finished_run(tmp_path, monkeypatch, caplog):
    expected, history = train(prepare(tmp_path / "whole"))
    model, rows, valid, _ = prepare(tmp_path / "full")
    checkpoint = TrainingCheckpoint(tmp_path / "full" / "run.snapshot", "hash", every_steps=31, in_background=True)
    write = tensor_files._write

    def full(*arguments):
        if model._total_steps >= 31:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(tensor_files, "_write", full)
    with pytest.raises(UserError, match="No space left on device"):  # a checkpoint with steps to come is an error
        train((model, rows, valid, checkpoint))
    assert [p.name[-2:] for p in checkpoint.path.iterdir()] == ["16"]
    caplog.clear()
    model, rows, valid, _ = prepare(tmp_path / "full")
    checkpoint = TrainingCheckpoint(checkpoint.path, "hash", in_background=True)
    monkeypatch.setattr(TrainingCheckpoint, "is_due", lambda *_: False)
    found, again = train((model, rows, valid, checkpoint))
    assert again == history
    assert_equal_tensors(found, expected)
    assert [p.name[-2:] for p in checkpoint.path.iterdir()] == ["16"]  # without what was half written
    assert any("No space left on device" in r.message for r in caplog.records if r.levelname == "WARNING")


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path):
    model, _, _, checkpoint = prepare(tmp_path)
    checkpoint.save(model, Progress(None, None, step=7))
    folder = checkpoint.path / "step-000000000007"
    state, tensors = folder / "state.json", folder / "model.safetensors"

    def flipped(data):
        return data[:-200] + bytes([data[-200] ^ 1]) + data[-199:]

    for path, change in (
        (state, lambda data: b'{"format": 4}'),
        (state, lambda data: data.replace(b'"epoch"', b'"epok"')),
        (state, lambda data: data[:200]),
        (tensors, flipped),
        (tensors, lambda data: data[:-100]),
        (tensors, None),
    ):
        before = path.read_bytes()
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(before))
        with raises_naming(UserError, folder, path.name, "delete", "--resume"):
            checkpoint.load(model)
        path.write_bytes(before)
    assert checkpoint.load(model).step == 7
    content = json.loads(state.read_text())  # of a version that wrote no hashes
    state.write_text(json.dumps({key: value for key, value in content.items() if key != "files"}))
    assert checkpoint.load(model).step == 7
    content["progress"]["loss"] = 2.5  # of a version that wrote the loss of the main process alone
    state.write_text(json.dumps(content))
    assert checkpoint.load(model).loss == [2.5]


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path):
    """The script itself, killed three times by the system, against the script left alone."""
    settings = (ROOT / "model_config.yaml").read_text().replace("batch_size: 256", "batch_size: 64")
    write_project(tmp_path, settings.replace("epochs: 12", "epochs: 3"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "run_expid.py"), "--expid", "DIN_MM_tiny"]

    def start(*flags):
        return subprocess.Popen([*command, *flags], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    weights = tmp_path / "checkpoints" / "tiny_mm" / "DIN_MM_tiny.model"
    run = start()
    run.communicate()
    assert run.returncode == 0
    expected = read_tensors(weights)
    for name in ("model", "json"):
        weights.with_suffix(f".{name}").unlink()
    moments = random.Random(0)
    for _ in range(3):
        run = start("--resume")
        for line in run.stderr:
            if "Training:" in line:
                break
        time.sleep(moments.uniform(0.1, 2.5))
        run.kill()
        run.communicate()
    run = start("--resume")
    run.communicate()
    assert run.returncode == 0
    found = read_tensors(weights)
    assert_equal_tensors(found, expected)
    assert not weights.with_suffix(".snapshot").exists()
    again = start("--resume")
    assert "already finished" in again.communicate()[1]
