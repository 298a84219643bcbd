"""Models written for FuxiCTR: nothing of the configuration is evaluated, their weights are read and written safely."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm import compat
from fuxictr_mm.config import ExperimentConfig, ModelSettings, list_experiments
from fuxictr_mm.data.schema import parse_features
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.training import loop
from tests.errors import raises_naming
from tests.paths import ROOT
from tests.tensors import read_tensors
from tests.two_labels import MULTI_TASK, write_world

MODEL = """
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class Plain(BaseModel):
    def __init__(self, feature_map, gpu=-1, embedding_dim=4, learning_rate=1e-2, embedding_regularizer=None, **kwargs):
        super().__init__(feature_map, gpu=gpu, embedding_regularizer=embedding_regularizer, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=[8])
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        return {"y_pred": self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)).sigmoid()}
"""


#: As the challenge's files are written: a tuple comes in, items are rows of one long dict, the target is the last one,
#: and the model adds a feature of its own to the feature map.
CHALLENGE = """
import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class Plain(BaseModel):
    def __init__(self, feature_map, gpu=-1, embedding_dim=4, learning_rate=1e-2, accumulation_steps=1, **kwargs):
        super().__init__(feature_map, gpu=gpu, **kwargs)
        self.accumulation_steps = accumulation_steps
        self.width = sum(s.get("embedding_dim", embedding_dim) for s in feature_map.features.values()
                         if s.get("source") == "item")
        feature_map.features["code"] = {"type": "categorical", "source": "item", "vocab_size": 5, "embedding_dim": 4}
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim, not_required_feature_columns=["code"])
        self.code = FeatureEmbedding(feature_map, embedding_dim, required_feature_columns=["code"])
        self.mlp = MLP_Block(embedding_dim + 2 * self.width + 4, output_dim=1, hidden_units=[32])
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        batch_dict, item_dict, mask = self.get_inputs(inputs)
        code = self.code({"code": item_dict["item_id"].view(len(mask), -1)[:, -1] % 5}, flatten_emb=True)
        items = self.embedding_layer(item_dict, flatten_emb=True).view(len(mask), -1, self.width)
        history = (items[:, :-1] * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        parts = [self.embedding_layer(batch_dict, flatten_emb=True), items[:, -1], history, code]
        return {"y_pred": self.mlp(torch.cat(parts, dim=-1)).sigmoid()}

    def get_inputs(self, inputs, feature_source=None):
        batch_dict, item_dict, mask = inputs
        columns = {n: v.to(self.device) for n, v in batch_dict.items() if n not in self.feature_map.labels
                   and self.feature_map.features[n]["type"] != "meta"}
        for name, value in item_dict.items():
            item_dict[name] = value.to(self.device)
        return columns, item_dict, mask.to(self.device)

    def get_labels(self, inputs):
        return inputs[0][self.feature_map.labels[0]].to(self.device).float().view(-1, 1)

    def get_group_id(self, inputs):
        return inputs[0][self.feature_map.group_id]

    def train_step(self, batch_data):
        loss = self.compute_loss(self.forward(batch_data), self.get_labels(batch_data)) / self.accumulation_steps
        loss.backward()
        if (self._batch_index + 1) % self.accumulation_steps == 0:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self._max_gradient_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss
"""

#: As FuxiCTR's sequence models are written: names of a target and of a sequence among the columns.
SEQUENCE = """
import torch
from fuxictr.pytorch.layers import DIN_Attention, FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel


class Plain(BaseModel):
    def __init__(self, feature_map, gpu=-1, embedding_dim=4, learning_rate=1e-2, din_target_field=("item_id",),
                 din_sequence_field=("item_seq",), **kwargs):
        super().__init__(feature_map, gpu=gpu, **kwargs)
        self.target, self.sequence = din_target_field, din_sequence_field
        self.embedding_layer = FeatureEmbeddingDict(feature_map, embedding_dim)
        self.attention = DIN_Attention(embedding_dim, attention_units=[8])
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=[8])
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        X = self.get_inputs(inputs)
        emb = self.embedding_layer(X)
        mask = X[self.sequence].long() != 0
        emb[self.sequence] = self.attention(emb[self.target], emb[self.sequence], mask)
        return {"y_pred": self.mlp(self.embedding_layer.dict2tensor(emb, flatten_emb=True)).sigmoid()}
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that loads the experiment of a model file, with the settings given."""
    (tmp_path / "model_config.yaml").write_text(
        "Plain_tiny: {model: Plain, dataset_id: tiny_mm, epochs: 1, embedding_dim: 4, max_len: 20, batch_size: 1000,"
        " use_features: [likes_level, item_id, item_tags]}"
    )
    shutil.copy(ROOT / "dataset_config.yaml", tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")

    def read(model=MODEL, **settings):
        (tmp_path / "Plain.py").write_text(model)
        sys.modules.pop("fuxictr_mm.model_zoo.Plain", None)
        settings = {"model_root": str(tmp_path), "verbose": 0, **settings}
        return Experiment.load("Plain_tiny", tmp_path, model_zoo=tmp_path, **settings)

    return read


def test_no_setting_is_evaluated(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises_naming(ConfigError, "loss: "):
        start(loss="x if open('hacked', 'w') else 0")
    with raises_naming(ConfigError, "optimizer", "'foo'"):
        start(optimizer="foo")
    with raises_naming(ConfigError, "mse_los", "'mse_loss'"):
        start(loss="mse_los")
    with raises_naming(ConfigError, "embedding_regularizer is -1"):
        start(embedding_regularizer=-1)
    with pytest.raises(ConfigError, match=r"net_regularizer is .l2"):
        start(net_regularizer="l2(open('hacked', 'w'))")
    assert not os.path.exists("hacked")


def test_vectors_that_should_train_are_refused(start):
    specs = [{"name": "item_emb_d16", "freeze_emb": False}]
    with raises_naming(ConfigError, "'item_emb_d16'", "freeze_emb is False", "Plain"):
        start(feature_specs=specs)


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"ema": 0.9}, "ema is 0.9"),
        ({"embedding_weight_decay": 0.1}, "embedding_weight_decay is 0.1"),
        ({"lr_schedule": "cosine"}, "lr_schedule is cosine"),
        ({"feature_specs": [{"name": "item_id", "dropout": 0.1}]}, "'item_id': dropout is 0.1"),
    ],
)
def test_settings_of_our_own_models_are_refused(start, settings, value):
    with raises_naming(ConfigError, value, "Plain"):
        start(**settings)


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
    "label_smoothing": 0.1, "accumulation_steps": 2,
}  # fmt: skip


def test_no_setting_of_training_is_ignored_silently(start):
    # Weights of labels are refused by a model of one label, and read by one of several.
    assert ModelSettings.model_fields.keys() == {*READ, *NOT_READ, "task_weights"}
    assert start(**READ).config.accumulation_steps == 1
    for key, value in NOT_READ.items():
        with raises_naming(ConfigError, f"{key} is {value}, but Plain"):
            start(**{key: value})
    start(**{key: ModelSettings.model_fields[key].default for key in NOT_READ})
    named = MODEL.replace("embedding_dim=4,", "embedding_dim=4, accumulation_steps=1,")
    assert named != MODEL
    start(named, accumulation_steps=2)  # its own


def test_a_run_of_an_older_version_with_an_ignored_setting_is_scored(start, caplog):
    run = start().fit()
    older = replace(run, config={**run.config, "accumulation_steps": 2})
    Experiment.of_run(older)
    assert "accumulation_steps is 2" in caplog.text


def test_a_view_that_the_model_cannot_take_is_refused(start):
    with raises_naming(ConfigError, "batch_view is jagged", "Plain", "challenge", "flat"):
        start(batch_view="jagged")


def test_a_whole_number_regularizes(start):
    """FuxiCTR takes 1 for no regularizer at all."""

    def norm(value):
        run = start(embedding_regularizer=value).fit()
        state = read_tensors(run.weights)
        return state["embedding_layer.embedding_layer.embedding_layers.item_id.weight"].norm()

    ours = norm(1)
    assert ours == norm(1.0)
    assert ours < norm(None) / 2


def train_and_score(start, model, **settings):
    run = start(model, **settings).fit()
    scores = run.predict()
    assert 0 <= scores.min() < scores.max() <= 1
    return run


ALL = ["likes_level", "item_id", "item_tags", "item_emb_d16"]
HISTORY = {
    "use_features": [*ALL, "item_seq"],
    "feature_specs": [{"name": "item_seq", "type": "sequence", "share_embedding": "item_id", "feature_encoder": None}],
}


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        (CHALLENGE, {}, ["batch_view: flat", "ValueError", "batch_view: challenge"]),
        (MODEL, {"batch_view": "challenge"}, ["batch_view: challenge", "batch_view: flat"]),
    ],
)
def test_a_view_that_the_file_cannot_take_is_one_line(start, model, settings, words):
    experiment = start(model, use_features=ALL, **settings)
    with raises_naming(ConfigError, "Plain_tiny", "Plain.forward", *words):
        experiment.fit()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise RuntimeError('shapes do not fit')", "RuntimeError: shapes do not fit"),
        ("inputs['fs1']", "KeyError: 'fs1'"),
        ("self.dnn", "AttributeError"),
    ],
)
def test_advice_about_the_format_is_given_only_where_it_is_the_cause(start, line, reason):
    model = MODEL.replace("def forward(self, inputs):\n", f"def forward(self, inputs):\n        {line}\n")
    with raises_naming(ConfigError, reason, "Plain.py, line") as caught:
        start(model).fit()
    assert "batch_view" not in str(caught.value)


@pytest.mark.parametrize("encoder", ["layers.SENet(5)", "layers.SENet(4)"])
def test_an_encoder_without_pooling_is_named(start, encoder):
    with raises_naming(ConfigError, "item_tags", encoder):
        start(feature_specs=[{"name": "item_tags", "feature_encoder": encoder}]).fit()


def test_a_sequence_without_an_encoder_is_named(start):
    with raises_naming(ConfigError, "item_tags", "feature_encoder: null"):
        start(feature_specs=[{"name": "item_tags", "feature_encoder": None}]).fit()


def test_a_file_may_take_a_sequence_as_its_encoder_gives_it(start):
    sequence = {"name": "item_seq", "type": "sequence", "share_embedding": "item_id", "feature_encoder": "nn.Tanh()"}
    fields = {"din_target_field": "item_id", "din_sequence_field": "item_seq"}
    assert start(SEQUENCE, **{**HISTORY, "feature_specs": [sequence]}, **fields).fit().valid


@pytest.mark.parametrize("reads", [None, "likes_level"])
def test_a_context_column_missing_in_the_item_dict_names_the_setting(start, reads):
    """The published configurations of such files do not say that their loader adds the column."""
    model = CHALLENGE.replace(
        '        feature_map.features["code"]',
        '        self.width += embedding_dim\n        feature_map.features["code"]',
    )
    if reads:
        model = CHALLENGE.replace(
            "        items = self.embedding", f"        item_dict['{reads}']\n        items = self.embedding"
        )
    with raises_naming(ConfigError, "likes_level", "in_item_dict: True"):
        start(model, batch_view="challenge", use_features=ALL).fit()


@pytest.mark.parametrize("value", ["float('nan')", "1.5"])
def test_predictions_that_are_no_probabilities_are_one_line(start, value):
    """As DIN_att6 gives for an empty history: torch's binary cross entropy raises in the loss, not in forward."""
    model = MODEL.replace(".sigmoid()}", f".sigmoid() + {value}}}")
    with raises_naming(DataError, "Plain.forward"):
        start(model).fit()


