"""Influence of training examples: equal to its definition, in their order, and able to find flipped labels."""

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.nn import functional as F

from fuxictr_mm import Experiment, cli
from fuxictr_mm.data.loaders import InMemoryLoader, gather
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.evaluation.influence import Checkpoint, find_last_layer, influence_on_validation, inputs_and_logits
from fuxictr_mm.evaluation.influence_ranking import make_ranking, summarize
from fuxictr_mm.evaluation.influence_training import number_of_worst, rank_by_influence, train_keeping_checkpoints
from tests import several_histories
from tests.arrow import write_partitions
from tests.errors import exits_naming, raises_naming
from tests.paths import ROOT, TINY
from tests.tensors import read_tensors

#: Settings of a logit that is half the output of the last layer and half a product of factors.
FACTORS = {"factor_dim": 4, "factor_features": ["likes_level", "item_id"]}

LAST = {"DIN_tiny": "dnn", "DIN_MM_tiny": "dnn", "QIN_tiny": "qnn.fc", "Transformer_DCN_tiny": "mlp"}


def doubled(build, expid, **settings):
    """Return a model in float64 with loaders of 40 training and 30 validation rows."""
    model, dataset = build(expid, learning_rate=0.01, **settings)
    model.double()
    for name in model.items.names:
        if model.items[name].is_floating_point():
            setattr(model.items, name, model.items[name].double())
    loaders = [
        InMemoryLoader(dataset.splits[split].slice(0, rows), 16) for split, rows in (("train", 40), ("valid", 30))
    ]
    return model, *loaders


def save_checkpoints(model, folder):
    """Save two states that differ in every parameter."""
    checkpoints = []
    for number, rate in enumerate((0.1, 0.03)):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        model.save_weights(folder / f"{number}.model")
        checkpoints.append(Checkpoint(folder / f"{number}.model", rate))
    return checkpoints


def row_gradients(model, layer, loader, shift=0.0):
    """Return each row's gradient by the layer's parameters, by autograd on batches of one row."""
    parameters = list(layer.parameters())
    gradients = []
    for row in range(len(loader.table)):
        batch = gather(loader.table, torch.tensor([row]))
        loss = F.binary_cross_entropy_with_logits(
            model.forward(batch)["logit"] + shift, batch.label.double().view(1, 1)
        )
        found = torch.autograd.grad(loss, parameters)
        gradients.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(gradients)


@pytest.mark.parametrize(
    ("expid", "recalibrate", "settings"),
    [*((expid, False, {}) for expid in LAST), ("DIN_MM_tiny", True, {}), ("DIN_MM_tiny", True, FACTORS)],
)
def test_equals_the_definition(build, float64, tmp_path, expid, recalibrate, settings):
    """Transformer_DCN computes its rows in another order than the batch's; all have a bias."""
    model, train, valid = doubled(build, expid, **settings)
    checkpoints = save_checkpoints(model, tmp_path)
    found = influence_on_validation(model, checkpoints, train, valid, recalibrate=recalibrate, verbose=0)
    expected = torch.zeros(40, dtype=torch.float64)
    name = find_last_layer(model, next(iter(valid)))
    assert name.startswith(LAST[expid])
    for checkpoint in checkpoints:
        model.load_weights(checkpoint.path)
        layer = model.get_submodule(name)
        shift = 0.0
        if recalibrate:
            batch = gather(valid.table, torch.arange(30))
            logits, label = model.forward(batch)["logit"].detach().view(-1), batch.label.double()
            shift = brentq(lambda a, z=logits, y=label: float((torch.sigmoid(z + a) - y).sum()), -99, 99, xtol=1e-14)
        mean = row_gradients(model, layer, valid, shift).mean(0)
        expected += checkpoint.learning_rate * (row_gradients(model, layer, train) @ mean)
    assert float(expected.abs().max()) > 1e-5
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


