"""Several labels per row, from the loss to the predictions of a run."""

import json
import math
import runpy
import zipfile
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from fuxictr_mm.cli import main
from fuxictr_mm.config import ModelSettings
from fuxictr_mm.data.interactions import concatenate
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.evaluation.calibration import calibrate_run
from fuxictr_mm.evaluation.compare import compare
from fuxictr_mm.evaluation.ensemble import ensemble
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.metrics import evaluate_metrics
from fuxictr_mm.report.diagnosis_figures import plot_diagnosis
from fuxictr_mm.tasks import UncertaintyWeights, loss_of_tasks
from tests.errors import exits_naming, raises_naming
from tests.paths import ROOT
from tests.tensors import assert_equal_tensors, read_tensors
from tests.two_labels import ITEMS, write_world

NAN = math.nan


def test_the_loss_in_closed_form():
    logits = torch.tensor([[2.0, -1.0, 0.5], [-0.5, 3.0, 1.0], [0.0, 1.0, -2.0]], dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[1.0, NAN, NAN], [0.0, 1.0, NAN], [NAN, 0.0, NAN]], dtype=torch.float64)
    weights = [1.0, 0.25, 7.0]
    losses = [F.binary_cross_entropy_with_logits] * 3
    loss = loss_of_tasks(losses, logits.unbind(dim=1), labels.unbind(dim=1), weights)

    def softplus(x):
        return math.log1p(math.exp(x))

    # Mean over the two rows that have each label; the third label is in no row.
    expected = (softplus(-2.0) + softplus(-0.5)) / 2 + 0.25 * (softplus(-3.0) + softplus(1.0)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    by_hand = torch.zeros(3, 3, dtype=torch.float64)
    for (row, task), label in np.ndenumerate(labels.numpy()):
        if not math.isnan(label):
            by_hand[row, task] = weights[task] / 2 * (logits[row, task].sigmoid().item() - label)
    torch.testing.assert_close(gradient, by_hand, rtol=1e-12, atol=0)


def test_learned_weights_in_closed_form():
    weights = UncertaintyWeights([F.binary_cross_entropy, F.mse_loss]).double()
    losses = torch.tensor([0.3, 0.7], dtype=torch.float64)
    with torch.no_grad():
        weights.log_variances.copy_(torch.tensor([0.2, -0.4], dtype=torch.float64))
    found, more = weights()
    expected = math.exp(-0.2) * 0.3 + math.exp(0.4) * 0.7 / 2 + (0.2 - 0.4) / 2
    assert ((found * losses).sum() + more).item() == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():  # the loss is least where the variance is twice the cross-entropy, or the squared error
        weights.log_variances.copy_((torch.tensor([2, 1]) * losses).log())
    found, more = weights()
    (gradient,) = torch.autograd.grad((found * losses).sum() + more, weights.log_variances)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("expid", ["X", "Towers"])
def test_learned_weights(world, tmp_path, expid):
    experiment = load(world, tmp_path, expid, epochs=3, task_weights="uncertainty")
    run = experiment.fit()
    assert min(run.valid["click_AUC"], run.valid["like_AUC"]) > 0.85
    learned = read_tensors(experiment.paths.weights)["task_uncertainty.log_variances"]
    assert 0.01 < learned.abs().min() < learned.abs().max() < 2
    assert experiment.predict().shape == (200, 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": ["regression"] * 3}, ["task", "3", "click, like"]),
        ({"loss": ["bce"]}, ["loss", "1", "click, like"]),
        ({"task_weights": {"lik": 2}}, ["task_weights", "lik", "like"]),
        ({"task_weights": {"click": 0, "like": 0}}, ["task_weights", "0"]),
        ({"task_weights": {"like": -1}}, ["task_weights", "-1"]),
        ({"task_weights": "uncertain"}, ["task_weights", "uncertain"]),
    ],
)
def test_settings_of_other_labels_are_refused(settings, words):
    with raises_naming(ConfigError, *words):
        ModelSettings.of(settings, "X").check_labels(["click", "like"])


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "model_zoo").glob("*.py")))
def test_every_model_has_a_column_for_each_label(tiny_dataset, make_batch, name, tmp_path):
    loss_from = "probability" if name == "DIN" else "logits"
    experiment = Experiment.load(f"{name}_tiny", ROOT, model_root=str(tmp_path), loss_from=loss_from)
    dataset = tiny_dataset(experiment.config.to_dict())
    dataset.feature_map.labels = ["click", "like"]
    model = experiment.build_model(dataset)
    batch = make_batch(dataset.splits["train"], range(32))
    # Only clicked rows are liked, which ESMM asks for.
    like = torch.where(torch.arange(32) % 3 == 0, NAN, batch.label * (torch.arange(32) % 2))
    batch = replace(batch, label=torch.stack([batch.label, like], dim=1).float())
    model.train()
    returned = model(batch)
    assert returned["logit"].shape == returned["y_pred"].shape == (32, 2)
    assert not torch.equal(returned["logit"][:, 0], returned["logit"][:, 1])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert math.isfinite(model.train_step(batch))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


