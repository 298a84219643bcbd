"""Several processes do together what one does."""

import json
import shutil

import pytest
import torch

from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.data.loaders import InMemoryLoader
from fuxictr_mm.data.shards import Shard
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.training import distributed, scoring
from fuxictr_mm.training.batch_norm import average_running_statistics, replace_batch_norm
from fuxictr_mm.training.replicas import distribute, synchronize_buffers
from tests.paths import ROOT
from tests.projects import write_project
from tests.tensors import assert_equal_tensors, read_tensors
from tests.torchrun import call_on_ranks, start


def build_in_float64(experiment, dataset):
    """Return the model of an experiment; it, its items and labels are in float64."""
    model = experiment.build_model(dataset).double()
    for module in (model.items, dataset.items):
        module.double()
    get_labels = model.get_labels
    model.get_labels = lambda batch: get_labels(batch).double()
    return model


def gradients_and_scores(expid, folder, settings, shard=None):
    """Return gradients at several points of a run without dropout, buffers, and scores, all in float64.

    The last of a few batches is of an odd size, and scores are of all of valid.
    """
    torch.Tensor.float = torch.Tensor.double
    shard = shard or distributed.make_shard(12)
    batch_size = 1200 // shard.size
    overrides = {"model_root": folder, "verbose": 0, "net_dropout": 0.0, "batch_size": batch_size, **settings}
    overrides |= {"optimizer": "sgd", "learning_rate": 0.5}
    experiment = Experiment.load(expid, ROOT, **overrides)
    dataset = experiment.load_dataset({"train": True, "valid": True}, shard=Shard())
    torch.manual_seed(1)
    model = build_in_float64(experiment, dataset)
    distribute(model)
    rows = dataset.splits["train"]
    rows = concatenate(rows.slice(part.start, part.stop) for part in shard.train_rows(2501))
    train = InMemoryLoader(rows, batch_size, num_samples=2501, shuffle=True, seed=2, shard=shard)
    points = []
    model.train()
    for batch in train:
        model.optimizer.zero_grad()
        model.backward(batch)
        points.append({name: p.grad.to_dense() + 0 for name, p in model.named_parameters() if p.grad is not None})
        model.penalty.add_gradients()
        model.optimizer.step()
    part = shard.part(777)
    valid = InMemoryLoader(dataset.splits["valid"].slice(part.start, part.stop), batch_size)
    scored = scoring.score(model, valid)
    rows = {"scores": scored.prediction, "labels": scored.label, "groups": scored.group}
    return {"points": points, "state": model.state_dict(), **rows}


TOUCHED = [{"name": ["item_id", "likes_level"], "table": "touched"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expid", "settings", "processes"),
    [
        ("DIN_MM_tiny", {}, 3),
        ("DIN_tiny", {}, 2),
        ("DIN_MM_tiny", {"sample_weight": "user_id"}, 3),  # whose sums differ over processes
        # Of large numbers, by which differences grow fastest (docs/scale_measured.md).
        ("DIN_MM_tiny", {"use_features": ["likes_level", "item_id", "item_tags", "item_emb_d16"]}, 2),
        ("DIN_MM_tiny", {"feature_specs": TOUCHED}, 3),
        # Rows catch up with the updates that they have missed, of which the processes have to agree.
        ("DIN_MM_tiny", {"feature_specs": TOUCHED, "embedding_regularizer": 0.1, "embedding_weight_decay": 0.2}, 3),
        ("DIN_MM_tiny", {"feature_specs": TOUCHED, "factor_dim": 4, "factor_table_regularizer": 0.1}, 2),
    ],
)
def test_processes_have_the_gradients_of_one_with_all_rows(tmp_path, expid, settings, processes, monkeypatch):
    given = (expid, str(tmp_path), settings)
    ranks, stderr = call_on_ranks(gradients_and_scores, *given, folder=tmp_path, processes=processes)
    assert "reducer.cpp" not in stderr  # where DistributedDataParallel has its warnings
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.float)  # gradients_and_scores changes it
    expected = gradients_and_scores(*given, Shard(0, 1, 12))
    for found in ranks:
        assert len(found["points"]) == len(expected["points"]) == 3
        for point, reference in zip(found["points"], expected["points"], strict=True):
            assert point.keys() == reference.keys()
            size = max(float(g.norm()) for g in reference.values())
            for name, gradient in reference.items():
                torch.testing.assert_close(point[name], gradient, rtol=1e-9, atol=1e-12 * size, msg=name)
        for name, value in expected["state"].items():  # the statistics of batch norm among them
            torch.testing.assert_close(found["state"][name], value, rtol=1e-9, atol=1e-11, msg=name)
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-9, atol=0)
        assert torch.equal(found["labels"], expected["labels"])
        assert torch.equal(found["groups"], expected["groups"])


