"""Models written for FuxiCTR: nothing of the configuration is evaluated, their weights are read and written safely."""

import importlib.util
import os
import pickle
import re
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch

from fuxictr_mm import compat
from fuxictr_mm.config import ExperimentConfig, ModelSettings, list_experiments
from fuxictr_mm.data.schema import parse_features
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.runs import MODEL_CODE
from tests.errors import raises_naming
from tests.fuxictr_models import MODEL
from tests.paths import ROOT
from tests.projects import write_project
from tests.tensors import read_tensors
from tests.two_labels import MULTI_TASK, write_world


def test_no_setting_is_evaluated(load_model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises_naming(ConfigError, "loss: "):
        load_model_file(loss="x if open('hacked', 'w') else 0")
    with raises_naming(ConfigError, "optimizer", "'foo'"):
        load_model_file(optimizer="foo")
    with raises_naming(ConfigError, "mse_los", "'mse_loss'"):
        load_model_file(loss="mse_los")
    with raises_naming(ConfigError, "embedding_regularizer is -1"):
        load_model_file(embedding_regularizer=-1)
    with pytest.raises(ConfigError, match=r"net_regularizer is .l2"):
        load_model_file(net_regularizer="l2(open('hacked', 'w'))")
    assert not os.path.exists("hacked")


def test_vectors_that_should_train_are_refused(load_model_file):
    specs = [{"name": "item_emb_d16", "freeze_emb": False}]
    with raises_naming(ConfigError, "'item_emb_d16'", "freeze_emb is False", "Plain"):
        load_model_file(feature_specs=specs)


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"ema": 0.9}, "ema is 0.9"),
        ({"embedding_weight_decay": 0.1}, "embedding_weight_decay is 0.1"),
        ({"lr_schedule": "cosine"}, "lr_schedule is cosine"),
        ({"feature_specs": [{"name": "item_id", "dropout": 0.1}]}, "'item_id': dropout is 0.1"),
    ],
)
def test_settings_of_our_own_models_are_refused(load_model_file, settings, value):
    with raises_naming(ConfigError, value, "Plain"):
        load_model_file(**settings)


#: A value other than the default of every setting of training that FuxiCTR's base class, its models, or this library's
#: loop reads of a FuxiCTR model.
READ = {
    "model_root": "other", "task": "regression", "loss": "mse_loss", "optimizer": "Adagrad", "learning_rate": 0.5,
    "embedding_dim": 3, "max_len": 7, "embedding_regularizer": 1e-3, "net_regularizer": 1e-3, "metrics": ["logloss"],
    "monitor": "logloss", "monitor_mode": "min", "early_stop_patience": 5, "eval_steps": 3, "save_best_only": False,
    "reduce_lr_on_plateau": False, "max_gradient_norm": 1.0, "precision": "tf32", "verbose": 2,
}  # fmt: skip
#: The same of those that only a MultimodalModel reads.
NOT_READ = {
    "embedding_learning_rate": 0.1, "embedding_weight_decay": 0.1, "weight_decay": 0.1, "table_optimizer": "sgd",
    "lr_schedule": "cosine", "plateau_patience": 2, "warmup_steps": 3, "ema": 0.9, "swa_start": 5,
    "label_smoothing": 0.1, "accumulation_steps": 2, "sync_batch_norm": False,
}  # fmt: skip


def test_no_setting_of_training_is_ignored_silently(load_model_file):
    # Weights of labels are refused by a model of one label, and read by one of several.
    assert ModelSettings.model_fields.keys() == {*READ, *NOT_READ, "task_weights"}
    assert load_model_file(**READ).config.accumulation_steps == 1
    for key, value in NOT_READ.items():
        with raises_naming(ConfigError, f"{key} is {value}, but Plain"):
            load_model_file(**{key: value})
    load_model_file(**{key: ModelSettings.model_fields[key].default for key in NOT_READ})
    named = MODEL.replace("embedding_dim=4,", "embedding_dim=4, accumulation_steps=1,")
    assert named != MODEL
    load_model_file(named, accumulation_steps=2)  # its own


