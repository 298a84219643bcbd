"""An experiment as a folder for the hub: complete or not there, read back to the same scores, differences named."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import nn

from fuxictr_mm import hub, logs
from fuxictr_mm.errors import MissingFileError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.training.checkpoints import read_safetensors
from tests.errors import raises_naming
from tests.paths import ROOT
from tests.projects import write_project
from tests.tensors import assert_equal_tensors, read_tensors

TABLES = "embedding_layer.embedding_layers"

#: A model with one table under two names.
MODEL = """
from fuxictr.pytorch.layers import FeatureEmbeddingDict, MLP_Block
from fuxictr.pytorch.models import BaseModel


class Shared(BaseModel):
    def __init__(self, feature_map, gpu=-1, embedding_dim=4, learning_rate=1e-2, hidden_units=(8,), **kwargs):
        super().__init__(feature_map, gpu=gpu, **kwargs)
        self.embedding_layer = FeatureEmbeddingDict(feature_map, embedding_dim)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), output_dim=1, hidden_units=list(hidden_units))
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        emb = self.embedding_layer(self.get_inputs(inputs))
        emb["item_seq"] = emb["item_seq"].mean(1)
        return {"y_pred": self.mlp(self.embedding_layer.dict2tensor(emb, flatten_emb=True)).sigmoid()}
"""
SETTINGS = {
    "model": "Shared",
    "description": "two names, one table",
    "dataset_id": "tiny_mm",
    "epochs": 1,
    "embedding_dim": 4,
    "batch_size": 1000,
    "max_len": 20,
    "verbose": 0,
    "use_features": ["likes_level", "item_id", "item_emb_d16", "item_seq"],
    "feature_specs": [{"name": "item_seq", "type": "sequence", "share_embedding": "item_id", "feature_encoder": None}],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with a trained experiment ``Shared_tiny``."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "Shared.py").write_text(MODEL)
    settings = {**SETTINGS, "model_root": str(folder / "checkpoints")}
    write_project(folder, {"Shared_tiny": settings})
    read(folder).fit()
    return folder


def read(folder, **settings):
    return Experiment.load("Shared_tiny", folder, model_zoo=folder, **settings)


@pytest.fixture
def exported(trained, tmp_path):
    out = tmp_path / "out"
    hub.export(read(trained), out)
    return out


def test_a_folder_scores_as_its_experiment(trained, exported):
    experiment = read(trained)
    scores = experiment.predict()
    weights = experiment.paths.weights
    moved = weights.rename(weights.with_suffix(".moved"))
    try:
        np.testing.assert_array_equal(experiment.predict(weights=exported), scores)
    finally:
        moved.rename(weights)
    model = experiment.build_model(experiment.load_dataset({}))
    model.load_weights(exported)
    assert_equal_tensors(read_tensors(weights), model.state_dict())


def test_a_model_of_the_zoo_scores_as_its_export(tmp_path):
    """Its layers write dims into a feature map of the model's own, which loading compares with."""
    settings = {"model_root": str(tmp_path), "epochs": 1, "batch_size": 1000, "verbose": 0, "record": False}
    experiment = Experiment.load("DIN_MM_tiny", ROOT, model_zoo=ROOT / "model_zoo", **settings)
    experiment.fit()
    hub.export(experiment, tmp_path / "out")
    np.testing.assert_array_equal(experiment.predict(weights=tmp_path / "out"), experiment.predict())


def test_what_the_folder_holds(trained, exported):
    assert {p.name for p in exported.iterdir()} == {"model.safetensors", "config.json", "feature_map.json", "README.md"}
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["Shared"]
    assert config["parameters"]["embedding_dim"] == 4
    assert config["metrics"]["valid"] == read(trained).finished.result().valid
    assert str(trained) not in "".join(p.read_text() for p in exported.glob("*.[jm]*") if p.suffix != ".safetensors")
    features = json.loads((exported / "feature_map.json").read_text())["features"]
    assert [next(iter(f)) for f in features][-1] == "item_seq"


def test_the_card_has_the_recorded_metrics_in_its_front_matter(trained, exported):
    card = (exported / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "fuxictr-mm"
    result = front["model-index"][0]["results"][0]
    valid = read(trained).finished.result().valid
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"auc": valid["AUC"], "logloss": valid["logloss"]}
    assert "two names, one table" in card
    assert f"| AUC | {valid['AUC']:.6f} |" in card


def test_without_a_result_there_are_no_metrics(trained, tmp_path, caplog):
    hub.export(read(trained, learning_rate=0.5), tmp_path / "out")
    assert "the card has no metrics" in caplog.text
    assert "metrics" not in yaml.safe_load((tmp_path / "out/README.md").read_text().split("---")[1])


