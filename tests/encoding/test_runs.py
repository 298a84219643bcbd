"""Runs on raw columns, from FuxiCTR's files to scores."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.yaml_files import load_yaml, write_entries
from tests.configs import load_any_dataset as load_dataset
from tests.encoding.raw import COLUMNS, LABEL, columns_of, edited, params_of
from tests.errors import raises_naming
from tests.kills import Killed, kill_run_at_step
from tests.paths import ROOT
from tests.projects import write_project
from tests.tensors import assert_equal_tensors, read_tensors
from tests.two_labels import write_world

DNN = """
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class PlainDNN(BaseModel):
    def __init__(self, feature_map, model_id="PlainDNN", gpu=-1, learning_rate=1e-3, embedding_dim=8, **kwargs):
        super().__init__(feature_map, model_id=model_id, gpu=gpu, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), hidden_units=[9], output_dim=1, output_activation="sigmoid")
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        return {"y_pred": self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))}
"""


def configuration(folder, model="PlainDNN", **dataset):
    """Write a configuration as FuxiCTR's users do, with a checkout's layout of model files."""
    (folder / "zoo" / "PlainDNN" / "src").mkdir(parents=True, exist_ok=True)
    (folder / "zoo" / "PlainDNN" / "src" / "PlainDNN.py").write_text(DNN)
    entry = {k: v for k, v in params_of(folder).items() if k.endswith("_data") or k in ("data_root", "data_format")}
    entry |= {"feature_cols": COLUMNS, "label_col": LABEL, **dataset}
    experiment = {
        "model": model, "dataset_id": "d", "epochs": 1, "batch_size": 32, "embedding_dim": 4, "tensorboard": False,
        "metrics": ["AUC", "gAUC"], "group_id": "user", "model_root": str(folder / "checkpoints"), "verbose": 0,
        "optimizer": "adam", "loss": "binary_crossentropy", "dnn_hidden_units": [8],
    }  # fmt: skip
    return write_project(folder, {"X": experiment}, {"d": {k: v for k, v in entry.items() if v is not None}})


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False])
def test_a_model_of_fuxictr_trains_and_predicts(folder, resident):
    experiment = Experiment.load("X", configuration(folder), model_zoo=folder / "zoo", resident=resident)
    run = experiment.fit()
    assert run.valid.keys() == {"AUC", "gAUC"}
    predictions = experiment.predict()
    assert predictions.shape == (60,)
    raw = pl.read_csv(folder / "test.csv", infer_schema=False)
    raw.head(7).drop("clk").write_csv(folder / "few.csv")
    np.testing.assert_allclose(experiment.predict(folder / "few.csv"), predictions[:7], rtol=1e-6)


@pytest.mark.slow
def test_our_model_takes_target_and_history_by_roles(folder):
    columns = [c for c in COLUMNS if c["name"] != "item_id"]
    config = configuration(folder, "DIN", roles={"target": "shop", "history": "seen"}, feature_cols=columns)
    experiment = Experiment.load("X", config, model_zoo=ROOT / "model_zoo")
    dataset = experiment.load_dataset({"train": True})
    flat = load_dataset(experiment.config.to_dict(), {"train": True}, flat=True)
    plain, table = columns_of(flat, "train"), dataset.splits["train"]
    assert table.target.tolist() == plain["shop"].tolist()
    assert dataset.items.num_items == flat.feature_map.features["shop"]["vocab_size"]
    # FuxiCTR cuts to the first three of four; a history keeps the newest ones, without padding.
    for row, seen in zip(plain["seen"].tolist(), histories(table), strict=True):
        assert seen[: sum(i > 0 for i in row)] == [i for i in row if i]
    assert max(map(len, histories(table))) == 4
    assert {"shop", "seen"}.isdisjoint(dataset.feature_map.features)
    assert experiment.fit().valid["AUC"] >= 0


@pytest.mark.parametrize("freeze", [True, False])
def test_the_target_has_embeddings_of_a_file(folder, freeze):
    """As FuxiCTR's models have them; of the history, too."""
    values = np.arange(9, dtype="f4").reshape(3, 3) + 1
    np.savez(folder / "emb.npz", key=np.array(["a", "b", "never seen"]), value=values)
    given = {"pretrained_emb": str(folder / "emb.npz"), "pretrain_dim": 3, "freeze_emb": freeze, "embedding_dim": 3}
    columns = [{**c, "name": c["name"]} for c in COLUMNS if c["name"] not in ("item_id", "seen")]
    columns[1] = {**columns[1], "name": "city"}
    columns += [{**columns[1], "name": "shop", **given}, next(c for c in COLUMNS if c["name"] == "seen")]
    config = configuration(folder, "DIN", roles={"target": "shop", "history": "seen"}, feature_cols=columns)
    experiment = Experiment.load("X", config, model_zoo=ROOT / "model_zoo")
    dataset = experiment.load_dataset({"train": True})
    model = experiment.build_model(dataset)
    words = json.loads((Path(dataset.feature_map.data_dir) / "feature_vocab.json").read_text())["shop"]
    table = dict(model.named_parameters())[
        "embedding_layer.embedding_layer.embedding_layers.item_id.pretrain_embedding.weight"
    ]
    assert table.requires_grad is not freeze
    np.testing.assert_array_equal(table.detach().numpy()[[words[k] for k in ("a", "b", "never seen")]], values)
    experiment.fit()
    expected = experiment.predict()
    (folder / "emb.npz").unlink()  # the weights hold them
    (folder / "train.csv").unlink()
    np.testing.assert_array_equal(experiment.predict(), expected)


