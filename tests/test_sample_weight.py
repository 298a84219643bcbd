"""Weights of rows, from files to a run: a weight of 2 is the row twice, one of 0 is no row."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.data.interactions import InteractionTable
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.tasks import loss_of_tasks
from tests.errors import raises_naming
from tests.fuxictr_models import MODEL
from tests.paths import ROOT
from tests.projects import write_project
from tests.tensors import read_tensors
from tests.torchrun import start
from tests.two_labels import write_world

LABEL = {"name": "click", "dtype": "float"}


def test_the_loss_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.tensor([[1.0, math.nan], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    losses, tasks = [F.binary_cross_entropy_with_logits] * 2, [1.0, 0.5]

    def loss_and_gradient(rows, weights=None):
        loss = loss_of_tasks(losses, logits[rows].unbind(1), labels[rows].unbind(1), tasks, weights)
        return loss, *torch.autograd.grad(loss, logits)

    expected = loss_and_gradient([0, 1, 1, 1])
    found = loss_and_gradient([0, 1, 2], torch.tensor([1.0, 3.0, 0.0]))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    nothing = loss_and_gradient([0, 1, 2], torch.zeros(3))
    assert all(not value.any() for value in nothing)


@pytest.mark.parametrize("expid", ["DIN_tiny", "DIN_MM_tiny"])
def test_a_weight_of_two_is_the_row_twice(build, make_batch, float64, expid):
    model, dataset = build(expid)
    model = model.double().eval()  # batch norm and dropout depend on the rows
    rows = dataset.splits["train"]

    def loss_and_gradients(chosen, weights=None):
        model.zero_grad()
        batch = replace(make_batch(rows, chosen), weight=None if weights is None else torch.tensor(weights))
        return model.backward(batch), {n: p.grad.to_dense() for n, p in model.named_parameters() if p.grad is not None}

    expected = loss_and_gradients([3, 5, 5, 8])
    found = loss_and_gradients([3, 5, 8, 9], [1.0, 2.0, 1.0, 0.0])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)
    plain = make_batch(rows, [3, 5])
    expected = F.binary_cross_entropy_with_logits(model(plain)["logit"], plain.label[:, None])
    assert torch.equal(model.batch_loss(plain), expected)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Return the folders of rows with weights, of the rows repeated as often, and of the rows without weights."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("weighted", "repeated", "plain")}
    sizes = {"rows": 300, "batch_size": 4000, "epochs": 3, "optimizer": "sgd", "learning_rate": 0.5}
    for name, folder in folders.items():
        write_world(folder, attention_hidden_activations="ReLU", **sizes)
        train = folder / "train.parquet"
        rows = pl.read_parquet(train).with_columns(w=np.arange(300) % 4)
        if name == "repeated":
            rows = rows[np.repeat(np.arange(300), rows["w"].to_numpy())]
        rows.write_parquet(train)
        (folder / "zoo" / "Plain.py").write_text(MODEL)
        experiments = json.loads((folder / "model_config.yaml").read_text())
        one = {key: value for key, value in experiments["X"].items() if "hidden" not in key} | {"optimizer": "SGD"}
        (folder / "model_config.yaml").write_text(json.dumps({**experiments, "Plain": {**one, "model": "Plain"}}))
    return folders


def load(worlds, world, expid, folder, **settings):
    settings |= {} if expid == "X" else {"optimizer": "SGD"}
    settings |= {"label_col": LABEL} if expid == "Plain" else {}
    options = {"model_zoo": worlds[world] / "zoo", "model_root": str(folder / world), **settings}
    return Experiment.load(expid, worlds[world], **options)


@pytest.mark.parametrize(
    ("expid", "settings"),
    [("X", {}), ("X", {"label_col": LABEL}), ("X", {"resident": False}), ("Towers", {}), ("Plain", {}),
     ("Plain", {"batch_view": "flat", "resident": False})],
)  # fmt: skip
def test_a_run_with_weights_is_one_of_repeated_rows(worlds, tmp_path, expid, settings):
    found = load(worlds, "weighted", expid, tmp_path, sample_weight="w", **settings)
    others = [load(worlds, world, expid, tmp_path, **settings) for world in ("repeated", "plain")]
    weighted, repeated, plain = (experiment.fit() for experiment in (found, *others))
    weights, expected, other = (read_tensors(run.weights) for run in (weighted, repeated, plain))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert any((weights[name] - value).abs().max() > 1e-3 for name, value in other.items())
    assert weighted.valid == pytest.approx(repeated.valid, abs=1e-4)
    assert len(found.predict()) == 200  # of rows without weights


@pytest.mark.slow
def test_two_processes_train_a_model_of_another_library_as_one(worlds, tmp_path):
    shutil.copytree(worlds["weighted"], tmp_path / "w")
    datasets = json.loads((tmp_path / "w" / "dataset_config.yaml").read_text())
    own = {"sample_weight": "w", "label_col": LABEL, "data_root": str(tmp_path / "w")}
    weights = []
    for processes in (2, 1):
        datasets["d"] |= own
        write_project(tmp_path / "w", (tmp_path / "w" / "model_config.yaml").read_text(), datasets)
        options = ["--config", str(tmp_path / "w"), "--model_zoo", str(tmp_path / "w" / "zoo"), "--expid", "Plain"]
        done = start(ROOT / "run_expid.py", *options, processes=processes, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        weights.append(read_tensors(next((worlds["weighted"] / "checkpoints" / "d").glob("Plain.model"))))
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, None, 1.0], ["row 1", "null"]),
        ([1.0, 2.0, -0.5], ["row 2", "-0.5"]),
        ([math.inf, 2.0, 1.0], ["row 0", "inf"]),
        ([1.0, math.nan, 1.0], ["row 1", "nan"]),
        (["a", "b", "c"], ["row 0", "'a'"]),
        ([0.0, 0.0, 0.0], ["v", "0 in all 600"]),
        (None, ["v"]),
    ],
)
def test_weights_that_are_none(tmp_path, values, words):
    world = write_world(tmp_path, rows=600)
    rows = pl.read_parquet(tmp_path / "train.parquet")
    if values is not None:
        rows = rows.with_columns(pl.Series("v", [values[i] if i < 3 else values[0] for i in range(600)]))
    rows.write_parquet(tmp_path / "train.parquet")
    experiment = Experiment.load("X", world, sample_weight="v")
    with raises_naming(DataError, tmp_path / "train.parquet", *words):
        experiment.load_dataset({"train": True})


def test_columns_that_cannot_be_weights(tmp_path):
    world = write_world(tmp_path, rows=100)
    for column in ("click", "level"):
        with raises_naming(ConfigError, "sample_weight", f"'{column}'"):
            Experiment.load("X", world, sample_weight=column)


def test_weights_of_raw_columns_are_those_of_the_file(tmp_path):
    """In memory, streamed, and of both training and validation rows where folds are trained."""
    world = write_world(tmp_path, form="csv", rows=400)
    weights = np.random.default_rng(0).random(400).round(3)
    path = tmp_path / "train.csv"
    pl.read_csv(path).with_columns(w=weights).write_csv(path)
    experiment = Experiment.load("Towers", world, model_zoo=world / "zoo", sample_weight="w")
    dataset = experiment.load_dataset({"train": True, "valid": True})
    table = dataset.splits["train"]
    assert isinstance(table, InteractionTable)
    assert table.weight.tolist() == pytest.approx(weights)
    assert dataset.splits["valid"].weight is None
    model = experiment.build_model(dataset)
    batch = next(iter(experiment.make_loader(table, model, training=True)))
    assert batch["w"].tolist() == pytest.approx(weights[:200])
    (run,) = [experiment.with_settings(epochs=1, resident=False, record=False).fit()]
    assert run.valid["click_AUC"] > 0.5


OWN = {
    "add_loss": "def add_loss(self, outputs, y):\n        return (outputs['y_pred'] - y).square().mean()",
    "train_step": "def train_step(self, batch_data):\n        return super().train_step(batch_data)",
}


@pytest.mark.parametrize("method", OWN)
def test_a_model_with_a_loss_of_its_own_is_refused(tmp_path, method):
    world = write_world(tmp_path, rows=100)
    (world / "zoo" / "Plain.py").write_text(f"{MODEL}\n    {OWN[method]}\n")
    settings = {"model": "Plain", "label_col": LABEL, "model_zoo": world / "zoo"}
    experiment = Experiment.load("X", world, sample_weight="user_id", **settings)
    with raises_naming(ConfigError, "sample_weight", "user_id", f"Plain.{method}"):
        experiment.fit()


def test_a_model_of_this_library_with_a_loss_of_its_own_is_refused(build, make_batch, monkeypatch):
    model, dataset = build("DIN_tiny")
    monkeypatch.setattr(type(model), "add_loss", lambda self, outputs, y: (outputs["y_pred"] - y).square().mean())
    batch = make_batch(dataset.splits["train"], [0, 1])
    model.batch_loss(batch)
    with raises_naming(ConfigError, "sample_weight", "add_loss"):
        model.batch_loss(replace(batch, weight=torch.ones(2)))