def test_a_step_on_a_row_takes_its_influence_off_the_validation_loss(build, float64, tmp_path):
    """One small step of gradient descent by the last layer, on the most harmful and the most useful row."""
    model, train, valid = doubled(build, "DIN_MM_tiny")
    rate = 1e-4
    checkpoint = Checkpoint(save_checkpoints(model, tmp_path)[0].path, rate)
    found = influence_on_validation(model, [checkpoint], train, valid, recalibrate=False, verbose=0)
    batch = gather(valid.table, torch.arange(30))
    layer = model.get_submodule(find_last_layer(model, batch))
    gradients = row_gradients(model, layer, train)

    def loss():
        logits = model.forward(batch)["logit"].detach().view(-1)
        return float(F.binary_cross_entropy_with_logits(logits, batch.label.double()))

    before = loss()
    for row in (int(found.argmin()), int(found.argmax())):
        model.load_weights(checkpoint.path)
        with torch.no_grad():
            layer.weight -= rate * gradients[row, :-1]
            layer.bias -= rate * gradients[row, -1]
        assert before - loss() == pytest.approx(found[row], rel=1e-2)


def test_recalibrated_influence_does_not_see_a_wrong_base_rate(build, tmp_path):
    """With all logits raised, every click looks harmful to the plain loss; who is harmful otherwise does not change."""
    model, dataset = build("DIN_MM_tiny")
    train, valid = (InMemoryLoader(dataset.splits[split].slice(0, 600), 300) for split in ("train", "valid"))
    layer = model.get_submodule(find_last_layer(model.eval(), next(iter(valid))))
    model.save_weights(tmp_path / "fair.model")
    with torch.no_grad():
        layer.bias += 3
    model.save_weights(tmp_path / "raised.model")
    fair, raised = (Checkpoint(tmp_path / f"{name}.model", 1.0) for name in ("fair", "raised"))
    label = dataset.splits["train"].label[:600].numpy() == 1
    plain = influence_on_validation(model, [raised], train, valid, recalibrate=False, verbose=0)
    assert (plain[label] < 0).all()
    assert (plain[~label] > 0).all()
    before, after = (influence_on_validation(model, [c], train, valid, verbose=0) for c in (fair, raised))
    clear = np.abs(before) > 1e-3 * np.abs(before).max()
    assert (np.sign(before) == np.sign(after))[clear].all()
    assert (before[label] < 0).any()
    assert (before[label] > 0).any()


class Wide(nn.Module):
    """A FuxiCTR model: probabilities only, and a batch that is a dictionary."""

    model_id = "Wide"

    def __init__(self, ending):
        super().__init__()
        self.wide = nn.Linear(3, 1)
        self.last = nn.Linear(3, 1, bias=False)
        self.output_activation = nn.Sigmoid()
        self.ending = ending
        self.loss_fn = F.binary_cross_entropy

    def forward(self, batch):
        last = self.last(batch["x"])
        if self.ending == "sum":
            last += self.wide(batch["x"])
        return {"y_pred": self.output_activation(last)}


def test_fuxictr_models():
    batch = {"x": torch.randn(5, 3)}
    model = Wide("linear")
    assert find_last_layer(model, batch) == "last"
    inputs, logits = inputs_and_logits(model, model.last, batch)
    assert torch.equal(inputs, batch["x"])
    assert torch.equal(logits, model.last(batch["x"]).flatten())
    with raises_naming(ConfigError, "wide, last"):
        find_last_layer(Wide("sum"), batch)
    with raises_naming(ConfigError, "'last'"):
        find_last_layer(model, batch, "lst")
    with raises_naming(ConfigError, "--layer wide"):
        find_last_layer(model, batch, "wide")
    model.loss_fn = F.l1_loss
    with raises_naming(ConfigError, "l1_loss"):
        influence_on_validation(model, [], [batch], [batch])


