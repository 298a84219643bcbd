"""Experiments end to end on the repository's tiny_mm: what they learn, that they repeat, what drops in."""

import json
import os
import random
import shutil
import threading
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock

from fuxictr_mm.cli import main
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.yaml_files import dump_yaml, load_yaml
from tests.errors import check_names, exits_naming, raises_naming
from tests.paths import ROOT, TINY
from tests.projects import write_project
from tests.tensors import read_tensors

LABELLED = str(TINY / "test_labelled.parquet")

#: A training of a few steps.
SHORT = {"epochs": 1, "batch_size": 1000}

#: Stands for float64 as default.
FLOAT64 = object()


def run(expid, folder, config=ROOT, model_zoo=None, **settings):
    settings = {"model_root": str(folder), "verbose": 0, **settings}
    experiment = Experiment.load(expid, config, model_zoo=model_zoo, **settings)
    return experiment.fit(), experiment


@pytest.mark.slow
def test_both_modalities_beat_either_and_none(tmp_path):
    """The planted taste shows half in the text, half in the image; margins are ten times the deviation of seeds."""

    def auc(expid, seed):
        return run(expid, tmp_path, seed=seed, test_data=LABELLED)[0].test["AUC"]

    for seed in (1, 2):
        both, text, image, none = (auc(f"DIN_MM{variant}_tiny", seed) for variant in ("", "_text", "_image", "_none"))
        assert both > text + 0.03
        assert both > image + 0.03
        assert min(text, image) > none + 0.03


def test_one_process_at_a_time_trains_an_experiment(tmp_path):
    """Two that write the same weights would each record what the other trained."""
    (tmp_path / "tiny_mm").mkdir()
    lock = FileLock(tmp_path / "tiny_mm" / "DIN_tiny.lock")
    lock.acquire()
    with raises_naming(ConfigError, "DIN_tiny", "model_root"):
        run("DIN_tiny", tmp_path, **SHORT)
    assert [path.name for path in (tmp_path / "tiny_mm").iterdir()] == ["DIN_tiny.lock"]
    lock.release()
    run("DIN_tiny", tmp_path, **SHORT)