SINGLE = """
from fuxictr_mm.model import MultimodalModel


class Single(MultimodalModel):
    def __init__(self, feature_map, *, dnn_hidden_units: list = (), **params):
        super().__init__(feature_map, **params)
        self.build()

    def logits(self, batch):
        return self.embed(batch).target.sum(1)
"""


def test_a_model_with_one_column_is_refused(tmp_path):
    (write_world(tmp_path) / "zoo" / "Single.py").write_text(SINGLE)
    experiment = Experiment.load("X", tmp_path, model="Single", model_zoo=tmp_path / "zoo")
    with raises_naming(ConfigError, "Single.logits", "(200,)", "(200, 2)", "click, like"):
        experiment.fit()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


def load(world, folder, expid="X", **settings):
    return Experiment.load(expid, world, model_zoo=world / "zoo", model_root=str(folder / "ck"), **settings)


@pytest.mark.parametrize("expid", ["X", "Towers"])
def test_two_tasks_are_learned(world, tmp_path, expid):
    experiment = load(world, tmp_path, expid, epochs=3)
    run = experiment.fit()
    # The labels follow properties that have nothing to do with each other.
    assert run.valid["click_AUC"] > 0.85
    assert run.valid["like_AUC"] > 0.85
    assert list(run.valid) == ["click_AUC", "click_logloss", "like_AUC", "like_logloss", "AUC", "logloss"]
    rows = pl.read_parquet(world / "valid.parquet")
    for task in ("click", "like"):
        label, prediction, _ = run.predictions("valid", task)
        known = rows[task].drop_nulls().to_numpy()
        assert label.tolist() == known.tolist()
        again = evaluate_metrics(label, prediction, ["AUC", "logloss"])
        for name, value in again.items():
            assert run.valid[f"{task}_{name}"] == pytest.approx(value, abs=1e-6)
    for name in ("AUC", "logloss"):
        assert run.valid[name] == pytest.approx((run.valid[f"click_{name}"] + run.valid[f"like_{name}"]) / 2)
    predictions = experiment.predict()
    assert predictions.shape == (200, 2)
    assert predictions[:, 1].tolist() == pytest.approx(run.predictions("test", "like")[1].tolist(), abs=1e-6)
    unlabelled = pl.read_parquet(world / "test.parquet").drop("click", "like")
    np.testing.assert_allclose(run.predict(unlabelled) if expid == "X" else predictions, predictions, rtol=1e-6)


MIXED = {
    "task": ["binary_classification", "regression"], "metrics": ["AUC", "RMSE", "MAE"],
    "loss": ["binary_crossentropy", "mse_loss"],
}  # fmt: skip


def write_mixed_world(folder):
    """Write the world of two labels with the second one a number, whose mean follows a property of the items."""
    write_world(folder)
    of_item = np.random.default_rng(99).normal(size=(2, ITEMS + 1))[1]
    for split in ("train", "valid", "test"):
        rows = pl.read_parquet(folder / f"{split}.parquet")
        noise = np.random.default_rng(len(rows)).normal(size=len(rows))
        watch = pl.Series(of_item[rows["item_id"].to_numpy()] + 0.5 * noise)
        is_known = pl.col("like").is_not_null()
        rows = rows.with_columns(like=pl.when(is_known).then(watch)).rename({"like": "watch"})
        rows.write_parquet(folder / f"{split}.parquet", row_group_size=500)
    path = folder / "dataset_config.yaml"
    path.write_text(path.read_text().replace('"like"', '"watch"'))
    return folder


