"""What TensorBoard shows is what the run did, also after a resumption."""

import math

import pytest

from fuxictr_mm import experiment
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.training import callbacks as events
from fuxictr_mm.training import loop


def read(folder):
    """Scalars as TensorBoard shows them: {name: [(step, value), ...]}."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(folder))
    shown.Reload()
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def fit(build, tmp_path, epochs, steps_killed=None, resume=False):
    from fuxictr_mm.training.resume import TrainingCheckpoint

    model, dataset = build("DIN_MM_tiny", batch_size=1000, eval_steps=8)
    params = {"max_len": 20, "gpu": -1, "batch_size": 1000, "seed": 3}
    train = experiment.make_loader(dataset.splits["train"], model, params, shuffle=True, training=True)
    valid = experiment.make_loader(dataset.splits["valid"], model, params)
    if steps_killed:
        step = model.train_step

        def dying(batch):
            if model._total_steps == steps_killed:
                raise KeyboardInterrupt
            return step(batch)

        model.train_step = dying
    snapshots = TrainingCheckpoint(tmp_path / "run.snapshot", "hash")
    return loop.fit(
        model, train, epochs, valid, 10.0, snapshots, resume, [events.TensorBoardLogger(tmp_path / "events")]
    )


def test_metrics_loss_and_speed_are_written(build, tmp_path):
    history = fit(build, tmp_path, 2)
    shown = read(tmp_path / "events")
    assert [step for step, _ in shown["valid/AUC"]] == [8, 16, 24, 32]
    assert [value for _, value in shown["valid/AUC"]] == pytest.approx([entry["AUC"] for entry in history])
    assert [value for _, value in shown["train/loss"]] == pytest.approx([entry["loss"] for entry in history])
    assert [step for step, _ in shown["train/rows_per_second"]] == [8, 16, 24, 32]
    assert all(math.isfinite(value) and value > 0 for _, value in shown["train/learning_rate"])
    fit(build, tmp_path, 1)
    assert [step for step, _ in read(tmp_path / "events")["valid/AUC"]] == [8, 16]


def test_a_resumed_run_goes_on_in_the_same_curves(build, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(build, tmp_path, 2, steps_killed=21)
    history = fit(build, tmp_path, 2, resume=True)
    shown = read(tmp_path / "events")
    assert shown["valid/AUC"] == [(entry["step"], pytest.approx(entry["AUC"])) for entry in history]


def test_without_the_package_the_option_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(events, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r'pip install "fuxictr-mm\[tensorboard\]"'):
        events.TensorBoardLogger(tmp_path)
