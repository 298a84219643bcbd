"""How the autopilot tries the models: settings, spaces and first trials, all of which train."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.autopilot.candidates import MODELS
from fuxictr_mm.autopilot.facts import Facts, look, usable
from fuxictr_mm.autopilot.features import Features
from fuxictr_mm.autopilot.plans import plan_for, plans_for
from fuxictr_mm.config import ExperimentConfig, load_dataset_config, load_model_config
from fuxictr_mm.config.features import FeatureConfig
from fuxictr_mm.config.sizes import SWA_LEARNING_RATE, factor_penalty_for
from fuxictr_mm.datasets.configuration import write_config
from fuxictr_mm.datasets.experiments import first_experiments
from fuxictr_mm.datasets.reader import load_reader
from fuxictr_mm.datasets.summary import SplitSummary, Summary
from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.registry import load_model_class
from fuxictr_mm.training.settings_text import default_settings
from tests.datasets.logs import make_log, write_source
from tests.datasets.shop import ROLES
from tests.paths import ROOT, TINY
from tests.projects import write_project

TYPES = {"user_id": "categorical", "item_id": "categorical", "level": "categorical", "a": "embedding"}
FEATURES = Features(TYPES, list(TYPES), ["a"], "user_id", "item_id", True, True)
FACTS = Facts({"train": 80_024}, 9, 9, 9.0, {}, {"text": "a"}, "user_id")


def has_first(plan):
    """Whether the first trial is in the space."""
    for name, value in plan.first.items():
        tried = plan.space[name]
        assert tried["low"] <= value <= tried["high"] if isinstance(tried, dict) else value in tried, name
    return plan.first.keys() == plan.space.keys()


def test_models_suit_the_data():
    def tried(facts, features):
        return {plan.model for plan in plans_for("tiny_mm", facts, features)}

    without_user = replace(FEATURES, active=["item_id", "a"], types={"item_id": "categorical", "a": "embedding"})
    assert tried(FACTS, FEATURES) == set(MODELS)
    assert tried(replace(FACTS, history_mean=2.0), FEATURES) == set(MODELS) - {"Transformer_DCN"}
    assert tried(FACTS, without_user) == set(MODELS) - {"LightFM"}


@pytest.mark.parametrize("model", MODELS)
def test_settings_by_size(model):
    small = plan_for(model, "tiny_mm", replace(FACTS, rows={"train": 600}), FEATURES)
    large = plan_for(model, "tiny_mm", Facts({"train": 10**7}, 9, 9, 9.0, {}, {}, has_gauc=False), FEATURES)
    assert has_first(small)
    assert has_first(large)
    assert small.settings["batch_size"] < large.settings["batch_size"]
    assert small.settings["epochs"] > large.settings["epochs"]
    assert ("gAUC" in small.settings["metrics"], "gAUC" in large.settings["metrics"]) == (True, False)
    assert ("group_id" in small.settings, "group_id" in large.settings) == (True, False)


def test_the_transformer_is_slow_and_sees_fewer_items():
    slow, other = (plan_for(model, "tiny_mm", FACTS, FEATURES) for model in ("Transformer_DCN", "DIN"))
    assert slow.settings["max_len"] < other.settings["max_len"]
    assert slow.cost > other.cost


def test_the_average_begins_after_two_epochs():
    for rows, begins in ((80_024, 626), (2 * 10**6, 978)):  # of batches of 256, and of 4,096
        for model in MODELS:
            plan = plan_for(model, "tiny_mm", replace(FACTS, rows={"train": rows}), FEATURES)
            has_average = model != "LightFM"
            assert plan.space.get("swa_start") == ([begins, None] if has_average else None)
            assert plan.first.get("swa_start") == (begins if has_average else None)
            assert plan.first["learning_rate"] == SWA_LEARNING_RATE.get(model, 4e-3 if has_average else 5e-3)


@pytest.mark.parametrize(
    ("rows", "items", "embeddings", "low", "high", "first"),
    [
        (12_000, 9, True, 1e-4, 2e-2, 1e-2),
        (40_000, 9, False, 1e-5, 1e-2, 2e-3),
        (80_000, 8_001, True, 1e-6, 1e-3, 2e-4),
        (80_000, 8_000, False, 1e-6, 1e-3, 2e-4),
        (80_000, 8_001, False, 1e-5, 1e-2, 2e-3),
        (3_000_000, 400_000, False, 1e-7, 1e-3, 1e-5),
    ],
)
def test_few_rows_have_a_strong_penalty(rows, items, embeddings, low, high, first):
    """As ``prepare log`` writes it."""
    facts = replace(FACTS, rows={"train": rows}, trained_items=items)
    features = replace(FEATURES, active=list(TYPES) if embeddings else ["user_id", "item_id", "level"])
    plan = plan_for("DIN_MM", "tiny_mm", facts, features)
    assert has_first(plan)
    assert plan.space["embedding_regularizer"] == {"low": low, "high": high, "log": True}
    assert plan.first["embedding_regularizer"] == first
    factors = plan_for("LightFM", "tiny_mm", facts, FEATURES)
    assert factors.space["embedding_regularizer"] == {"low": 1e-6, "high": 1e-3, "log": True}
    assert factors.first["embedding_regularizer"] == factor_penalty_for(rows).first


@pytest.mark.parametrize(
    ("rows", "seconds", "epochs"),
    [
        (398_262, np.inf, 20),
        (398_262, 3600, 20),
        (398_262, 150, 8),
        (398_262, 225, 11),
        (12_000, 1, 8),
        (12_000, 90, 20),
    ],
)
def test_epochs_fit_the_time_of_a_trial(rows, seconds, epochs):
    plan = plan_for("DIN_MM", "tiny_mm", replace(FACTS, rows={"train": rows}), FEATURES, seconds)
    assert plan.settings["epochs"] == epochs


def test_dropout_of_item_ids_is_tried_where_targets_are_cold():
    for cold, tried in ((0.005, False), (0.05, True)):
        facts = replace(FACTS, cold={"test": cold})
        plan = plan_for("DIN_MM", "tiny_mm", facts, FEATURES)
        assert ("feature_specs" in plan.space) is tried
        assert plan.first.get("feature_specs") == ([] if tried else None)
        of_users = replace(FEATURES, active=["user_id"])
        assert "feature_specs" not in plan_for("DIN_MM", "tiny_mm", facts, of_users).space


def test_norms_of_embeddings_are_tried_where_none_is_set():
    norm = {"name": ["a"], "norm": "l2"}
    features = replace(FEATURES, plain=("a",))
    plan = plan_for("DIN", "tiny_mm", FACTS, features)
    assert plan.space["feature_specs"] == [[], [norm]]
    assert has_first(plan)
    plan = plan_for("DIN", "tiny_mm", replace(FACTS, cold={"test": 0.05}), features)
    assert [{"name": "item_id", "dropout": 0.1}, norm] in plan.space["feature_specs"]
    assert plan.first["feature_specs"] == []


def test_unknown_items_are_trained_where_the_target_allows_it():
    facts = replace(FACTS, rows={"train": 80_024, "test": 100}, cold={"test": 0.05}, negatives=1)
    for allowed, spec in ((True, {"dropout": 0.1, "unknown": "trained"}), (False, {"dropout": 0.1})):
        features = replace(FEATURES, types={**TYPES, "asin": "categorical"}, target="asin", trains_unknown=allowed)
        features = replace(features, active=["user_id", "asin"])
        plan = plan_for("DIN", "tiny_mm", facts, features)
        assert plan.first["feature_specs"] == [{"name": "asin", **spec}]
        specs = [entry for specs in plan.space["feature_specs"] for entry in specs]
        assert any("unknown" in entry for entry in specs) is allowed
        assert [{"name": "asin", "dropout": 0.1}] in plan.space["feature_specs"]
        assert [] in plan.space["feature_specs"]


@pytest.mark.parametrize("negatives", [0, 1])
@pytest.mark.parametrize("cold", [0, 50, 900])
@pytest.mark.parametrize("rows", [4_000, 80_000, 200_000])
def test_the_first_trial_has_the_settings_that_prepare_log_writes(rows, cold, negatives):
    splits = {"train": SplitSummary(rows=rows), "test": SplitSummary(rows=1000, cold=cold)}
    summary = Summary(9, 10, splits, {"a": 1.0}, vocab_sizes={"user_id": 11})
    facts = replace(
        FACTS, rows={"train": rows, "test": 1000}, cold={"test": cold / 1000}, negatives=negatives
    )  # fmt: skip
    for model, settings in first_experiments(summary, 100, True, sampled=negatives > 0).items():
        plan = plan_for(model, "X", facts, FEATURES)
        tried = {**plan.settings, **plan.first}
        assert has_first(plan)
        assert {name: tried.get(name) for name in settings} == settings
        assert tried.get("factor_features") == settings.get("factor_features")
        assert (tried.get("feature_specs") or []) == settings.get("feature_specs", [])
        assert tried["use_features"] == FEATURES.active


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "negatives"), [({"labels": ["click"]}, 0), ({"labels": ["click", "like"]}, 0), ({"negatives": 2}, 2)]
)
def test_the_first_trial_is_the_experiment_in_the_folder_of_a_log(tmp_path, monkeypatch, options, negatives):
    """Key by key; a further setting of the trial is the default of the model, but for the softmax that is not used."""
    log, *tables = make_log(1, rows=150)
    log = log.with_columns(like=log["click"].reverse()) if "labels" in options else log.drop("click")
    reader = load_reader("log")(write_source(tmp_path / "source", log, *tables), tmp_path / "scratch", 100)
    labels = options.get("labels", ["label"])
    reader.configure({"roles": ROLES, "interactions": "interactions*", **options})
    out = tmp_path / "shop"
    experiments = write_config(out, "shop", reader, Writer(reader, "log", out, verbose=0).write(), labels[-1:])
    monkeypatch.chdir(out)
    dataset = usable(ExperimentConfig.load(out, experiments[0]))
    monkeypatch.setattr("fuxictr_mm.autopilot.facts.LEAST_USERS", 10)
    facts = look(dataset)
    assert facts.negatives == negatives
    features = Features.of(dataset, list(facts.embeddings.values()))
    for written in (load_model_config(out, expid) for expid in experiments):
        plan = plan_for(written["model"], "shop", facts, features)
        tried = {**plan.settings, **plan.first}
        assert {name: tried.get(name) for name in written} == written
        assert tried["use_features"] == features.active
        further = tried.keys() - written.keys() - {"use_features", "model_root", "verbose", "din_use_softmax"}
        defaults = {**default_settings(load_model_class(written["model"])), "feature_specs": []}
        assert {name: tried[name] for name in further} == {name: defaults[name] for name in further}


def test_item_ids_are_not_dropped_for_embeddings_that_are_no_features():
    """Also the penalty is that of items without embeddings."""
    facts = replace(FACTS, rows={"train": 80_000, "test": 100}, trained_items=9_000, cold={"test": 0.9})
    for active, dropout, penalty in ((list(TYPES), 0.5, 2e-4), (["user_id", "item_id"], None, 2e-3)):
        plan = plan_for("DIN_MM", "tiny_mm", facts, replace(FEATURES, active=active))
        assert has_first(plan)
        assert [spec["dropout"] for spec in plan.first["feature_specs"]] == ([dropout] if dropout else [])
        assert plan.first["embedding_regularizer"] == penalty


def test_a_factorization_beside_the_attention():
    plan = plan_for("DIN_MM", "tiny_mm", FACTS, FEATURES)
    assert plan.space.items() >= FEATURES.factors.items()
    assert plan.first["factor_dim"] == 17
    assert plan.space["factor_history"] == [False, True]
    without = plan_for("DIN_MM", "tiny_mm", replace(FACTS, negatives=1), replace(FEATURES, active=["item_id", "level"]))
    assert not any(name.startswith("factor") for name in (*without.space, *without.settings))
    assert "factor_dim" not in plan_for("DIN", "tiny_mm", FACTS, FEATURES).space


@pytest.mark.slow
def test_every_model_trains_the_embedding_of_unknown_items(tmp_path, monkeypatch, dataset):
    entry = load_dataset_config(ROOT, "tiny_mm")
    users = {"name": "user_id", "dtype": "int", "type": "categorical", "vocab_size": 2001}
    entry["feature_cols"] = [users, *(c for c in entry["feature_cols"] if c["name"] != "user_id")]
    for split in ("train", "valid"):
        pq.write_table(pq.read_table(TINY / f"{split}.parquet")[:600], tmp_path / f"{split}.parquet")
        entry[f"{split}_data"] = str(tmp_path / f"{split}.parquet")
    entry |= {"test_data": None, "item_info": [str(ROOT / path) for path in entry["item_info"]], "data_root": "./"}
    columns = [FeatureConfig.model_validate(column) for column in entry["feature_cols"]]
    features = Features.of(dataset.model_copy(update={"feature_cols": columns}), [])
    facts = replace(look(dataset), rows={"train": 600, "valid": 600}, cold={"valid": 0.5}, negatives=1)
    experiments = {}
    for model in MODELS:
        plan = plan_for(model, "tiny_mm", facts, features)
        norm = {"name": ["item_emb_d16"], "norm": "l2"}
        specs = {"feature_specs": [{"name": "item_id", "dropout": 0.1, "unknown": "trained"}, norm]}
        assert specs["feature_specs"] in plan.space["feature_specs"]
        experiments[model] = {**plan.settings, **plan.first, **specs, "epochs": 1, "record": False}
    write_project(tmp_path, experiments, {"tiny_mm": entry})
    monkeypatch.chdir(tmp_path)
    for model in experiments:
        run = Experiment.load(model, tmp_path).fit()
        assert set(run.valid) == {"AUC", "gAUC", "logloss"}
        assert any("unknown_item" in name for name in torch.load(run.weights, weights_only=True))


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
    dataset = usable(ExperimentConfig.load(tmp_path, "X"))
    facts = look(dataset)
    assert facts.rows == {"train": 200, "valid": 200}
    assert facts.items == facts.trained_items == len({row["item_id"] for row in rows})
    assert facts.history_mean == np.mean([sum(i != 0 for i in row["item_seq"]) for row in rows])
    assert facts.cold == {"valid": 0}
    assert facts.group == "uid"
    features = Features.of(dataset, [])
    assert features.computed == []
    assert features.to_try == [["uid", "asin", "seen"]]
    experiments = {}
    for model in MODELS:
        plan = plan_for(model, "shop", facts, features)
        assert has_first(plan)
        experiments[model] = {**plan.settings, **plan.first, "epochs": 1, "record": False}
    (tmp_path / "model_config.yaml").write_text(json.dumps(experiments))
    for model in experiments:
        assert set(Experiment.load(model, tmp_path).fit().valid) == {"AUC", "gAUC", "logloss"}