def test_labels_and_groups_of_the_challenges_format_need_no_method(start):
    own = CHALLENGE.index("    def get_labels"), CHALLENGE.index("    def train_step")
    model = CHALLENGE[: own[0]] + CHALLENGE[own[1] :]
    settings = {"batch_view": "challenge", "use_features": ALL, "metrics": ["AUC", "gAUC"], "group_id": "user_id"}
    expected = start(CHALLENGE, **settings).fit().valid
    assert expected.keys() >= {"AUC", "gAUC"}
    assert start(model, **settings).fit().valid == expected


def test_a_context_column_in_both_dicts_of_the_challenges_format(start):
    """As the loader of DIN_att6 gives likes and views levels: of the row, and of every item."""
    model = CHALLENGE.replace(
        '        feature_map.features["code"]',
        '        self.width += embedding_dim\n        feature_map.features["code"]',
    )
    specs = [{"name": "likes_level", "in_item_dict": True}]
    train_and_score(start, model, batch_view="challenge", use_features=ALL, feature_specs=specs)
    experiment = start(model, batch_view="challenge", use_features=ALL, feature_specs=specs)
    dataset = experiment.load_dataset({"valid": True})
    loader = experiment.make_loader(dataset.splits["valid"], experiment.build_model(dataset))
    batch_dict, item_dict, mask = next(iter(loader))
    levels, ids = item_dict["likes_level"], item_dict["item_id"]
    assert levels.shape == ids.shape == (mask.shape[0] * (mask.shape[1] + 1),)
    file = pq.read_table(ROOT / "data/tiny_mm/item_feature.parquet", columns=["item_id", "likes_level"]).to_pydict()
    stored = {0: 0, **dict(zip(file["item_id"], file["likes_level"], strict=True))}
    assert levels.tolist() == [stored[i] for i in ids.tolist()]
    assert batch_dict["likes_level"].shape == mask.shape[:1]


