"""What the autopilot sees of a dataset and makes of it, and the whole way on few rows, resumed."""

import argparse
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fuxictr_mm import autopilot
from fuxictr_mm.cli import main
from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.runs import find_runs
from tests.arrow import write_partitions

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def dataset(monkeypatch):
    monkeypatch.chdir(ROOT)
    return ExperimentConfig.load(ROOT, "DIN_tiny").dataset


def test_the_facts_by_brute_force(dataset):
    facts = autopilot.look(dataset)
    tables = {split: pq.read_table(ROOT / "data" / "tiny_mm" / f"{split}.parquet") for split in facts.rows}
    assert facts.rows == {split: table.num_rows for split, table in tables.items()}
    shown = {split: table["item_id"].to_pylist() for split, table in tables.items()}
    for split in ("valid", "test"):
        cold = np.mean(~np.isin(shown[split], shown["train"]))
        assert facts.cold[split] == pytest.approx(cold)
    lengths = [sum(item != 0 for item in row) for row in tables["train"]["item_seq"].to_pylist()]
    assert facts.history_mean == pytest.approx(np.mean(lengths))
    assert facts.history_high == pytest.approx(np.quantile(lengths, 0.95))
    assert facts.embeddings == {"image": "img_emb_pca8", "text": "txt_emb_pca8"}
    assert "tiny" not in facts.sentence()
    assert f"{facts.cold['valid']:.1%} of valid" in facts.sentence()


def test_the_facts_of_hive_partitions(dataset, tmp_path):
    """Also where the user is the partition, and a part of the items has no rows."""
    paths = {}
    for split in ("train", "valid"):
        write_partitions(pq.read_table(getattr(dataset, f"{split}_data")), "likes_level", tmp_path / split)
        paths[f"{split}_data"] = str(tmp_path / split)
    (tmp_path / "items").mkdir()
    features = pq.read_table(ROOT / "data" / "tiny_mm" / "item_feature.parquet")
    for part in (0, 1):
        pq.write_table(features[: part * len(features)], tmp_path / "items" / f"{part}.parquet")
    expected = autopilot.look(dataset)
    found = autopilot.look(dataset.model_copy(update={**paths, "item_info": [str(tmp_path / "items")]}))
    assert (found.history_mean, found.cold["valid"]) == pytest.approx((expected.history_mean, expected.cold["valid"]))
    assert found.embeddings == {"image": "img_emb_CLIPRN50", "text": "txt_emb_BERT"}
    by_level = dataset.model_copy(update=paths | {"roles": dataset.roles.model_copy(update={"target": "likes_level"})})
    assert autopilot.look(by_level).cold["valid"] == 0


