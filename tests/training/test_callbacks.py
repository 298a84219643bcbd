"""What TensorBoard shows is what the run did, also after a resumption."""

import errno
import math

import pytest
import torch

from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.runs.evaluations import read_lines
from fuxictr_mm.training import callbacks, loop
from fuxictr_mm.training.resume import TrainingCheckpoint
from tests.errors import raises_naming
from tests.kills import Killed, kill_at_step
from tests.paths import ROOT


def read(folder):
    """Scalars as TensorBoard shows them: {name: [(step, value), ...]}."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(folder))
    shown.Reload()
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def fit(tmp_path, epochs, steps_killed=None, resume=False):
    settings = {"batch_size": 1000, "eval_steps": 8, "seed": 3, "model_root": str(tmp_path), "verbose": 0}
    experiment = Experiment.load("DIN_MM_tiny", ROOT, **settings)
    dataset = experiment.load_dataset({"train": True, "valid": True})
    torch.manual_seed(1)
    model = experiment.build_model(dataset)
    train = experiment.make_loader(dataset.splits["train"], model, shuffle=True, training=True)
    valid = experiment.make_loader(dataset.splits["valid"], model)
    if steps_killed:
        kill_at_step(model, steps_killed)
    checkpoint = TrainingCheckpoint(tmp_path / "run.snapshot", "hash")
    return loop.fit(
        model, train, epochs, valid, 10.0, checkpoint, resume, [callbacks.TensorBoardLogger(tmp_path / "events")]
    )


def test_metrics_loss_and_speed_are_written(tmp_path):
    history = fit(tmp_path, 2)
    shown = read(tmp_path / "events")
    assert [step for step, _ in shown["valid/AUC"]] == [8, 16, 24, 32]
    assert [value for _, value in shown["valid/AUC"]] == pytest.approx([entry["AUC"] for entry in history])
    assert [value for _, value in shown["train/loss"]] == pytest.approx([entry["loss"] for entry in history])
    assert [step for step, _ in shown["train/rows_per_second"]] == [8, 16, 24, 32]
    assert all(math.isfinite(value) and value > 0 for _, value in shown["train/learning_rate"])
    fit(tmp_path, 1)
    assert [step for step, _ in read(tmp_path / "events")["valid/AUC"]] == [8, 16]


def test_a_resumed_run_continues_the_same_curves(tmp_path):
    with pytest.raises(Killed):
        fit(tmp_path, 2, steps_killed=21)
    history = fit(tmp_path, 2, resume=True)
    shown = read(tmp_path / "events")
    assert shown["valid/AUC"] == [(entry["step"], pytest.approx(entry["AUC"])) for entry in history]


def test_without_the_package_the_option_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "is_installed", lambda: False)
    with raises_naming(ConfigError, "fuxictr-mm[tensorboard]"):
        callbacks.TensorBoardLogger(tmp_path)


def test_a_full_disk_ends_in_one_line(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    logger = callbacks.TensorBoardLogger(tmp_path)
    logger.begin(0)

    class Full:
        def add_scalar(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

        close = add_scalar

    logger.close()
    logger._writer = Full()
    with raises_naming(UserError, tmp_path, "No space left on device"):
        logger.add_training(50, {"loss": 0.5})
    logger.close()
    assert any("No space left on device" in r.message for r in caplog.records if r.levelname == "WARNING")


def test_a_new_start_drops_the_evaluation_of_initial_weights(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step, kept in ((4, [0, 4]), (0, [])):
        path.write_text("".join(f'{{"step": {number}}}\n' for number in (0, 4, 8)))
        writer = callbacks.RunWriter(tmp_path, {}, 0.0)
        writer.begin(step)
        writer.close()
        assert [line["step"] for line in read_lines(path)] == kept