@pytest.mark.parametrize("usage", ["init", "sum", "concat"])
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("DIN_MM", {"factor_dim": 2, "factor_table_regularizer": 0.5, "embedding_regularizer": None}),
        ("LightFM", {"embedding_regularizer": None}),
    ],
)
def test_a_factorization_does_not_scale_embeddings_of_a_file(folder, model, settings, usage):
    values = np.arange(9, dtype="f4").reshape(3, 3) + 1
    np.savez(folder / "emb.npz", key=np.array(["a", "b", "never seen"]), value=values)
    given = {"pretrained_emb": str(folder / "emb.npz"), "pretrain_dim": 3, "pretrain_usage": usage, "freeze_emb": True}
    columns = [c for c in COLUMNS if c["name"] not in ("item_id", "seen")]
    columns[1] = {**columns[1], "name": "city"}
    columns += [{**columns[1], "name": "shop", **given}, next(c for c in COLUMNS if c["name"] == "seen")]
    config = configuration(folder, "DIN", roles={"target": "shop", "history": "seen"}, feature_cols=columns)
    entry = {**load_yaml(config / "model_config.yaml")["X"], "model": model, **settings}
    if model == "LightFM":
        del entry["dnn_hidden_units"]
    write_entries(config / "model_config.yaml", {"X": entry}, Path("test"))
    experiment = Experiment.load("X", config, model_zoo=ROOT / "model_zoo")
    dataset = experiment.load_dataset({"train": True})
    built = experiment.build_model(dataset)
    words = json.loads((Path(dataset.feature_map.data_dir) / "feature_vocab.json").read_text())["shop"]
    layer = built.embedding_layer.embedding_layer.embedding_layers["item_id"]
    table = layer.pretrain_embedding.weight.detach().numpy()
    np.testing.assert_array_equal(table[[words[k] for k in ("a", "b", "never seen")]], values)
    if model == "LightFM":
        return
    # The factors are the last two numbers of what the layer returns, and have a penalty of their own.
    built.penalty.add_gradients()
    np.testing.assert_allclose(layer.proj.weight.grad[-2:], 0.5 * layer.proj.weight.detach()[-2:])
    assert not layer.proj.weight.grad[:-2].any()
    if usage == "sum":
        weight = layer.id_embedding.weight
        np.testing.assert_allclose(weight.grad[:, -2:], 0.5 * weight.detach()[:, -2:])
        assert not weight.grad[:, :-2].any()


def histories(table):
    return [table.slice(i, i + 1).history_values.tolist() for i in range(len(table))]


def test_our_model_without_items_is_told_of_roles(folder):
    with pytest.raises(ConfigError, match="roles"):
        Experiment.load("X", configuration(folder, "DIN"), model_zoo=ROOT / "model_zoo")