def test_features_models_and_settings(dataset):
    facts = autopilot.look(dataset)
    more, both_more, first, second = autopilot.features_to_try(dataset, facts)
    assert "item_emb_d16" in first
    assert {"txt_emb_pca8", "img_emb_pca8"} <= set(second)
    assert set(first) - set(second) == {"item_emb_d16"}
    added = {entry["name"]: entry for entry in autopilot.computed_features(dataset, facts)}
    for plain, with_more in ((first, more), (second, both_more)):
        assert with_more[: len(plain)] == plain
        assert {added[n].get("of") for n in with_more[len(plain) :]} - {None} == {n for n in plain if "emb" in n}
    short = autopilot.Facts(facts.rows, facts.items, 2.0, 4.0, {}, {})
    assert autopilot.features_to_try(dataset, short)[1:] == [first]
    for cold, tried in ((0.005, False), (0.05, True)):
        facts_of = autopilot.Facts(facts.rows, facts.items, 2.0, 4.0, {"test": cold}, {})
        assert ("feature_specs" in autopilot.space_of("DIN_MM", facts_of, [first], "item_id")) is tried
        assert "feature_specs" not in autopilot.space_of("DIN_MM", facts_of, [["user_id"]], "item_id")
    assert "Transformer_DCN" in autopilot.models_to_try(facts, False)
    assert "Transformer_DCN" not in autopilot.models_to_try(short, False)
    assert ["LightFM" in autopilot.models_to_try(short, has_user) for has_user in (True, False)] == [True, False]
    few, all_active = autopilot.features_of_users(dataset, facts)
    assert few == ["item_id", "item_emb_d16"]  # the user of tiny_mm is no feature
    assert set(few) < set(all_active)
    features = [["user_id", "item_id", "level", "a"], ["user_id", "item_id", "level", "b"]]
    factors = autopilot.factor_space("DIN_MM", features, ["user_id", "item_id", "a"])
    assert factors == {"factor_dim": [17, 33, 0], "factor_features": [["user_id", "item_id"], None]}
    assert autopilot.space_of("DIN_MM", short, features, "item_id", factors).items() >= factors.items()
    assert autopilot.factor_space("DIN_MM", [["item_id", "a"]], ["user_id", "item_id", "a"]) == {}
    assert autopilot.factor_space("DIN", features, ["user_id", "item_id"]) == {}
    for name in autopilot.MODELS:
        small = autopilot.settings_for(name, "tiny_mm", facts, "user_id")
        large = autopilot.settings_for(name, "tiny_mm", autopilot.Facts({"train": 10**7}, 9, 9.0, 500.0, {}, {}), None)
        assert small["batch_size"] < large["batch_size"]
        assert small["epochs"] > large["epochs"]
        assert ("gAUC" in small["metrics"], "gAUC" in large["metrics"]) == (True, False)
        assert (small["max_len"] <= 20, large["max_len"]) == (True, 100)