@pytest.mark.parametrize("own", [True, False])
def test_the_catalogue_of_the_published_quant_is_in_the_entry_of_the_dataset(start, tmp_path, own, caplog):
    """A file that takes ``global_item_info`` gets the path; for our models, the log says that it has no effect."""
    path = tmp_path / "dataset_config.yaml"
    entry = "global_item_info: ./data/tiny_mm/item_info.parquet\n    item_info:"
    path.write_text(path.read_text().replace("item_info:", entry, 1))
    if own:
        with caplog.at_level("INFO"):
            Experiment.load("Plain_tiny", tmp_path, model="DIN_MM", attention_dim=8)
        assert "global_item_info" in caplog.text
        return
    model = MODEL.replace("gpu=-1,", "gpu=-1, global_item_info=None,").replace(
        "        self.mlp", "        self.catalogue = global_item_info\n        self.mlp"
    )
    experiment = start(model)
    assert Path(experiment.build_model(experiment.load_dataset({})).catalogue).is_file()


@pytest.mark.parametrize(
    ("model", "settings", "floor"),
    [
        (MODEL, {}, 0.52),
        (CHALLENGE, {"batch_view": "challenge"}, 0.62),
        (CHALLENGE, {"batch_view": "challenge", "accumulation_steps": 2}, 0.55),
    ],
    ids=["flat", "challenge", "accumulating"],
)
def test_files_written_for_other_code_learn(start, model, settings, floor):
    """The feature that the model for the challenge adds is no column of the item files."""
    both = {"use_features": [*ALL, "txt_emb_pca8", "img_emb_pca8"], "group_id": "user_id", "metrics": ["AUC", "gAUC"]}
    both |= {"epochs": 4, "batch_size": 256, "embedding_dim": 8, "learning_rate": 3e-3}
    result = train_and_score(start, model, **both, **settings)
    assert result.valid["AUC"] > floor
    assert 0 < result.valid["gAUC"] < 1