def test_squared_error():
    """A linear regression, whose gradients are 2 (prediction - label) x; the last layer is the whole model."""

    class Regression(nn.Module):
        model_id = "Regression"
        output_activation = nn.Identity()

        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 1)

        def forward(self, batch):
            return {"y_pred": self.last(batch["x"])}

        def get_labels(self, batch):
            return batch["y"]

        def load_weights(self, path):
            pass

    model = Regression()
    train, valid = ([{"x": torch.randn(n, 3), "y": torch.randn(n)}] for n in (6, 4))
    found = influence_on_validation(model, [Checkpoint(Path(), 0.5)], train, valid, recalibrate=False, verbose=0)
    for parameter in model.parameters():
        assert parameter.requires_grad
    gradients = []
    for batch in (*train, *valid):
        for x, y in zip(batch["x"], batch["y"], strict=True):
            grads = torch.autograd.grad((model.last(x) - y).square().sum(), list(model.parameters()))
            gradients.append(torch.cat([g.flatten() for g in grads]))
    of_rows = torch.stack(gradients)
    expected = 0.5 * of_rows[:6] @ of_rows[6:].mean(0)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_labels_that_are_texts_are_ranked_as_numbers(tmp_path, kind):
    labels = pa.array(["1", "0", " 1", "True"]).cast(kind)
    pq.write_table(pa.table({"item_id": [1, 2, 3, 4], "label": labels}), tmp_path / "train.parquet")
    ranking = make_ranking(tmp_path / "train.parquet", "label", np.zeros(4, dtype=np.float32))
    assert ranking["label"].to_pylist() == [1, 0, 1, 1]
    assert [group["name"] for group in summarize(ranking)[1:3]] == ["label 0", "label 1"]


def test_ranks_and_summary(tmp_path):
    table = pa.table({"item_id": [7, 7, 8, 7], "click": [0, 1, 1, 1]})
    pq.write_table(table, tmp_path / "train.parquet")
    ranking = make_ranking(tmp_path / "train.parquet", "click", np.array([0.5, -1.0, 0.0, -1.0], dtype=np.float32))
    assert ranking.column_names == ["row", "item_id", "label", "influence", "rank"]
    assert ranking["rank"].to_pylist() == [4, 1, 3, 2]  # of equals the first
    groups = {group["name"]: group for group in summarize(ranking)}
    assert groups["all rows"]["negative"] == 0.5
    assert groups["label 1"]["mean"] == pytest.approx(-2 / 3)
    assert groups["label 1"]["among_worst"] == pytest.approx(1 / 3)
    assert groups["label 0"]["among_worst"] == 0
    assert [(g["name"], g["rows"]) for g in groups.values()][3:] == [("item in 1 to 3 rows", 4)]


def run(*options):
    cli.main(["influence", "--config", str(ROOT), "--model_zoo", str(ROOT / "model_zoo"), "--quiet", *options])


@pytest.fixture
def noisy(tmp_path):
    """A copy of tiny_mm with a tenth of the first 6,000 training labels flipped; returns it and which."""
    folder = tmp_path / "data" / "tiny_mm"
    folder.mkdir(parents=True)
    for file in (TINY).glob("*.parquet"):
        (folder / file.name).symlink_to(file)
    table = pq.read_table(folder / "train.parquet").slice(0, 6000)
    flipped = np.random.default_rng(0).random(6000) < 0.1
    label = table["label"].to_numpy()
    (folder / "train.parquet").unlink()
    noisy = pa.array(np.where(flipped, 1 - label, label))
    pq.write_table(table.set_column(table.column_names.index("label"), "label", noisy), folder / "train.parquet")
    return tmp_path / "data", flipped


@pytest.mark.slow
def test_flipped_labels_are_found_and_dropped(noisy, tmp_path, capsys, monkeypatch):
    """Flipped labels are 10 % of all examples, and a quarter of the worst 5 %; only the ranking is written."""
    from sklearn.metrics import roc_auc_score

    data, flipped = noisy
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    files = ["--data_root", str(data), "--test_data", str(data / "tiny_mm" / "test_labelled.parquet")]
    run("--expid", "DIN_MM_tiny", *files, "--out", "ranking.parquet", "--json", "--drop-worst", "5")
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [tmp_path / "ranking.parquet"]
    ranking = pq.read_table(tmp_path / "ranking.parquet")
    assert ranking.column_names == ["row", "user_id", "item_id", "label", "influence", "rank"]
    train = pq.read_table(data / "tiny_mm" / "train.parquet")
    for name in ("user_id", "item_id", "label"):
        assert ranking[name].to_pylist() == train[name].to_pylist()
    assert sorted(ranking["rank"].to_pylist()) == list(range(1, 6001))
    influence = ranking["influence"].to_numpy()
    assert roc_auc_score(flipped, -influence) > 0.65
    assert flipped[ranking["rank"].to_numpy() <= 300].mean() > 0.25
    answer = json.loads(capsys.readouterr().out)
    assert answer["dropped"] == 300
    assert set(answer["metrics"]["before"]) == set(answer["metrics"]["after"]) == {"valid", "test"}
    assert answer["metrics"]["before"] != answer["metrics"]["after"]
    assert answer["worst"][0]["influence"] == influence.min()
    assert answer["best"][0]["influence"] == influence.max()