def test_a_run_of_an_older_version_with_an_ignored_setting_is_scored(load_model_file, caplog):
    run = load_model_file().fit()
    older = replace(run, config={**run.config, "accumulation_steps": 2})
    Experiment.of_run(older)
    assert "accumulation_steps is 2" in caplog.text


def test_a_run_of_another_file_of_its_model_is_scored_with_a_warning(load_model_file, caplog):
    """Weights of the same shapes load, but defaults may have changed."""
    run = load_model_file().fit()
    caplog.clear()  # training names the run as well, where an earlier test has set the level of the log
    Experiment.of_run(run)
    Experiment.of_run(replace(run, environment={}))  # of an older version, which saved no hash
    assert str(run.path) not in caplog.text
    Experiment.of_run(replace(run, environment={**run.environment, MODEL_CODE: "0" * 64}))
    assert str(run.path) in caplog.text


def test_a_whole_number_regularizes(load_model_file):
    """FuxiCTR takes 1 for no regularizer at all."""

    def norm(value):
        run = load_model_file(embedding_regularizer=value).fit()
        state = read_tensors(run.weights)
        return state["embedding_layer.embedding_layer.embedding_layers.item_id.weight"].norm()

    ours = norm(1)
    assert ours == norm(1.0)
    assert ours < norm(None) / 2


def test_the_setting_that_differs_from_that_of_weights_is_named(load_model_file):
    weights = load_model_file().fit().weights
    experiment = load_model_file(embedding_dim=8)
    model = experiment.build_model(experiment.load_dataset({}))
    with raises_naming(UserError, "embedding_dim is 4", "config.yaml", "8"):
        model.load_weights(weights)


def test_a_group_id_of_one_column_in_a_list_is_taken_and_of_several_explained(load_model_file, tmp_path):
    """FuxiCTR takes a tuple of columns."""
    path = tmp_path / "model_config.yaml"
    one = path.read_text().replace("epochs: 1", "epochs: 1, group_id: [user_id], metrics: [AUC, gAUC]")
    path.write_text(one)
    assert load_model_file().config.group_id == "user_id"
    path.write_text(one.replace("[user_id]", "[user_id, likes_level]"))
    with raises_naming(ConfigError, "group_id", "['user_id', 'likes_level']"):
        load_model_file()


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_weights_are_read_without_running_anything(load_model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = load_model_file()
    model = experiment.build_model(experiment.load_dataset({"test": False}))
    (tmp_path / "bomb.model").write_bytes(pickle.dumps({"x": Bomb()}))
    with raises_naming(UserError, "bomb.model"):
        model.load_weights(tmp_path / "bomb.model")
    assert not os.path.exists("exploded")
    model.save_weights(tmp_path / "own.model")
    model.load_weights(tmp_path / "own.model")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.model")
    with raises_naming(UserError, "other.model"):
        model.load_weights(tmp_path / "other.model")


def test_the_examples_of_the_documentation_are_right(tmp_path):
    """Their keys are known, and their features exist."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/drop_in.md").read_text(), flags=re.DOTALL)
    write_project(tmp_path, "\n".join(blocks))
    experiments = list_experiments(tmp_path)
    assert len(experiments) == len(blocks) > 0
    for expid in experiments:
        columns = ExperimentConfig.load(tmp_path, expid).columns
        assert "item_id" in [f.name for f in parse_features(columns)]


PREPROCESSING = """
import sys
import types
import fuxictr_mm.experiment
from fuxictr.metrics import evaluate_metrics
from fuxictr.preprocess import FeatureProcessor, build_dataset
from fuxictr.pytorch.layers.embeddings import pretrained_embedding
from fuxictr.pytorch.models import rank_model
import numpy as np
import pandas as pd

label, score = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.1, 0.9, 0.4, 0.3])
assert rank_model.evaluate_metrics(label, score, ["AUC"]) == evaluate_metrics(label, score, ["AUC"]) == {"AUC": 1.0}
np.savez("vectors.npz", key=np.arange(2), value=np.ones((2, 3)))
assert pretrained_embedding.load_pretrain_emb("vectors.npz", keys=["key", "value"])[1].shape == (2, 3)
pd.DataFrame({"user": ["a", "b", "a"], "label": [1, 0, 1]}).to_csv("train.csv", index=False)
column = {"name": "user", "active": True, "dtype": "str", "type": "categorical"}
processor = FeatureProcessor([column], {"name": "label", "dtype": "float"}, "made", ".")
train, _, _ = build_dataset(processor, train_data="train.csv", data_format="csv")
assert sys.modules["ray"].is_initialized()
rows = pd.read_parquet(train)
assert rows["user"][0] == rows["user"][2] != rows["user"][1]
"""


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="FuxiCTR wants half of the cores for ray, which must be one")
def test_what_was_deferred_is_fuxictrs_own(tmp_path):
    """Its preprocessing with the real ray, its metrics and its reader of embeddings."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PREPROCESSING]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_multi_task_model_trains_as_by_fuxictrs_own_loop(tmp_path):
    write_world(tmp_path, missing=0)
    experiment = Experiment.load("Towers", tmp_path, model_zoo=tmp_path / "zoo", shuffle=False, max_gradient_norm=10.0)
    run = experiment.fit()
    dataset = experiment.load_dataset({"train": True, "valid": True})
    ours = experiment.build_model(dataset)
    loaders = [experiment.make_loader(dataset.splits[split], ours) for split in ("train", "valid")]
    experiment.prepare_process()
    plain = type(ours)(dataset.feature_map, **experiment.config.model_arguments())
    plain.fit(loaders[0], epochs=2, validation_data=loaders[1])
    found = plain.evaluate(loaders[1], ["AUC", "logloss"])
    assert found.keys() == run.valid.keys()
    # The loss is summed in another order, and a pair of rows may change places.
    assert found == pytest.approx(dict(run.valid), abs=1e-4)