@pytest.mark.parametrize(
    ("expid", "weights"),
    [
        ("X", {"watch": 0.5}),
        ("Towers", "uncertainty"),
        pytest.param("X", "uncertainty", marks=pytest.mark.slow),
        pytest.param("Towers", {"watch": 0.5}, marks=pytest.mark.slow),
    ],
)
def test_a_classification_and_a_regression_are_learned(tmp_path, expid, weights):
    experiment = load(write_mixed_world(tmp_path), tmp_path, expid, epochs=5, task_weights=weights, **MIXED)
    run = experiment.fit()
    assert list(run.valid) == ["click_AUC", "watch_RMSE", "watch_MAE", "AUC", "RMSE", "MAE"]
    assert run.valid["AUC"] == run.valid["click_AUC"] > 0.85
    assert 0.45 < run.valid["watch_RMSE"] < 0.7  # of which 0.5 is noise; the standard deviation is 1.1
    label, prediction, _ = run.predictions("valid", "watch")
    known = pl.read_parquet(tmp_path / "valid.parquet")["watch"].drop_nulls().to_numpy()
    np.testing.assert_allclose(label, known, rtol=1e-6)
    assert run.valid["watch_RMSE"] == pytest.approx(np.sqrt(np.mean((known - prediction) ** 2)), rel=1e-5)
    predictions = experiment.predict()
    assert 0 <= predictions[:, 0].min() < predictions[:, 0].max() <= 1
    assert predictions[:, 1].min() < 0
    other = load(tmp_path, tmp_path, expid, seed=5, **MIXED).fit()
    found = compare([run.path, other.path], tmp_path / "ck", task="watch", samples=100)
    assert (found.metric, found.positives, found.rows) == ("RMSE", None, len(known))
    means = [side.mean for side in found.sides]
    assert means == pytest.approx([run.valid["watch_RMSE"], other.valid["watch_RMSE"]], rel=1e-5)
    assert compare([run.path, other.path], tmp_path / "ck", task="click", samples=100).metric == "AUC"


def test_a_regression_alone(tmp_path, capsys):
    write_mixed_world(tmp_path)
    path = tmp_path / "dataset_config.yaml"
    entry = json.loads(path.read_text())
    entry["d"]["label_col"] = entry["d"]["label_col"][1]
    path.write_text(json.dumps(entry))
    for split in ("train", "valid", "test"):
        file = tmp_path / f"{split}.parquet"
        pl.read_parquet(file).drop_nulls("watch").write_parquet(file, row_group_size=500)
    settings = {"task": "regression", "loss": "mse_loss", "metrics": ["RMSE"], "monitor": "RMSE", "monitor_mode": "min"}
    runs = [load(tmp_path, tmp_path, seed=seed, epochs=4, **settings).fit() for seed in (1, 2)]
    label, prediction, _ = runs[0].predictions()
    np.testing.assert_allclose(label, pl.read_parquet(tmp_path / "valid.parquet")["watch"], rtol=1e-6)
    both = ensemble([run.path for run in runs], tmp_path / "ck", name="both")
    expected = np.mean([prediction, runs[1].predictions()[1]], axis=0)
    np.testing.assert_allclose(both.predictions()[1], expected, rtol=1e-5, atol=1e-6)
    assert 0.45 < both.valid["RMSE"] < min(run.valid["RMSE"] for run in runs) < 0.8
    assert both.test.keys() == {"RMSE"}
    for options in ({"average": "rank"}, {"fit_weights": True}):
        with raises_naming(ConfigError, "regression", "mean"):
            ensemble([run.path for run in runs], tmp_path / "ck", name="other", **options)
    with raises_naming(DataError, "regression"):
        calibrate_run(runs[0])
    path = tmp_path / "model_config.yaml"
    experiments = json.loads(path.read_text())
    path.write_text(json.dumps({"X": {**experiments["X"], **settings}}))
    with exits_naming(capsys, "regression", "parquet"):  # a submission holds probabilities
        main(["predict", "--expid", "X", "--config", str(tmp_path), "--out", str(tmp_path / "out")])
    of_run = ["--config", str(tmp_path), "--run", str(runs[0].path), "--out", str(tmp_path / "d.json")]
    main(["diagnose", "--expid", "X", *of_run, "--repeats", "1"])
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["metric"] == "RMSE"
    assert found["metrics"]["rmse"] == pytest.approx(runs[0].valid["RMSE"], rel=1e-4)
    assert found["metrics"]["low"] < found["metrics"]["rmse"] < found["metrics"]["deviation"]
    of_items = next(entry for entry in found["importance"]["fields"] if entry["name"] == "item_id")
    assert of_items["auc_lost"] > 0.3 > 3 * of_items["noise"]  # the label follows the item
    assert sum(entry["rows"] for entry in found["history_length"]) == len(label)
    assert "rmse" in found["history_length"][0]
    assert "calibration" in found["absent"]
    assert plot_diagnosis(found)[1] == []