def test_a_file_with_a_sequence_runs(start):
    run = train_and_score(start, SEQUENCE, din_target_field="item_id", din_sequence_field="item_seq", **HISTORY)
    state = read_tensors(run.weights)
    assert torch.equal(
        state["embedding_layer.embedding_layers.item_seq.weight"],
        state["embedding_layer.embedding_layers.item_id.weight"],
    )


def test_the_setting_that_differs_from_that_of_weights_is_named(start):
    weights = start().fit().weights
    experiment = start(embedding_dim=8)
    model = experiment.build_model(experiment.load_dataset({}))
    with raises_naming(UserError, "embedding_dim is 4", "config.yaml", "8"):
        model.load_weights(weights)


def test_a_group_id_of_one_column_in_a_list_is_taken_and_of_several_explained(start, tmp_path):
    """FuxiCTR takes a tuple of columns."""
    path = tmp_path / "model_config.yaml"
    one = path.read_text().replace("epochs: 1", "epochs: 1, group_id: [user_id], metrics: [AUC, gAUC]")
    path.write_text(one)
    assert start().config.group_id == "user_id"
    path.write_text(one.replace("[user_id]", "[user_id, likes_level]"))
    with raises_naming(ConfigError, "group_id", "['user_id', 'likes_level']"):
        start()


DEEP = "self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))"
LINEAR = (
    MODEL.replace("import FeatureEmbedding,", "import FeatureEmbedding, LogisticRegression,")
    .replace("        self.compile", "        self.linear = LogisticRegression(feature_map)\n        self.compile")
    .replace(DEEP, f"({DEEP} + self.linear(self.get_inputs(inputs)))")
)