@pytest.mark.parametrize(
    ("expid", "settings", "words"),
    [
        ("Towers", {"num_tasks": 1, "task": "binary_classification", "loss": "bce"}, ["num_tasks", "1", "2"]),
        ("Towers", {"task": ["binary_classification"]}, ["task", "1", "click, like"]),
        ("Towers", {"loss": ["bce", "eval('1')"]}, ["loss", "eval"]),
        ("Towers", {"task_weights": {"clicks": 1}}, ["task_weights", "clicks"]),
    ],
)
def test_labels_that_a_multi_task_model_is_not_set_to(tmp_path, expid, settings, words):
    write_world(tmp_path, rows=400)
    with raises_naming(ConfigError, *words):
        Experiment.load(expid, tmp_path, model_zoo=tmp_path / "zoo", **settings).fit()


def test_a_model_of_one_label_is_refused_several(tmp_path):
    write_world(tmp_path, rows=400)
    text = MULTI_TASK.replace("MultiTaskModel", "BaseModel").replace("task=task, num_tasks=num_tasks, ", "")
    (tmp_path / "zoo" / "Towers" / "src" / "Towers.py").write_text(text)
    with raises_naming(ConfigError, "Towers", "click, like"):
        Experiment.load("Towers", tmp_path, model_zoo=tmp_path / "zoo").fit()


def test_attributes_of_the_base_model_are_checked():
    found = set()
    for path in (ROOT / "fuxictr_mm").rglob("*.py"):
        found |= set(re.findall(r"\bmodel\.(_[a-z]\w*)", path.read_text()))
    ours = {"_planned_steps", "_is_distributed", "_modules", "_trained"}
    assert found - ours <= set(compat.BASE_MODEL)
    kind = type("BaseModel", (), {"fit": lambda self: self._verbose})
    with raises_naming(ConfigError, "_batch_index", "test_compat.py"):
        compat.check_base_model(kind)


@pytest.mark.parametrize("name", ["fuxictr.features", "fuxictr.pytorch.models"])
def test_a_version_of_fuxictr_without_what_is_imported(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.find_spec("fuxictr_mm.fuxictr_imports")
    with raises_naming(ConfigError, name, "pip install fuxictr"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with raises_naming(ConfigError, name, "pip install fuxictr"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