def test_losses_of_both_kinds_in_closed_form(tmp_path):
    experiment = load(write_mixed_world(tmp_path), tmp_path, label_smoothing=0.2, **MIXED)
    model = experiment.build_model(experiment.load_dataset({"train": True}))
    logit = torch.tensor([[2.0, -1.0], [-0.5, 3.0]])
    label = torch.tensor([[1.0, 4.0], [0.0, NAN]])
    returned = {"logit": logit, "y_pred": model.output_activation(logit)}
    assert returned["y_pred"].tolist() == [
        [pytest.approx(1 / (1 + math.exp(-2))), -1],
        [pytest.approx(1 / (1 + math.exp(0.5))), 3],
    ]
    smooth = [[-0.9 * math.log(p) - 0.1 * math.log(1 - p)] for p in (1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.5)))]
    assert model.train().add_loss(returned, label).item() == pytest.approx(np.mean(smooth) + 25, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "binary_crossentropy"}, ["loss", "[binary_crossentropy, mse_loss]"]),
        ({"metrics": ["click_RMSE"]}, ["click_RMSE"]),
        ({"monitor": "RMSE"}, ["monitor_mode", "RMSE", "min"]),
        ({"model": "ESMM"}, ["ESMM", "regression"]),
    ],
)
def test_settings_of_both_kinds_that_do_not_fit(tmp_path, settings, words):
    with raises_naming(ConfigError, *words):
        load(write_mixed_world(tmp_path), tmp_path, **{**MIXED, **settings}).fit()


def test_one_of_several_must_be_named(world, tmp_path):
    run = load(world, tmp_path, epochs=1).fit()
    with raises_naming(ConfigError, "click, like"):
        run.predictions()
    with raises_naming(ConfigError, "lik", "click, like"):
        run.predictions("valid", "lik")


def test_submission_and_comparison_of_a_label(tmp_path, monkeypatch, capsys):
    write_world(tmp_path, rows=1200)
    runs = [Experiment.load("X", tmp_path, seed=seed, epochs=seed).fit() for seed in (1, 2)]

    def run(script, *arguments):
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        runpy.run_path(str(ROOT / script), run_name="__main__")

    arguments = ("--expid", "X", "--config", tmp_path, "--out", tmp_path)
    written = {}
    for options, label in (((), "click"), (("--label", "like"), "like")):
        run("prediction.py", *arguments, *options)
        assert f"label {label} of click, like" in capsys.readouterr().out
        with zipfile.ZipFile(tmp_path / "X.zip") as archive:
            written[label] = np.loadtxt(archive.open("prediction.csv"), delimiter=",", skiprows=1)[:, 1]
    for label, scores in written.items():
        np.testing.assert_allclose(scores, runs[1].predictions("test", label)[1], rtol=1e-5)
    for options, words in ((("--label", "likes"), "likes"), (("--calibrate", "platt"), "click, like")):
        with exits_naming(capsys, words):
            run("prediction.py", *arguments, *options)
    for split in ("valid", "test"):
        file = tmp_path / f"{split}.csv"
        pl.DataFrame({"prediction": runs[0].all_rows(split, "like")[1]}).write_csv(file)
        names = [*(run.path for run in runs), file]
        found = compare(names, tmp_path / "checkpoints", split=split, task="like", samples=200)
        assert found.rows == pl.read_parquet(tmp_path / f"{split}.parquet")["like"].count()
        expected = {run.run: run.metrics[split]["like_AUC"] for run in runs}
        assert {side.name: side.mean for side in found.sides} == pytest.approx(
            {**expected, file.name: expected[runs[0].run]}, abs=1e-6
        )
    with raises_naming(ConfigError, "click, like"):
        ensemble([run.path for run in runs], tmp_path / "checkpoints", name="both")