def own_statistics_model(folder):
    """Return a model in float64 whose batch norm has the statistics of a process's rows, and its dataset."""
    settings = {"sync_batch_norm": False, "batch_norm": True, "net_dropout": 0.0, "ema": 0.9, "optimizer": "sgd"}
    experiment = Experiment.load("DIN_MM_tiny", ROOT, model_root=folder, verbose=0, learning_rate=0.05, **settings)
    dataset = experiment.load_dataset({"train": True}, shard=Shard())
    torch.manual_seed(1)
    model = build_in_float64(experiment, dataset)
    model.average.begin()  # in float64
    model._steps_per_epoch = model._planned_steps = 10
    return model.train(), dataset


def steps_with_own_statistics(folder):
    """Return, of a few steps in float64, the gradients, and buffers before and after the mean over processes."""
    torch.Tensor.float = torch.Tensor.double
    model, dataset = own_statistics_model(folder)
    distribute(model)
    shard, rows = distributed.make_shard(2), dataset.splits["train"]
    points = []
    for part in PARTS[shard.rank]:
        (batch,) = InMemoryLoader(rows.slice(part.start, part.stop), len(part))
        model.backward(batch)
        points.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.optimizer.step()
        model.optimizer.zero_grad()
        model.average.update()
    own = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    own_ema = {name: model.average.of_dense[name].clone() for name in own}
    average_running_statistics(model)
    ema = {name: model.average.of_dense[name] for name in own}
    return {"points": points, "own": own, "own_ema": own_ema, "ema": ema, "state": model.state_dict()}


#: Rows of each step of both processes: as many, fewer, and one, which has no variance.
PARTS = [range(60), range(60, 120), range(120, 180)], [range(200, 260), range(260, 280), range(280, 281)]