@pytest.fixture
def challenge(tmp_path, monkeypatch):
    """A working directory as the challenge's: data in ./data/MicroLens_1M_x1, its dataset entry, one item file."""
    source, data = TINY, tmp_path / "data" / "MicroLens_1M_x1"
    data.mkdir(parents=True)
    for name in ("train", "valid", "test"):
        shutil.copy(source / f"{name}.parquet", data)
    info = pq.read_table(source / "item_info.parquet").rename_columns(["item_id", "item_tags", "item_emb_d128"])
    # The challenge's vectors are 128 wide, which its file of settings gives as embedding_dim and nothing else.
    vectors = torch.tensor(info["item_emb_d128"].to_pylist()).repeat(1, 8)
    wide = pa.FixedSizeListArray.from_arrays(pa.array(vectors.flatten().numpy()), 128)
    pq.write_table(info.set_column(2, "item_emb_d128", wide), data / "item_info.parquet")
    columns = [
        "{name: user_id, active: True, dtype: int, type: meta}",
        "{name: item_seq, active: True, dtype: int, type: meta}",
        "{name: likes_level, active: True, dtype: int, type: categorical, vocab_size: 11}",
        "{name: views_level, active: True, dtype: int, type: categorical, vocab_size: 11}",
        "{name: item_id, active: True, dtype: int, type: categorical, vocab_size: 91718, source: item}",
        "{name: item_tags, active: True, dtype: int, type: sequence, max_len: 5, vocab_size: 11740, source: item}",
        "{name: item_emb_d128, active: True, dtype: float, type: embedding, source: item, embedding_dim: 128}",
    ]
    folder = "./data/MicroLens_1M_x1"
    lines = ["MicroLens_1M_x1:", "    data_root: ./data/", "    data_format: parquet", "    rebuild_dataset: False"]
    lines += [f"    {split}_data: {folder}/{split}.parquet" for split in ("train", "valid", "test")]
    lines += [f"    item_info: {folder}/item_info.parquet", "    feature_cols:"]
    lines += [f"        - {column}" for column in columns] + ["    label_col: {name: label, dtype: float}"]
    (tmp_path / "dataset_config.yaml").write_text("\n".join(lines))
    shutil.copy(ROOT / "model_config.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("expid", ["DIN_MicroLens", "DIN_MM_MicroLens"])
def test_the_challenges_own_dataset_entry_runs(challenge, expid):
    small = {"dnn_hidden_units": [16], "embedding_dim": 16, "batch_size": 2048, "epochs": 1}
    result, experiment = run(expid, challenge, config=challenge, **small)
    assert 0.5 < result.valid["AUC"] < 1
    assert list(result.metrics) == ["valid"]
    state = read_tensors(experiment.paths.weights)
    projection = "embedding_layer.embedding_layer.feature_encoders.item_emb_d128.weight"
    assert state["embedding_layer.embedding_layer.embedding_layers.item_id.weight"].shape == (91718, 16)
    # As in the published model, the vectors pass a linear map to embedding_dim; DIN_MM's fields are all 16 wide.
    assert state[projection].shape == ((128, 128) if expid == "DIN_MicroLens" else (16, 128))


def test_a_model_file_drops_in(tmp_path, monkeypatch):
    """The README's model: one file in ./model_zoo, nothing else edited."""
    (tmp_path / "model_zoo").mkdir()
    (tmp_path / "model_zoo" / "Broken.py").write_text("this is no Python")
    (tmp_path / "model_zoo" / "MeanPooling.py").write_text(readme_model())
    monkeypatch.chdir(tmp_path)
    settings = "dataset_id: tiny_mm, max_len: 20, learning_rate: 3.0e-3, batch_size: 256, epochs: 4, embedding_dim: 16"
    used = "use_features: [likes_level, item_id, txt_emb_pca8, img_emb_pca8]"
    write_project(tmp_path, f"Mean_tiny: {{model: MeanPooling, {settings}, {used}}}")
    result, _ = run("Mean_tiny", tmp_path, config=tmp_path)
    assert result.valid["AUC"] > 0.65


def readme_model():
    """Return the model that the README shows."""
    blocks = [part.split("```")[0] for part in (ROOT / "README.md").read_text().split("```python\n")[1:]]
    return next(block for block in blocks if "class MeanPooling(DNNModel)" in block)


def test_training_leaves_no_trace_of_an_older_run(tmp_path):
    """The result of an earlier run would pass for that of one that did not finish."""
    _, experiment = run("DIN_tiny", tmp_path, **SHORT)
    assert experiment.paths.result.exists()
    with raises_naming(UserError, "learning_rate"):
        run("DIN_tiny", tmp_path, **SHORT, learning_rate=1e30)
    assert not experiment.paths.result.exists()


def test_a_second_experiment_of_this_process_is_refused(tmp_path):
    """Both would take their random numbers from one generator."""
    outcomes = {}
    first = Experiment.load("DIN_tiny", ROOT, model_root=str(tmp_path), **SHORT, verbose=0)
    build = first.build_model

    def build_and_start_another(dataset):
        outcomes["second"] = in_thread(lambda: run("DIN_MM_tiny", tmp_path, **SHORT))
        return build(dataset)

    first.build_model = build_and_start_another
    assert first.fit().finished
    assert isinstance(outcomes["second"], UserError)
    check_names(str(outcomes["second"]), "DIN_MM_tiny")
    assert in_thread(lambda: run("DIN_tiny", tmp_path / "after", **SHORT)) is None


def in_thread(work):
    """Return the error that work raises in another thread."""
    outcome = []

    def attempt():
        try:
            work()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return outcome[0]


def test_a_finished_run_cannot_be_trained_for_longer(tmp_path, caplog):
    """Its training checkpoint is gone: from the start, it would replace the weights."""
    first, experiment = run("DIN_tiny", tmp_path, **SHORT)
    weights = experiment.paths.weights.read_bytes()
    longer = experiment.with_settings(epochs=2)
    with raises_naming(UserError, "epochs is 1", "2"):
        longer.fit(resume=True)
    assert experiment.paths.weights.read_bytes() == weights
    assert experiment.fit(resume=True) == first
    other = experiment.with_settings(seed=7).fit(resume=True)
    assert "seed is 20242025" in caplog.text
    assert (other.seed, other.finished) == (7, True)


def test_a_label_that_is_a_placeholder_is_no_label(tmp_path, caplog):
    """The training must not end in a metric that cannot be computed."""
    table = pq.read_table(LABELLED)
    zeros = pa.array([0] * len(table), table.schema.field("label").type)
    pq.write_table(table.set_column(table.column_names.index("label"), "label", zeros), tmp_path / "zeros.parquet")
    for resident in (True, False):
        settings = {"test_data": str(tmp_path / "zeros.parquet"), "resident": resident, **SHORT}
        result, experiment = run("DIN_tiny", tmp_path, **settings)
        assert list(result.metrics) == ["valid"]
        assert all(part in caplog.text for part in ("zeros.parquet", "label is 0", "3000 rows"))
        caplog.clear()
        assert len(experiment.predict()) == 3000
    assert "WARNING" not in caplog.text


def of_label(table, values):
    return table.set_column(table.column_names.index("label"), "label", values)


def test_test_labels_that_are_texts_in_all_rows_are_placeholders(tmp_path, caplog):
    table = pq.read_table(LABELLED)
    path = str(tmp_path / "test.parquet")
    pq.write_table(of_label(table, pa.array(["?"] * (len(table) - 1) + [None])), path)
    result, experiment = run("DIN_tiny", tmp_path, test_data=path, **SHORT)
    assert list(result.metrics) == ["valid"]
    assert f"{path}: label is text in all rows" in caplog.text
    caplog.clear()
    assert len(experiment.predict()) == len(table)
    assert "WARNING" not in caplog.text


def test_a_prediction_needs_neither_labels_nor_groups_but_metrics_do(tmp_path, caplog):
    table = pq.read_table(LABELLED)
    broken = of_label(table, pa.array([None, 5.0, *[1.0] * (len(table) - 2)]))
    pq.write_table(broken, tmp_path / "broken.parquet")
    pq.write_table(table.drop_columns(["user_id"]), tmp_path / "no_user.parquet")
    settings = {"metrics": ["AUC", "gAUC"], "group_id": "user_id", **SHORT}
    result, experiment = run("DIN_tiny", tmp_path, test_data=str(tmp_path / "no_user.parquet"), **settings)
    assert list(result.test) == ["AUC"]
    assert list(result.valid) == ["AUC", "gAUC"]
    assert "no gAUC" in caplog.text
    scores = experiment.predict(LABELLED)
    for frame in (tmp_path / "broken.parquet", tmp_path / "no_user.parquet", table.drop_columns(["user_id", "label"])):
        np.testing.assert_array_equal(experiment.predict(frame), scores)
    order = np.random.default_rng(0).permutation(len(scores))  # scores are in the order of the rows
    np.testing.assert_allclose(experiment.predict(table.take(order)), scores[order], rtol=0, atol=1e-6)
    with raises_naming(UserError, "broken.parquet: label: row 0 is null"):
        run("DIN_tiny", tmp_path, test_data=str(tmp_path / "broken.parquet"), **settings)


def alone(source, path):
    """Write one row of each user."""
    table = pq.read_table(source)
    users = table["user_id"].to_numpy()
    pq.write_table(table.take(np.unique(users, return_index=True)[1]), path)
    return str(path)


@pytest.mark.parametrize("resident", [True, False])
def test_group_metrics_that_cannot_be_computed_are_found_before_training(tmp_path, caplog, resident):
    data = TINY
    valid = alone(data / "valid.parquet", tmp_path / "valid.parquet")
    test = alone(LABELLED, tmp_path / "test.parquet")
    settings = {"group_id": "user_id", **SHORT, "resident": resident}
    for key in ({"metrics": ["AUC", "gAUC"]}, {"monitor": "gAUC"}, {"monitor": {"AUC": 1, "MRR": 1}}):
        with raises_naming(UserError, "valid.parquet", "user_id", next(iter(key))):
            run("DIN_tiny", tmp_path, valid_data=valid, **settings, **key)
    assert not list(tmp_path.rglob("*.model"))
    result, experiment = run("DIN_tiny", tmp_path, test_data=test, **settings, metrics=["AUC", "gAUC_pos", "MRR"])
    assert list(result.test) == ["AUC", "MRR"]
    assert "gAUC_pos" in result.valid
    assert f"{test}: none of the" in caplog.text
    assert all((result.path / name).is_file() for name in ("result.json", "best.model"))
    assert json.loads(experiment.paths.result.read_text())["test"] == result.test


@pytest.mark.parametrize("setting", [torch.no_grad, torch.inference_mode, lambda: FLOAT64])
def test_an_experiment_neither_takes_nor_leaves_settings_of_the_process(tmp_path, setting):
    """As of a notebook: gradients off, float64 by default, random numbers of one's own."""
    settings = {"epochs": 1, "batch_size": 2048, "record": False, "tensorboard": False}
    expected = run("DIN_tiny", tmp_path, **settings)[0].valid

    def state():
        return [torch.get_default_dtype(), torch.is_grad_enabled(), os.environ.get("PYTHONHASHSEED")]

    given = setting()
    with nullcontext() if given is FLOAT64 else given:
        torch.set_default_dtype(torch.float64 if given is FLOAT64 else torch.float32)
        try:
            torch.manual_seed(1), np.random.seed(1), random.seed(1)
            drawn = [torch.rand(1).item(), np.random.rand(), random.random()]
            torch.manual_seed(1), np.random.seed(1), random.seed(1)
            before = state()
            result, experiment = run("DIN_tiny", tmp_path, **settings)
            scores = experiment.predict()
            assert state() == before
            assert [torch.rand(1).item(), np.random.rand(), random.random()] == drawn
        finally:
            torch.set_default_dtype(torch.float32)
    assert result.valid == expected
    np.testing.assert_array_equal(scores, experiment.predict())


@pytest.mark.parametrize("resident", [True, False])
def test_a_regression_on_other_numbers_is_refused_before_training(tmp_path, caplog, resident):
    paths = {}
    for split, source in {"train_data": "train", "valid_data": "valid", "test_data": "test_labelled"}.items():
        table = pq.read_table(TINY / f"{source}.parquet")
        numbers = np.where(np.arange(len(table)) % 3, table["label"].to_numpy(), 0.5)
        paths[split] = str(tmp_path / f"{split}.parquet")
        pq.write_table(of_label(table, pa.array(numbers)), paths[split])
    settings = {"task": "regression", "loss": "mse_loss", "metrics": ["AUC"], **SHORT, "resident": resident}
    with raises_naming(UserError, paths["valid_data"], "0.5", "AUC"):
        run("DIN_tiny", tmp_path, **settings, **paths)
    assert not list(tmp_path.rglob("*.model"))
    del paths["valid_data"]
    result, _ = run("DIN_tiny", tmp_path, **settings, **paths)
    assert list(result.metrics) == ["valid"]
    assert f"{paths['test_data']}: a label is 0.5" in caplog.text
    result, _ = run("DIN_tiny", tmp_path, **{**settings, "metrics": ["AUC", "RMSE"]}, **paths)
    assert list(result.test) == ["RMSE"]


@pytest.mark.parametrize("name", ["user.level", "type", "values"])
def test_a_feature_that_no_layer_can_be_named_after(tmp_path, name):
    text = (ROOT / "dataset_config.yaml").read_text().replace("likes_level", name)
    (tmp_path / "dataset_config.yaml").write_text(text)
    (tmp_path / "model_config.yaml").write_text("E: {model: DIN, dataset_id: tiny_mm}")
    with raises_naming(UserError, f"'{name}'", "rename"):  # no file of data is there
        Experiment.load("E", tmp_path)


def test_a_dataset_without_a_feature_of_items_is_refused_before_it_is_read(tmp_path):
    with raises_naming(ConfigError, "source: item", "optimizer"):
        Experiment.load("DIN_tiny", ROOT, data_root=tmp_path, use_features=["likes_level"], optimizer="adm")


@pytest.mark.parametrize(
    ("table", "settings", "named"),
    [
        ("sharded", {"ema": 0.9}, "ema is 0.9"),
        ("sharded", {"compile": True}, "compile is True"),
        ("touched", {"optimizer": "rmsprop"}, "rmsprop"),
        ("touched", {"compile": True}, "compile is True"),
    ],
)
def test_a_kind_of_table_that_cannot_be_is_refused_before_data_is_read(tmp_path, table, settings, named):
    specs = [{"name": "item_id", "table": table}]
    with raises_naming(ConfigError, "'item_id'", f"table is {table}", named, "'AUCC'"):
        Experiment.load("DIN_tiny", ROOT, data_root=tmp_path, feature_specs=specs, metrics=["AUC", "AUCC"], **settings)


def test_the_log_loss_of_validation_rows_of_one_class(tmp_path):
    table = pq.read_table(TINY / "valid.parquet")
    path = str(tmp_path / "valid.parquet")
    pq.write_table(of_label(table, pa.array([1.0] * len(table))), path)
    result, _ = run(
        "DIN_tiny", tmp_path, valid_data=path, **SHORT, metrics=["logloss"], monitor="logloss", monitor_mode="min"
    )
    assert list(result.valid) == ["logloss"]
    with raises_naming(UserError, "valid.parquet", "label is 1"):
        run("DIN_tiny", tmp_path, valid_data=path, **SHORT, metrics=["logloss"])


MISTAKES = {
    "feature_specs": [
        {"name": "likes_level", "norm": "l2"}, {"name": "views_level", "statistics": ["mean"]}, {"name": "item_tag"},
        {"name": "item_tags", "dropout": 2},
    ],
    "use_features": ["likes_level", "views_level", "item_id", "item_tags", "item_emb"],
    "loss": "mse_loss",
    "plateau_patience": 3,
    "reduce_lr_on_plateau": False,
    "ema": 0.9,
    "swa_start": 5,
    "optimizer": "adm",
    "embedding_regularizer": "l3(1)",
    "label_smoothing": 0.1,
    "task_weights": {"clik": 2},
    "metrics": ["AUCC", "gAUCC"],
    "net_dropot": 0.1,
    "gpus": 1,
}  # fmt: skip
NAMED = (
    "'likes_level': norm is l2", "'views_level': statistics", "'item_tag'; did you mean 'item_tags'", "dropout is 2",
    "'item_emb'; did you mean", "loss is mse_loss", "plateau_patience is 3", "swa_start",
    "'adm'; did you mean 'adam'", "embedding_regularizer is 'l3(1)'", "no label 'clik'", "'AUCC'", "'gAUCC'",
    "'net_dropot'; did you mean 'net_dropout'", "unknown key 'gpus'",
)  # fmt: skip


def test_all_problems_are_in_one_message_before_any_data_is_read(tmp_path, capsys):
    """No file of the dataset exists: nothing else could be read."""
    for stem in ("model_config", "dataset_config"):
        shutil.copy(ROOT / f"{stem}.yaml", tmp_path)
    with raises_naming(ConfigError, *NAMED):
        Experiment.load("DIN_tiny", tmp_path, **MISTAKES)
    entry = {**load_yaml(ROOT / "model_config.yaml")["DIN_tiny"], **MISTAKES, "dataset_id": "tiny_mm"}
    (tmp_path / "model_config.yaml").write_text(dump_yaml({"X": entry}))
    with exits_naming(capsys, *NAMED):
        main(["train", "--config", str(tmp_path), "--expid", "X"])
    space = {"optimizer": ["adam", "adm"], "plateau_patience": [1, 3], "reduce_lr_on_plateau": False}
    tuner = {"base_config": str(ROOT), "base_expid": "DIN_tiny", "tuner_space": space}
    (tmp_path / "grid.yaml").write_text(dump_yaml(tuner))
    with exits_naming(capsys, "'adm'; did you mean 'adam'", "plateau_patience is 3"):
        main(["tune", "--config", str(tmp_path / "grid.yaml"), "--quiet"])