def test_a_linear_term_weighs_stored_vectors(start):
    """FuxiCTR's own stops at the first batch: it stacks numbers and whole vectors."""
    run = train_and_score(start, LINEAR, use_features=ALL)
    state = read_tensors(run.weights)
    assert state["linear.embedding_layer.embedding_layer.feature_encoders.item_emb_d16.weight"].shape == (1, 16)


def test_the_weights_of_stored_vectors_train_at_the_models_rate_and_add_their_product(start):
    experiment = start(LINEAR, use_features=ALL, learning_rate=0.125)
    dataset = experiment.load_dataset({"train": True})
    model = experiment.build_model(dataset)
    weights = model.linear.embedding_layer.embedding_layer.feature_encoders["item_emb_d16"].weight
    group = next(g for g in model.optimizer.param_groups if any(p is weights for p in g["params"]))
    assert group["lr"] == 0.125
    batch = next(iter(experiment.make_loader(dataset.splits["train"], model)))
    inputs = model.get_inputs(batch)
    before = model.linear(inputs)
    moved = batch["item_emb_d16"] @ weights.T
    with torch.no_grad():
        weights.mul_(3)
    torch.testing.assert_close(model.linear(inputs), before + 2 * moved)


def test_older_names_of_arguments_and_losses_are_taken(start):
    plain = train_and_score(start, MODEL)
    older = (
        MODEL.replace("flatten_emb=True", "dynamic_emb_dim=True")
        + """
    def add_loss(self, inputs):
        return self.loss_fn(self.forward(inputs)["y_pred"], self.get_labels(inputs), reduction="mean")
"""
    )
    assert train_and_score(start, older).valid == plain.valid
    assert train_and_score(start, older, embedding_regularizer=1.0).valid != plain.valid


def test_what_a_file_redefines_in_vain_is_said(start, caplog):
    experiment = start(MODEL + "\n    def evaluate_metrics(self, *args):\n        return {}\n")
    experiment.build_model(experiment.load_dataset({}))
    assert "Plain overrides evaluate_metrics" in caplog.text


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_weights_are_read_without_running_anything(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = start()
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
    (tmp_path / "model_config.yaml").write_text("\n".join(blocks))
    shutil.copy(ROOT / "dataset_config.yaml", tmp_path)
    experiments = list_experiments(tmp_path)
    assert len(experiments) == len(blocks) > 0
    for expid in experiments:
        columns = ExperimentConfig.load(tmp_path, expid).columns
        assert "item_id" in [f.name for f in parse_features(columns)]


def test_a_model_that_decides_about_its_checkpoints_itself_does(start, caplog):
    """As files for the challenge do, to lower the learning rate by a factor of their own."""
    deciding = """
    def checkpoint_and_earlystop(self, logs, min_delta=1e-6):
        self.seen = [*getattr(self, "seen", []), logs["AUC"]]
        if len(self.seen) == 2:
            self._best_metric = logs["AUC"]
            self.save_weights(self.checkpoint)
        else:
            self._stopping_steps += 1
            self.lr_decay(factor=0.5)
        self._stop_training = len(self.seen) == 3
"""
    experiment = start(MODEL + deciding, epochs=9)
    dataset = experiment.load_dataset({"train": True, "valid": True})
    torch.manual_seed(0)
    model = experiment.build_model(dataset)
    train = experiment.make_loader(dataset.splits["train"], model, shuffle=True, training=True)
    valid = experiment.make_loader(dataset.splits["valid"], model)
    history = loop.fit(model, train, 9, valid)
    assert [entry["AUC"] for entry in history] == model.seen
    assert len(model.seen) == 3
    assert loop.evaluate(model, valid, ["AUC"])["AUC"] == pytest.approx(model.seen[1])
    assert model.optimizer.param_groups[0]["lr"] == pytest.approx(experiment.config.learning_rate / 4)
    assert "redefines" not in caplog.text


PREPROCESSING = """
import sys
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
    ours = {"_planned_steps", "_settings", "_is_distributed", "_modules"}
    assert found - ours <= set(compat.BASE_MODEL)
    kind = type("BaseModel", (), {"fit": lambda self: self._verbose})
    with raises_naming(ConfigError, "_batch_index", "test_compat.py"):
        compat.check_base_model(kind)