def test_a_label_can_be_monitored(world, tmp_path):
    history = {name: load(world, tmp_path / name, monitor=name).fit().history() for name in ("like_AUC", "AUC")}
    assert [set(entry) for entry in history["like_AUC"]] == [set(entry) for entry in history["AUC"]]
    with raises_naming(ConfigError, "likes_AUC"):
        load(world, tmp_path, monitor="likes_AUC")


def test_weights_decide_what_is_learned(world, tmp_path):
    zero = load(world, tmp_path, task_weights={"like": 0}, epochs=3).fit()
    assert zero.valid["click_AUC"] > 0.85
    assert abs(zero.valid["like_AUC"] - 0.5) < 0.2


def weights_of(experiment):
    experiment.fit()
    return read_tensors(experiment.paths.weights)


def test_streamed_is_as_in_memory(world, tmp_path):
    memory, streamed = (load(world, tmp_path / str(r), resident=r, shuffle=False) for r in (True, False))
    tables = [e.load_dataset({"train": True}).splits["train"] for e in (memory, streamed)]
    streamed_table = concatenate(tables[1].chunks())
    assert tables[0].label.shape == (4000, 2)
    assert 1000 < tables[0].label.isnan().sum() < 1400
    torch.testing.assert_close(streamed_table.label, tables[0].label, rtol=0, atol=0, equal_nan=True)
    found = [weights_of(e) for e in (memory, streamed)]
    assert_equal_tensors(found[1], found[0])


@pytest.mark.parametrize(("value", "words"), [(1.0, ["like is 1"]), (None, ["like is"]), (2.0, ["like", "2, "])])
def test_a_label_that_says_nothing_is_refused(tmp_path, value, words):
    path = write_world(tmp_path) / "train.parquet"
    pl.read_parquet(path).with_columns(like=pl.lit(value, pl.Float64)).write_parquet(path)
    with raises_naming(DataError, "train.parquet", *words):
        load(tmp_path, tmp_path).fit()


def test_a_placeholder_among_the_test_labels_is_left_out(tmp_path):
    write_world(tmp_path)
    rows = pl.read_parquet(tmp_path / "test.parquet")
    rows.with_columns(click=pl.lit(0.0)).write_parquet(tmp_path / "test.parquet")
    run = load(tmp_path, tmp_path).fit()
    assert list(run.test) == ["like_AUC", "like_logloss", "AUC", "logloss"]
    assert run.test["AUC"] == run.test["like_AUC"]
    rows.drop("like").write_parquet(tmp_path / "test.parquet")
    assert list(load(tmp_path, tmp_path).fit().test) == ["click_AUC", "click_logloss", "AUC", "logloss"]


def test_test_rows_of_placeholders_only_have_no_metrics(tmp_path):
    write_mixed_world(tmp_path)
    rows = pl.read_parquet(tmp_path / "test.parquet")
    for watch in (None, 0.0):
        placeholders = rows.with_columns(click=pl.lit(0.0), watch=pl.lit(watch, pl.Float64))
        placeholders.write_parquet(tmp_path / "test.parquet")
        run = load(tmp_path, tmp_path / str(watch), epochs=1, **MIXED).fit()
        assert run.test == {}
        assert run.valid["watch_RMSE"] > 0