def test_the_data_may_have_moved_since(trained, tmp_path):
    shutil.copytree(ROOT / "data/tiny_mm", tmp_path / "moved/tiny_mm")
    experiment = read(trained, data_root=tmp_path / "moved")
    assert experiment.finished.result() is None
    hub.export(experiment, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["metrics"]["valid"] == read(trained).finished.result().valid


def test_a_shared_table_is_stored_once_and_read_under_both_names(trained, exported):
    path = exported / "model.safetensors"
    assert f"{TABLES}.item_id.weight" in load_file(path)
    assert f"{TABLES}.item_seq.weight" not in load_file(path)
    state = read_safetensors(path)
    assert torch.equal(state[f"{TABLES}.item_seq.weight"], state[f"{TABLES}.item_id.weight"])
    # As safetensors' own function understands it too.
    model = model_of(trained)
    load_model(model, path)
    assert torch.equal(model.state_dict()[f"{TABLES}.item_seq.weight"], state[f"{TABLES}.item_id.weight"])


def test_parts_of_one_memory_are_each_stored_whole(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    state = {"whole": whole, "row": whole[1], "turned": whole.T, "same": whole.view(3, 4), "none": whole[:0]}
    state |= {"shape": whole.view(4, 3), "type": whole.view(torch.int32)}
    hub.save_safetensors(state, tmp_path / "a.safetensors")
    found = read_safetensors(tmp_path / "a.safetensors")
    assert set(found) == set(state)
    assert_equal_tensors(found, state)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "same": "whole"}


def test_differences_of_the_configuration_are_named(trained, exported, caplog):
    read(trained, learning_rate=0.5, hidden_units=[16], model_root="elsewhere", seed=7).find_weights(exported)
    parts = ("config.json", "learning_rate is 0.001", "0.5 ", "hidden_units", "[16] ", "seed is 2025", "7 ")
    assert all(part in caplog.text for part in parts)
    assert "model_root" not in caplog.text
    caplog.clear()
    read(trained).find_weights(exported)
    assert not caplog.text


def model_of(trained, **settings):
    experiment = read(trained, **settings)
    return experiment.build_model(experiment.load_dataset({}))


@pytest.mark.parametrize(
    ("features", "names"),
    [
        (["item_id", "likes_level", "item_emb_d16", "item_seq"], ["likes_level, item_id"]),
        (["item_id", "item_emb_d16", "item_seq"], ["'likes_level'"]),
        (["likes_level", "views_level", "item_id", "item_emb_d16", "item_seq"], ["'views_level'"]),
    ],
)
def test_other_features_are_refused(trained, exported, features, names):
    """In another order the weights would load, and every score be wrong."""
    model = model_of(trained, use_features=features)
    for path in (exported, exported / "model.safetensors"):
        with raises_naming(UserError, *names):
            model.load_weights(path)


def test_another_vocabulary_is_refused(trained, exported):
    text = (exported / "feature_map.json").read_text()
    (exported / "feature_map.json").write_text(text.replace('"vocab_size": 11\n', '"vocab_size": 12\n'))
    with raises_naming(UserError, "likes_level.vocab_size is 12", "11"):
        model_of(trained).load_weights(exported)


@pytest.mark.parametrize("content", ["", "[]", '{"features": 3}', '{"features": [1]}', "\xff"])
def test_a_damaged_folder_is_one_line(trained, exported, content):
    (exported / "feature_map.json").write_bytes(content.encode("latin-1"))
    with raises_naming(UserError, "feature_map.json"):
        model_of(trained).load_weights(exported)
    (exported / "config.json").write_bytes(content.encode("latin-1"))
    with raises_naming(UserError, "config.json"):
        read(trained).find_weights(exported)


def test_only_safetensors_are_taken_of_a_folder(trained, exported):
    torch.save(nn.Linear(1, 1).state_dict(), exported / "pytorch_model.bin")
    (exported / "model.safetensors").unlink()
    with raises_naming(MissingFileError, "model.safetensors"):
        model_of(trained).load_weights(exported)


def test_nothing_is_overwritten_unasked(trained, exported, tmp_path):
    with raises_naming(UserError, exported, "--overwrite"):
        hub.export(read(trained), exported)
    (exported / "old").touch()
    hub.export(read(trained), exported, overwrite=True)
    assert not (exported / "old").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with raises_naming(UserError, tmp_path / "mine"):
        hub.export(read(trained), tmp_path / "mine", overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "out"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_export_leaves_what_was_there(trained, exported, tmp_path, monkeypatch, overwrite):
    out = exported if overwrite else tmp_path / "new"
    before = sorted(tmp_path.rglob("*"))

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "model_card", fail)
    with raises_naming(UserError, out, "No space left on device"):
        hub.export(read(trained), out, overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_told_by_the_folder(trained, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with raises_naming(UserError, tmp_path / "out", "No space left"):
        hub.export(read(trained), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_of_another_configuration_are_not_exported(trained, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    with raises_naming(UserError, "a.safetensors"):
        hub.export(read(trained), tmp_path / "out", weights=tmp_path / "a.safetensors")
    with raises_naming(MissingFileError, "fuxictr-mm train --expid Shared_tiny"):
        hub.export(read(trained, model_root=str(tmp_path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(trained, tmp_path, monkeypatch, capsys):
    from fuxictr_mm.cli import main

    monkeypatch.setattr(logs, "set_up_logging", lambda: None)
    arguments = ["--expid", "Shared_tiny", "--config", str(trained), "--model_zoo", str(trained)]
    main(["export-hub", *arguments, "--out", str(tmp_path / "out")])
    expected = f"{tmp_path / 'out'}: README.md, config.json, feature_map.json, model.safetensors"
    assert expected in capsys.readouterr().out