@pytest.mark.slow
def test_prediction_writes_a_submission_and_other_commands_ask_for_items(folder):
    configuration(folder)
    env = {"PYTHONPATH": str(ROOT), "PATH": ""}
    Experiment.load("X", folder, model_zoo=folder / "zoo").fit()
    words = ["--expid", "X", "--config", ".", "--model_zoo", "zoo"]
    command = [sys.executable, str(ROOT / "prediction.py"), *words]
    assert subprocess.run(command, cwd=folder, capture_output=True, env=env).returncode == 0
    assert (folder / "submission" / "X.zip").is_file()
    for name in ("diagnose", "influence"):
        done = subprocess.run(
            [sys.executable, "-m", "fuxictr_mm", name, *words], cwd=folder, capture_output=True, env=env
        )
        assert done.returncode == 2
        assert b"item_info" in done.stderr


@pytest.mark.slow
def test_bad_data_ends_a_command_with_exit_code_2(folder):
    edited(folder, lambda rows: rows[41].update(price="cheap"))
    configuration(folder)
    command = [sys.executable, str(ROOT / "run_expid.py"), "--expid", "X", "--model_zoo", "zoo"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "row 41" in done.stderr


def test_several_labels_of_raw_columns(tmp_path):
    write_world(tmp_path, "csv", rows=1200, epochs=3)
    options = {"model_zoo": tmp_path / "zoo", "model_root": str(tmp_path / "ck"), "shuffle": False}
    memory, streamed = (Experiment.load("Towers", tmp_path, resident=r, **options) for r in (True, False))
    raw = pl.read_csv(tmp_path / "train.csv")
    table = memory.load_dataset({"train": True}).splits["train"]
    expected = raw.select(pl.col("click", "like").cast(pl.Float32)).to_numpy()
    np.testing.assert_array_equal(table.label.numpy(), expected)
    assert np.isnan(expected[:, 1]).sum() == raw["like"].null_count() > 300
    runs = [experiment.fit() for experiment in (memory, streamed)]
    assert runs[0].valid == runs[1].valid
    assert min(runs[0].valid["click_AUC"], runs[0].valid["like_AUC"]) > 0.8
    pl.read_csv(tmp_path / "test.csv").drop("click", "like").write_csv(tmp_path / "unlabelled.csv")
    predictions = memory.predict(tmp_path / "unlabelled.csv")
    assert predictions.shape == (200, 2)
    np.testing.assert_array_equal(predictions, memory.predict())


def test_scoring_needs_no_training_files(tmp_path):
    write_world(tmp_path, "csv", rows=400, epochs=1)
    experiment = Experiment.load("Towers", tmp_path, model_zoo=tmp_path / "zoo")
    run = experiment.fit()
    expected = experiment.predict(tmp_path / "test.csv")
    for split in ("train", "valid"):
        (tmp_path / f"{split}.csv").unlink()
    np.testing.assert_array_equal(experiment.predict(tmp_path / "test.csv"), expected)
    np.testing.assert_array_equal(run.predict(pl.read_csv(tmp_path / "test.csv").drop("click", "like")), expected)
    np.testing.assert_array_equal(experiment.predict(), expected)
    with pytest.raises(MissingFileError, match=r"train\.csv"):
        experiment.fit()
    write_world(tmp_path, "csv", rows=600, epochs=1)
    experiment.fit()
    for split in ("train", "valid"):
        (tmp_path / f"{split}.csv").unlink()
    assert len([*(tmp_path / "d").glob("encoded-*")]) == 2
    assert experiment.predict().shape == expected.shape  # the vocabularies are those of the run
    for folder in (tmp_path / "d").glob("encoded-*"):
        (folder / "manifest.json").write_text("{")
    with pytest.raises(MissingFileError, match=r"train\.csv"):
        experiment.predict()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_scores_after_the_training_file_has_changed(folder, form, caplog):
    """The ids, scales and lengths of sequences are those of the run, whose weights were trained on them."""
    options: dict = {}
    if form == "parquet":  # raw columns as well
        options = {"data_format": "parquet", "rebuild_dataset": True}
        for split in ("train", "valid", "test"):
            pl.read_csv(folder / f"{split}.csv", infer_schema=False).write_parquet(folder / f"{split}.parquet")
            options[f"{split}_data"] = str(folder / f"{split}.parquet")
    experiment = Experiment.load("X", configuration(folder, **options), model_zoo=folder / "zoo")
    run = experiment.fit()
    expected = experiment.predict()
    dataset = experiment.load_dataset({"valid": True}, run.weights)
    file = folder / f"train.{form}"
    rows = pl.read_csv(file, infer_schema=False) if form == "csv" else pl.read_parquet(file)
    changed = rows[::-1][:-30].with_columns(pl.lit("11.5").alias("age"))  # other counts, another scale, fewer values
    getattr(changed, f"write_{form}")(file)
    np.testing.assert_array_equal(experiment.predict(), expected)
    np.testing.assert_array_equal(run.predict(folder / f"test.{form}"), expected)
    again = experiment.load_dataset({"valid": True}, run.weights)
    assert again.feature_map.features == dataset.feature_map.features
    (folder / "checkpoints" / "d" / "X.vocabulary.parquet").unlink()  # of an earlier version: the files decide
    caplog.clear()
    assert not np.allclose(experiment.predict(), expected)
    assert any("X.vocabulary.parquet" in r.message for r in caplog.records if r.levelname == "WARNING")


@pytest.mark.slow
def test_training_that_continues_has_the_vocabularies_of_its_initial_weights(folder, tmp_path):
    """Values, scales and lengths are encoded as for the weights, and new values are unknown ones."""
    experiment = Experiment.load("X", configuration(folder), model_zoo=folder / "zoo")
    run, expected = experiment.fit(), experiment.predict()
    dataset = experiment.load_dataset({"valid": True}, run.weights)
    file = folder / "train.csv"
    rows = pl.read_csv(file, infer_schema=False)[::-1][:-30]
    rows.with_columns(pl.lit("11.5").alias("age"), pl.lit("elsewhere").alias("city")).write_csv(file)
    still = experiment.with_settings(learning_rate=1e-30, initial_weights=str(run.path), model_id="Y")
    run_2 = still.fit()
    np.testing.assert_allclose(still.predict(), expected, atol=1e-7)
    again = still.load_dataset({"valid": True}, run_2.weights)
    assert again.feature_map.features == dataset.feature_map.features
    assert again.vocabularies.equal_file(run.path / "vocabulary.parquet")
    third = still.with_settings(initial_weights=str(run_2.path), model_id="Z")
    third.fit()
    np.testing.assert_allclose(third.predict(), expected, atol=1e-7)


def test_a_killed_run_of_raw_columns_resumes_bit_for_bit(tmp_path):
    write_world(tmp_path, "csv", rows=1200)
    options = {"model_zoo": tmp_path / "zoo", "resident": False, "buffer_rows": 500}

    def experiment(folder):
        return Experiment.load("Towers", tmp_path, model_root=str(tmp_path / folder), **options)

    expected = experiment("whole").fit()
    killed = experiment("killed")
    kill_run_at_step(killed, 9)
    with pytest.raises(Killed):
        killed.fit()
    assert killed.paths.checkpoint.exists()
    found = experiment("killed").fit(resume=True)
    assert_equal_tensors(read_tensors(found.weights), read_tensors(expected.weights))


def test_labels_and_meta_columns_that_scoring_does_not_need(folder, caplog):
    """Of the dataset's own test file, its labels are read by a later run although a prediction came first."""
    experiment = Experiment.load("X", configuration(folder, test_data=None), model_zoo=folder / "zoo")
    assert list(experiment.fit().metrics) == ["valid"]
    raw = pl.read_csv(folder / "test.csv", infer_schema=False)
    expected = experiment.predict(folder / "test.csv")
    texts, broken = raw.with_columns(clk=pl.lit("?")), raw.with_columns(clk=pl.Series(["x", *raw["clk"][1:]]))
    for frame in (texts, broken, raw.drop("user", "clk")):
        frame.write_csv(folder / "other.csv")
        np.testing.assert_array_equal(experiment.predict(folder / "other.csv"), expected)
    experiment = Experiment.load("X", configuration(folder), model_zoo=folder / "zoo")
    np.testing.assert_array_equal(experiment.predict(), expected)
    assert experiment.fit().test.keys() == {"AUC", "gAUC"}
    texts.write_csv(folder / "test.csv")
    assert list(experiment.fit().metrics) == ["valid"]
    assert "test.csv: clk is text in all rows" in caplog.text
    broken.write_csv(folder / "test.csv")
    with raises_naming(DataError, "test.csv", "clk", "row 0", "'x'"):
        experiment.fit()
