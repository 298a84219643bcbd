"""Models written for FuxiCTR: nothing of the configuration is evaluated, their weights are read and written safely."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from fuxictr_mm import experiment
from fuxictr_mm.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[1]

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


@pytest.fixture
def start(tmp_path):
    """Return a function that reads the parameters of an experiment of the model above, with the settings given."""
    (tmp_path / "Plain.py").write_text(MODEL)
    (tmp_path / "model_config.yaml").write_text(
        "Plain_tiny: {model: Plain, dataset_id: tiny_mm, epochs: 1, embedding_dim: 4, max_len: 20, batch_size: 1000,"
        " use_features: [likes_level, item_id, item_tags]}"
    )
    shutil.copy(ROOT / "dataset_config.yaml", tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")

    def read(**settings):
        overrides = {"model_root": str(tmp_path), "verbose": 0, **settings}
        return experiment.read_params(tmp_path, "Plain_tiny", model_zoo=tmp_path, overrides=overrides)

    return read


def test_no_setting_is_evaluated(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="loss: there is no"):
        start(loss="x if open('hacked', 'w') else 0")
    with pytest.raises(ConfigError, match="optimizer: there is no 'foo'"):
        start(optimizer="foo")
    with pytest.raises(ConfigError, match="did you mean 'mse_loss'"):
        start(loss="mse_los")
    with pytest.raises(ConfigError, match="embedding_regularizer is -1"):
        start(embedding_regularizer=-1)
    with pytest.raises(ConfigError, match=r"net_regularizer is .l2"):
        start(net_regularizer="l2(open('hacked', 'w'))")
    assert not os.path.exists("hacked")


def test_vectors_that_should_train_are_refused(start):
    specs = [{"name": "item_emb_d16", "freeze_emb": False}]
    with pytest.raises(ConfigError, match="'item_emb_d16': freeze_emb is False, but Plain is no MultimodalModel"):
        start(feature_specs=specs)


def test_a_view_that_the_model_cannot_take_is_refused(start):
    with pytest.raises(ConfigError, match="batch_view is jagged, but Plain takes challenge or flat"):
        start(batch_view="jagged")


def test_a_whole_number_regularizes(start):
    """FuxiCTR takes 1 for no regularizer at all."""

    def norm(value):
        params, model_class = start(embedding_regularizer=value, epochs=2)
        experiment.run_experiment(params, model_class)
        state = torch.load(experiment.log_path(params).with_suffix(".model"), weights_only=True)
        return state["embedding_layer.embedding_layer.embedding_layers.item_id.weight"].norm()

    assert norm(1) == norm(1.0)
    assert norm(1) < norm(None) / 2


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("exploded",))


def test_weights_are_read_without_running_anything(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params, model_class = start()
    dataset = experiment.load_dataset(params, {"test": False})
    model = experiment.build_model(model_class, dataset, params)
    (tmp_path / "bomb.model").write_bytes(pickle.dumps({"x": Bomb()}))
    with pytest.raises(UserError, match=r"bomb\.model"):
        model.load_weights(tmp_path / "bomb.model")
    assert not os.path.exists("exploded")
    model.save_weights(tmp_path / "own.model")
    model.load_weights(tmp_path / "own.model")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.model")
    with pytest.raises(UserError, match="missing: "):
        model.load_weights(tmp_path / "other.model")