@pytest.mark.slow
def test_batch_norm_of_own_rows(tmp_path, monkeypatch):
    ranks, _ = call_on_ranks(steps_with_own_statistics, str(tmp_path), folder=tmp_path, processes=2)
    first, second = (found["state"] for found in ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    for name in ranks[0]["own"]:
        for found, own in (("state", "own"), ("ema", "own_ema")):
            assert not torch.equal(ranks[0][own][name], ranks[1][own][name])
            mean = (ranks[0][own][name] + ranks[1][own][name]) / 2
            torch.testing.assert_close(ranks[1][found][name], mean, rtol=1e-12, atol=1e-14)
    # Computed again by one process: the mean over rows of the losses of two models of their own batch norm.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    models = [own_statistics_model(str(tmp_path)) for _ in PARTS]
    for model, _ in models:
        replace_batch_norm(model, sync=False)
    for step, parts in enumerate(zip(*PARTS, strict=True)):
        for (model, dataset), part in zip(models, parts, strict=True):
            (batch,) = InMemoryLoader(dataset.splits["train"].slice(part.start, part.stop), len(part))
            (model.batch_loss(batch) * len(part) / sum(map(len, parts))).backward()
        for pair in zip(*(model.parameters() for model, _ in models), strict=True):
            given = [p.grad for p in pair if p.grad is not None]
            for p in pair:
                p.grad = sum(given) if given else None
        expected = {name: p.grad for name, p in models[0][0].named_parameters() if p.grad is not None}
        size = max(float(gradient.norm()) for gradient in expected.values())
        for found in ranks:
            assert found["points"][step].keys() == expected.keys()
            for name, gradient in expected.items():
                torch.testing.assert_close(
                    found["points"][step][name], gradient, rtol=1e-9, atol=1e-12 * size, msg=name
                )
        for model, _ in models:
            model.optimizer.step()
            model.optimizer.zero_grad()
    for found, (model, _) in zip(ranks, models, strict=True):
        for name, value in found["own"].items():
            torch.testing.assert_close(value, dict(model.named_buffers())[name], rtol=1e-9, atol=1e-12)


def step_with_unknown_items(folder):
    """Return the items that the rows of this process have, and the state of a model after a step on them."""
    specs = [{"name": "item_id", "dropout": 0.5, "unknown": "trained"}]
    experiment = Experiment.load("DIN_tiny", ROOT, model_root=folder, verbose=0, feature_specs=specs)
    dataset = experiment.load_dataset({"train": True}, shard=Shard())
    model = experiment.build_model(dataset)
    distribute(model)
    start = 40 * distributed.rank()
    (batch,) = InMemoryLoader(dataset.splits["train"].slice(start, start + 40), 40)
    model.train()
    model.train_step(batch)
    synchronize_buffers(model)
    return {"ids": torch.cat([batch.target.long(), batch.history.values.long()]), **model.state_dict()}


@pytest.mark.slow
def test_an_item_is_known_that_any_process_has_seen(tmp_path):
    ranks, _ = call_on_ranks(step_with_unknown_items, str(tmp_path), folder=tmp_path, processes=2)
    ids = [set(found["ids"].tolist()) for found in ranks]
    assert ids[0] - ids[1]
    assert ids[1] - ids[0]
    for found in ranks:
        seen = set(found["unknown_item.seen"].nonzero().flatten().tolist())
        assert seen <= ids[0] | ids[1] | {0}  # half of the ids are dropped
        assert seen & (ids[0] - ids[1])
        assert seen & (ids[1] - ids[0])
        assert found["unknown_item.embedding"].any()
        assert torch.equal(found["unknown_item.embedding"], ranks[0]["unknown_item.embedding"])


FOREIGN = """
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import nn


class Foreign(BaseModel):
    def __init__(self, feature_map, gpu=-1, embedding_dim=4, learning_rate=1e-2, **kwargs):
        super().__init__(feature_map, gpu=gpu, net_regularizer=1e-3, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.unused = nn.Linear(3, 3)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=[8], batch_norm=True)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        logit = self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))
        return {"name": "no tensor", "y_pred": logit.sigmoid(), "parts": [logit]}
"""


@pytest.mark.slow
def test_a_model_of_another_library_trains_together(tmp_path):
    """With parameters that only the regularizer uses, and outputs that are no tensors."""
    (tmp_path / "model_zoo").mkdir()
    (tmp_path / "model_zoo" / "Foreign.py").write_text(FOREIGN)
    base = "Base: {model_root: ./checkpoints/, verbose: 0}\nX: {model: Foreign, dataset_id: tiny_mm, epochs: 1, "
    fields = "use_features: [likes_level, views_level, item_id], embedding_dim: 4"
    write_project(tmp_path, base + f"batch_size: 500, batch_view: flat, {fields}}}\n")
    done = start(ROOT / "run_expid.py", "--config", str(tmp_path), "--expid", "X", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Training: 16 batches per epoch" in done.stderr
    assert json.loads((tmp_path / "checkpoints" / "tiny_mm" / "X.json").read_text())["valid"]["AUC"] > 0.5


@pytest.mark.slow
def test_killed_and_resumed_with_as_many_processes_or_fewer(dying):
    folder, run = dying
    record = folder / "checkpoints" / "tiny_mm" / "DIN_MM_tiny.json"
    weights = record.with_suffix(".model")
    done = run()
    assert done.returncode == 0, done.stderr
    expected, metrics = read_tensors(weights), json.loads(record.read_text())["valid"]
    record.unlink()
    checkpoint = record.with_suffix(".snapshot")
    assert not checkpoint.exists()

    (folder / "die").write_text("kill 21")
    assert run().returncode != 0
    shutil.copytree(checkpoint, folder / "kept")
    resumed = run("--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at epoch 1, batch 16 of 32" in resumed.stderr
    found = read_tensors(weights)
    assert_equal_tensors(found, expected)
    assert json.loads(record.read_text())["valid"] == metrics

    record.unlink()
    shutil.copytree(folder / "kept", checkpoint)
    alone = run("--resume", processes=1)
    assert "Resumed at epoch 1, batch 16 of 32" in alone.stderr  # with the rows per step of the run that was killed
    assert "24 streams, 24 per process" in alone.stderr  # those of the run that was killed
    assert abs(json.loads(record.read_text())["valid"]["AUC"] - metrics["AUC"]) < 0.05

    # What one process measures with the weights of two is what the two measured.
    experiment = Experiment.load("DIN_MM_tiny", folder, model_zoo=folder / "model_zoo")
    dataset = experiment.load_dataset({"valid": True})
    model = experiment.build_model(dataset)
    model.load_state_dict(expected)
    valid = experiment.make_loader(dataset.splits["valid"], model)
    assert scoring.evaluate(model, valid, ["AUC", "gAUC", "logloss"]) == pytest.approx(metrics, abs=1e-7)


@pytest.mark.slow
def test_settings_with_a_state_of_their_own_resume_with_two_processes(dying):
    folder, run = dying
    path = folder / "model_config.yaml"
    settings = "ema: 0.9\n    sync_batch_norm: False\n    warmup_steps: 5\n    lr_schedule: linear\n    "
    settings += "embedding_weight_decay: 0.1\n    "
    settings += "feature_specs: [{name: txt_emb_pca8, dropout: 0.3}, {name: item_id, dropout: 0.3, table: touched}]"
    settings += (
        "\n    eval_steps: 8\n    accumulation_steps: 3\n    checkpoint_in_background: True\n    checkpoint_steps: 5"
    )
    path.write_text(path.read_text().replace("eval_steps: 8", settings))
    weights = folder / "checkpoints" / "tiny_mm" / "DIN_MM_tiny.model"
    done = run()
    assert done.returncode == 0, done.stderr
    expected = read_tensors(weights)
    weights.with_suffix(".json").unlink()
    (folder / "die").write_text("kill 21")
    assert run().returncode != 0
    assert run("--resume").returncode == 0
    found = read_tensors(weights)
    assert_equal_tensors(found, expected)
    runs = sorted(weights.with_suffix("").glob("*/metrics.jsonl"))
    whole, resumed = ([json.loads(line) for line in path.read_text().splitlines()] for path in runs)
    assert [(line["step"], line["loss"]) for line in resumed] == [(line["step"], line["loss"]) for line in whole]


SLOW = """
import threading
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.training import distributed, tensor_files
from fuxictr_mm.training.resume import TrainingCheckpoint

write, end, reached = tensor_files._write, TrainingCheckpoint.end, threading.Event()


def write_after_the_last_step(*arguments):
    assert distributed.rank() or reached.wait(60)
    return write(*arguments)


def reach(self):
    reached.set()
    end(self)


tensor_files._write, TrainingCheckpoint.end = write_after_the_last_step, reach
with distributed.process_group(-1):
    Experiment.load("DIN_MM_tiny", {root!r}, **{settings!r}).fit()
"""


@pytest.mark.slow
def test_a_checkpoint_that_takes_longer_than_the_last_evaluation_is_waited_for(tmp_path):
    settings = {"model_root": str(tmp_path), "epochs": 1, "verbose": 0, "checkpoint_in_background": True}
    script = tmp_path / "slow.py"
    script.write_text(SLOW.format(root=str(ROOT), settings=settings))
    done = start(script)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny_mm" / "DIN_MM_tiny.json").exists()
    assert not (tmp_path / "tiny_mm" / "DIN_MM_tiny.snapshot").exists()


@pytest.mark.slow
def test_a_process_that_fails_ends_all_with_its_message(dying):
    folder, run = dying
    (folder / "die").write_text("raise 21")
    done = run()
    assert done.returncode != 0
    assert "process 1: error: planted trouble" in done.stderr
    assert not (folder / "checkpoints" / "tiny_mm" / "DIN_MM_tiny.json").exists()