def load(**settings):
    return Experiment.load("DIN_MM_tiny", ROOT, model_zoo=ROOT / "model_zoo", verbose=0, **settings)


@pytest.mark.slow
def test_training_is_that_of_run_expid(tmp_path):
    """The metrics before are those of the experiment; its own weights are the last checkpoint."""
    experiment = load(model_root=str(tmp_path), epochs=2, test_data=None)
    run = experiment.fit()
    dataset = experiment.load_dataset({"train": True, "valid": True})
    checkpoints, metrics = train_keeping_checkpoints(experiment, dataset, tmp_path / "kept")
    assert metrics == {"valid": run.valid}
    assert [c.learning_rate for c in checkpoints] == [2e-3, 2e-3]
    best = read_tensors(run.weights)
    last = read_tensors(checkpoints[-1].path)
    assert all(torch.equal(best[name], last[name]) for name in best)
    again = experiment.with_settings(initial_weights=str(run.path), epochs=1, save_best_only=False)
    ((only,), _) = train_keeping_checkpoints(again, dataset, tmp_path / "again")
    first, trained = (read_tensors(path) for path in (tmp_path / "again" / "0.checkpoint", only.path))
    assert all(torch.equal(best[name], first[name]) for name in best)
    assert not all(torch.equal(best[name], trained[name]) for name in best)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--drop-worst", "100"], "--drop-worst is 100"),
        (["--drop-worst", "0.001"], "--drop-worst 0.001"),
        (["--checkpoints", "no.model"], "--checkpoints no.model"),
        (["--out", "."], ".: "),
        (["--layer", "dnn.mlp.9", "--checkpoints", str(ROOT / "README.md")], "README.md"),
    ],
)
def test_bad_input_is_one_line(options, found, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    with exits_naming(capsys, found):
        run("--expid", "DIN_MM_tiny", "--out", str(tmp_path / "x.parquet"), *options)
    assert not list(tmp_path.iterdir())


def test_streamed_examples_are_ranked_but_not_dropped(tmp_path, build):
    model, _ = build("DIN_MM_tiny")
    model.save_weights(tmp_path / "x.model")
    found = []
    for resident in (True, False):
        experiment = load(resident=resident)
        dataset = experiment.load_dataset({"train": True, "valid": True})
        found.append(rank_by_influence(experiment, dataset, [Checkpoint(tmp_path / "x.model", 1.0)]))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    with raises_naming(UserError, "resident: True"):
        number_of_worst(dataset, 5)


def test_rows_of_csv_files(tmp_path, capsys):
    several_histories.write_world(tmp_path, "csv", rows=600)
    header, rows = (tmp_path / "train.csv").read_text().split("\n", 1)
    (tmp_path / "train.csv").write_text(f"{header}\n\n{rows}\n")
    cli.main(
        ["influence", "--config", str(tmp_path), "--expid", "DIN", "--out", str(tmp_path / "r.parquet"), "--quiet"]
    )
    found = pl.read_parquet(tmp_path / "r.parquet")
    raw = pl.read_csv(io.StringIO(f"{header}\n{rows}"), infer_schema=False)
    assert found["shown"].to_list() == raw["shown"].to_list()
    assert found["user"].to_list() == raw["user"].to_list()
    assert found["label"].to_list() == raw["label"].cast(pl.Float64).to_list()
    assert sorted(found["rank"].to_list()) == list(range(1, 601))


def test_users_of_hive_partitions_are_in_the_ranking(tmp_path):
    table = pa.table({"user_id": [2, 10, 2, 1], "item_id": [7, 7, 8, 7], "label": [0, 1, 1, 1]})
    ordered = write_partitions(table, "user_id", tmp_path / "parquet")
    write_partitions(table, "user_id", tmp_path / "csv", ".csv")
    values = np.arange(4, dtype=np.float32)
    assert make_ranking(tmp_path / "parquet", "label", values).select(["user_id", "item_id"]) == ordered.select([0, 1])
    found = make_ranking(tmp_path / "csv", "label", values, separator=",")
    assert found["user_id"].to_pylist() == ordered["user_id"].to_pylist()
