"""What the autopilot makes of a dataset: features, models and settings, all of which train."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.autopilot.candidates import (
    MODELS,
    computed_features,
    factor_space,
    features_of_users,
    features_to_try,
    first_of,
    models_to_try,
    settings_for,
    space_of,
)
from fuxictr_mm.autopilot.facts import Facts, encoded, look
from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.experiment import Experiment
from tests.paths import TINY
from tests.projects import write_project


def test_features_models_and_settings(dataset):
    facts = look(dataset)
    more, both_more, first, second = features_to_try(dataset, facts)
    assert "item_emb_d16" in first
    assert {"txt_emb_pca8", "img_emb_pca8"} <= set(second)
    assert set(first) - set(second) == {"item_emb_d16"}
    added = {entry["name"]: entry for entry in computed_features(dataset, facts)}
    for plain, with_more in ((first, more), (second, both_more)):
        assert with_more[: len(plain)] == plain
        assert {added[n].get("of") for n in with_more[len(plain) :]} - {None} == {n for n in plain if "emb" in n}
    short = Facts(facts.rows, facts.items, 2.0, 4.0, {}, {})
    assert features_to_try(dataset, short)[1:] == [first]
    for cold, tried in ((0.005, False), (0.05, True)):
        facts_of = Facts(facts.rows, facts.items, 2.0, 4.0, {"test": cold}, {})
        assert ("feature_specs" in space_of("DIN_MM", facts_of, [first], "item_id")) is tried
        assert "feature_specs" not in space_of("DIN_MM", facts_of, [["user_id"]], "item_id")
    assert "Transformer_DCN" in models_to_try(facts, False)
    assert "Transformer_DCN" not in models_to_try(short, False)
    assert ["LightFM" in models_to_try(short, has_user) for has_user in (True, False)] == [True, False]
    few, all_active = features_of_users(dataset, facts)
    assert few == ["item_id", "item_emb_d16"]  # the user of tiny_mm is no feature
    assert set(few) < set(all_active)
    features = [["user_id", "item_id", "level", "a"], ["user_id", "item_id", "level", "b"]]
    factors = factor_space("DIN_MM", features, ["user_id", "item_id", "a"])
    assert factors == {"factor_dim": [17, 33, 0], "factor_features": [["user_id", "item_id"], None]}
    assert space_of("DIN_MM", short, features, "item_id", factors).items() >= factors.items()
    assert factor_space("DIN_MM", [["item_id", "a"]], ["user_id", "item_id", "a"]) == {}
    assert factor_space("DIN", features, ["user_id", "item_id"]) == {}
    for rows, begins in ((80_024, 626), (2 * 10**6, 978)):  # after two epochs of batches of 256, and of 4,096
        sized = Facts({"train": rows}, 9, 9.0, 9.0, {}, {})
        for name in ("DIN_MM", "DIN", "QIN"):
            assert space_of(name, sized, features, "item_id")["swa_start"] == [None, begins]
            assert first_of(name, sized, features, {})["swa_start"] == begins
        assert "swa_start" not in space_of("LightFM", sized, features, "item_id")
    for name in MODELS:
        small = settings_for(name, "tiny_mm", facts, "user_id")
        large = settings_for(name, "tiny_mm", Facts({"train": 10**7}, 9, 9.0, 500.0, {}, {}), None)
        assert small["batch_size"] < large["batch_size"]
        assert small["epochs"] > large["epochs"]
        assert ("gAUC" in small["metrics"], "gAUC" in large["metrics"]) == (True, False)
        assert (small["max_len"] <= 20, large["max_len"]) == (True, 100)


@pytest.mark.slow
def test_raw_columns_are_encoded_and_every_model_trains_on_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = pq.read_table(TINY / "train.parquet")[:200].to_pylist()
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
    write_project(tmp_path, {"X": {"model": "DIN", "dataset_id": "shop"}}, {"shop": entry})
    dataset = encoded(ExperimentConfig.load(tmp_path, "X"))
    facts = look(dataset)
    assert facts.rows == {"train": 200, "valid": 200}
    assert facts.items == len({row["item_id"] for row in rows})
    assert facts.history_mean == np.mean([sum(i != 0 for i in row["item_seq"]) for row in rows])
    assert facts.cold == {"valid": 0}
    assert computed_features(dataset, facts) == []
    features = features_to_try(dataset, facts)
    assert features == [["uid", "asin", "seen"]]
    few, _ = features_of_users(dataset, facts)
    experiments = {}
    for model in MODELS:
        factors = factor_space(model, features, few)
        space = space_of(model, facts, features, "asin", factors)
        first = first_of(model, facts, features, factors)
        for name, value in first.items():
            tried = space[name]
            assert tried["low"] <= value <= tried["high"] if isinstance(tried, dict) else value in tried, name
        settings = settings_for(model, "shop", facts, "uid")
        experiments[model] = {**settings, **first, "epochs": 1, "record": False}
    (tmp_path / "model_config.yaml").write_text(json.dumps(experiments))
    for model in experiments:
        assert set(Experiment.load(model, tmp_path).fit().valid) == {"AUC", "gAUC", "logloss"}