def test_time():
    assert [autopilot._seconds(text) for text in ("90s", "45m", "1.5h", "30")] == [90, 2700, 5400, 1800]
    for text in ("0m", "-1m", "soon", "3d"):
        with pytest.raises(argparse.ArgumentTypeError):
            autopilot._seconds(text)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            {"label_col": [{"name": n, "dtype": "float"} for n in ("click", "like")], "item_info": "items.parquet"},
            "like",
        ),
        ({"data_format": "csv", "roles": {"target": "asin"}}, "item_info"),
        ({"data_format": "parquet", "rebuild_dataset": True}, "item_info"),
    ],
)
def test_what_it_does_not_take_is_refused_before_a_file_is_read(tmp_path, capsys, change, word):
    columns = [
        {"name": "asin", "dtype": "str", "type": "categorical"},
        {"name": "seen", "dtype": "str", "type": "sequence", "share_embedding": "asin"},
    ]
    entry = {"data_root": "./", "train_data": "./train", "valid_data": "./valid", "feature_cols": columns}
    entry |= {"label_col": {"name": "click", "dtype": "float"}, **change}
    (tmp_path / "dataset_config.yaml").write_text(json.dumps({"shop": entry}))
    with pytest.raises(SystemExit) as stopped:
        main(["autopilot", "--dataset_id", "shop", "--config", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "autopilot: " in error
    assert word in error


@pytest.mark.slow
def test_raw_columns_are_encoded_and_every_model_trains_on_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = pq.read_table(ROOT / "data" / "tiny_mm" / "train.parquet")[:200].to_pylist()
    for split in ("train", "valid"):
        lines = [
            f"u{n % 9},A{row['item_id']},{'^'.join(f'A{i}' for i in row['item_seq'] if i)},{row['label']}"
            for n, row in enumerate(rows)
        ]
        (tmp_path / f"{split}.csv").write_text("\n".join(["uid,asin,seen,click", *lines]) + "\n")
    columns = [
        {"name": ["uid", "asin"], "dtype": "str", "type": "categorical"},
        {"name": "seen", "dtype": "str", "type": "sequence", "max_len": 20, "share_embedding": "asin"},
    ]
    entry = {"data_root": "./", "data_format": "csv", "train_data": "./train.csv", "valid_data": "./valid.csv"}
    entry |= {"label_col": {"name": "click", "dtype": "float"}, "feature_cols": columns}
    entry["roles"] = {"target": "asin", "history": "seen", "user": "uid"}
    (tmp_path / "dataset_config.yaml").write_text(json.dumps({"shop": entry}))
    (tmp_path / "model_config.yaml").write_text(json.dumps({"X": {"model": "DIN", "dataset_id": "shop"}}))
    dataset = autopilot.encoded(ExperimentConfig.load(tmp_path, "X"))
    facts = autopilot.look(dataset)
    assert facts.rows == {"train": 200, "valid": 200}
    assert facts.items == len({row["item_id"] for row in rows})
    assert facts.history_mean == np.mean([sum(i != 0 for i in row["item_seq"]) for row in rows])
    assert facts.cold == {"valid": 0}
    assert autopilot.computed_features(dataset, facts) == []
    features = autopilot.features_to_try(dataset, facts)
    assert features == [["uid", "asin", "seen"]]
    few, _ = autopilot.features_of_users(dataset, facts)
    experiments = {}
    for model, candidate in autopilot.MODELS.items():
        factors = autopilot.factor_space(model, features, few)
        space = autopilot.space_of(model, facts, features, "asin", factors)
        first = {**candidate.first, **{name: space[name][0] for name in ("use_features", *factors)}}
        settings = autopilot.settings_for(model, "shop", facts, "uid")
        experiments[model] = {**settings, **first, "epochs": 1, "record": False}
    (tmp_path / "model_config.yaml").write_text(json.dumps(experiments))
    for model in experiments:
        assert set(Experiment.load(model, tmp_path).fit().valid) == {"AUC", "gAUC", "logloss"}


def test_what_is_missing_is_named(dataset, tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match="valid_data"):
        autopilot.look(dataset.model_copy(update={"valid_data": None}))
    with pytest.raises(SystemExit) as stopped:
        main(["autopilot", "--dataset_id", "tiny_m", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "did you mean 'tiny_mm'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(autopilot, "__file__", str(tmp_path / "a" / "b" / "autopilot.py"))
    with pytest.raises(MissingFileError, match=r"run_expid\.py"):
        autopilot.find_script()


@pytest.mark.slow
def test_from_a_dataset_to_a_submission(tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    data = tmp_path / "data" / "tiny_mm"
    shutil.copytree(ROOT / "data" / "tiny_mm", data)
    for name, rows in (("train", 600), ("valid", 500), ("test_labelled", 400)):
        pq.write_table(pq.read_table(data / f"{name}.parquet").slice(0, rows), data / f"{name}.parquet")
    shutil.copytree(ROOT / "data" / "tiny_mm_derived", tmp_path / "data" / "tiny_mm_derived")
    text = (ROOT / "dataset_config.yaml").read_text().replace("tiny_mm/test.parquet", "tiny_mm/test_labelled.parquet")
    (tmp_path / "dataset_config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sizes = tuple((bound, {**settings, "epochs": 2}) for bound, settings in autopilot.SIZES)
    monkeypatch.setattr(autopilot, "SIZES", sizes)
    arguments = ["autopilot", "--dataset_id", "tiny_mm", "--budget", "1s", "--json"]
    main(arguments)
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["name"] == "AUTO_tiny_mm"
    runs = find_runs("checkpoints")
    trained = {run.run for run in runs if run.model != "Ensemble"}
    assert {run.model for run in runs} == {"DIN_MM", "Ensemble"}
    assert len(trained) == 3  # a trial and two seeds
    ensemble = next(run for run in runs if run.model == "Ensemble")
    assert found["valid"] == pytest.approx(ensemble.valid)
    assert found["test"] == pytest.approx(ensemble.test)
    with zipfile.ZipFile(found["submission"]) as archive:
        assert archive.read("prediction.csv").count(b"\n") == 401
    page = Path(found["page"]).read_text()
    assert "What was tried, and why" in page
    assert "DIN_MM is tried: target attention" in page
    assert any("not tried" in line for line in found["told"])
    main(arguments)  # goes on from where it ended, so trains nothing
    again = {run.run for run in find_runs("checkpoints") if run.model != "Ensemble"}
    assert again == trained
    assert json.loads(capsys.readouterr().out)["valid"] == pytest.approx(found["valid"])
