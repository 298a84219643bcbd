"""``fuxictr-mm diagnose`` from its options to its file."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from fuxictr_mm import cli
from fuxictr_mm.diagnosis.diagnose import find_trained
from fuxictr_mm.diagnosis.findings import SEVERITIES
from fuxictr_mm.errors import ConfigError, MissingFileError

ROOT = Path(__file__).resolve().parents[3]

#: A model of the challenge's form: a tuple comes in, items are rows of one long dict, FuxiCTR's attention and SENet.
CHALLENGE = """
import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block, MultiHeadTargetAttention, SqueezeExcitation
from fuxictr.pytorch.models import BaseModel


class Other(BaseModel):
    def __init__(self, feature_map, gpu=-1, embedding_dim=4, learning_rate=1e-2, **kwargs):
        super().__init__(feature_map, gpu=gpu, **kwargs)
        self.width = sum(s.get("embedding_dim", embedding_dim) for s in feature_map.features.values()
                         if s.get("source") == "item")
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.attention = MultiHeadTargetAttention(self.width, self.width, 1)
        self.gate = SqueezeExcitation(2, 1, "Sigmoid")
        self.mlp = MLP_Block(2 * embedding_dim + 2 * self.width, output_dim=1, hidden_units=[8])
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        batch_dict, item_dict, mask = self.get_inputs(inputs)
        items = self.embedding_layer(item_dict, flatten_emb=True).view(len(mask), -1, self.width)
        history = self.attention(items[:, -1], items[:, :-1], mask)
        context = self.gate(self.embedding_layer(batch_dict)).flatten(1)
        return {"y_pred": self.mlp(torch.cat([context, items[:, -1], history], dim=-1)).sigmoid()}

    def get_inputs(self, inputs, feature_source=None):
        batch_dict, item_dict, mask = inputs
        columns = {n: v for n, v in batch_dict.items() if n not in self.feature_map.labels
                   and self.feature_map.features[n]["type"] != "meta"}
        items = {n: v for n, v in item_dict.items() if self.feature_map.features[n]["type"] != "meta"}
        return columns, items, mask

    def get_labels(self, inputs):
        return inputs[0][self.feature_map.labels[0]].float().view(-1, 1)

    def get_group_id(self, inputs):
        return inputs[0][self.feature_map.group_id]
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the configuration, weights of its own, and a model file of another library."""
    for name in ("dataset_config.yaml", "model_config.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    for file in (ROOT / "model_zoo").glob("*.py"):
        (zoo / file.name).symlink_to(file)
    (zoo / "Other.py").write_text(CHALLENGE)
    config = yaml.safe_load((tmp_path / "model_config.yaml").read_text())
    config["Other_tiny"] = {**config["DIN_tiny"], "model": "Other", "batch_view": "challenge", "embedding_dim": 4}
    for key in [k for k in config["Other_tiny"] if k.startswith(("dnn", "attention", "net_", "batch_norm"))]:
        del config["Other_tiny"][key]
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(expid, path, seed=1):
    """Write untrained weights of an experiment."""
    import torch

    from fuxictr_mm.data.dataset import load_dataset
    from fuxictr_mm.experiment import build_model, read_params

    params, model_class = read_params(".", expid, model_zoo="zoo", overrides={"verbose": 0})
    torch.manual_seed(seed)
    model = build_model(model_class, load_dataset(params, {"valid": True}), params)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    model.save_weights(str(path))
    return params


def make_run(expid, name, *, finished=True, **changes):
    """Make a run's folder as training leaves it, as far as a diagnosis reads it."""
    folder = Path("checkpoints/tiny_mm") / expid / name
    params = save(expid, folder / "best.model")
    (folder / "config.yaml").write_text(yaml.safe_dump({**params, **changes}))
    (folder / "environment.json").write_text(json.dumps({"started_at": f"2026-01-01T00:00:{name[13:15]}"}))
    if finished:
        (folder / "result.json").write_text(
            json.dumps({"valid": {"AUC": 0.5}, "test": None, "seconds": 1.0, "valid_rows": 3000, "parameters": 1})
        )
    return folder


def run(*options):
    cli.main(["diagnose", "--model_zoo", "zoo", "--repeats", "1", "--rows", "400", *options])


def test_the_newest_finished_run_is_diagnosed(workplace, capsys):
    make_run("DIN_MM_tiny", "20260101-000001-seed1")
    newest = make_run("DIN_MM_tiny", "20260101-000002-seed1")
    make_run("DIN_MM_tiny", "20260101-000003-seed1", finished=False)
    before = set(workplace.rglob("*"))
    run("--expid", "DIN_MM_tiny")
    assert set(workplace.rglob("*")) - before == {workplace / newest / "diagnosis.json"}
    found = json.loads((newest / "diagnosis.json").read_text())
    assert (found["expid"], found["run"], found["model"], found["dataset_id"], found["split"]) == (
        "DIN_MM_tiny", newest.name, "DIN_MM", "tiny_mm", "valid"
    )  # fmt: skip
    assert found["weights"] == str(newest / "best.model")
    assert (found["rows"], found["rows_in_split"], found["repeats"]) == (400, 3000, 1)
    printed = capsys.readouterr().out
    assert printed.startswith("DIN_MM_tiny 20260101-000002-seed1 valid: AUC ")
    assert f"all figures: {newest / 'diagnosis.json'}" in printed
    run("--expid", "DIN_MM_tiny", "--run", "20260101-000001-seed1", "--quiet")
    assert capsys.readouterr().out == ""
    assert json.loads((newest.parent / "20260101-000001-seed1" / "diagnosis.json").read_text())["seed"] == 0


def test_a_run_is_built_by_its_own_configuration(workplace, capsys):
    folder = make_run("DIN_MM_tiny", "20260101-000001-seed1")
    config = yaml.safe_load(Path("model_config.yaml").read_text())
    config["DIN_MM_tiny"]["num_heads"] = 2
    Path("model_config.yaml").write_text(yaml.safe_dump(config))
    run("--expid", "DIN_MM_tiny", "--run", str(folder), "--json", "--quiet")
    found = json.loads(capsys.readouterr().out)
    assert found["attention"][0]["num_heads"] == 4
    assert found == json.loads((folder / "diagnosis.json").read_text())


def test_weights_without_a_record(workplace, capsys):
    save("DIN_tiny", "checkpoints/tiny_mm/DIN_tiny.model")
    run("--expid", "DIN_tiny", "--quiet")
    found = json.loads(Path("checkpoints/tiny_mm/DIN_tiny.diagnosis.json").read_text())
    assert found["run"] is None
    assert found["absent"] == {"senet": "the model has no SENet"}
    make_run("DIN_tiny", "20260101-000001-seed1")
    save("DIN_tiny", "other.model", seed=2)
    run("--expid", "DIN_tiny", "--quiet", "--weights", "other.model", "--out", "there.json", "--seed", "3")
    other = json.loads(Path("there.json").read_text())
    assert (other["run"], other["weights"], other["seed"]) == (None, "other.model", 3)
    assert other["metrics"] != found["metrics"]


def test_a_test_split_needs_labels(workplace, capsys):
    save("DIN_tiny", "checkpoints/tiny_mm/DIN_tiny.model")
    run("--expid", "DIN_tiny", "--split", "test", "--quiet", "--test_data", "data/tiny_mm/test_labelled.parquet")
    found = json.loads(Path("checkpoints/tiny_mm/DIN_tiny.diagnosis.json").read_text())
    assert found["split"] == "test"
    with pytest.raises(SystemExit):
        run("--expid", "DIN_tiny", "--split", "test", "--quiet")
    assert "no column 'label'" in capsys.readouterr().err


def test_a_model_of_another_library(workplace):
    save("Other_tiny", "checkpoints/tiny_mm/Other_tiny.model")
    run("--expid", "Other_tiny", "--quiet")
    found = json.loads(Path("checkpoints/tiny_mm/Other_tiny.diagnosis.json").read_text())
    assert found["attention"][0]["name"] == "attention"
    assert 0 < found["attention"][0]["entropy_ratio"] < 1
    assert found["heads"][0]["heads"][0]["output_norm"] > 0
    assert [f["field"] for f in found["senet"][0]["fields"]] == ["field.0", "field.1"]
    lost = {entry["name"]: entry["auc_lost"] for entry in found["importance"]["fields"]}
    assert set(lost) == {"likes_level", "views_level", "item_id", "item_tags", "item_emb_d16"}
    assert lost["item_emb_d16"] != 0
    assert {finding["severity"] for finding in found["findings"]} <= set(SEVERITIES)


def test_without_training_rows_nothing_is_said_of_popularity(workplace, tmp_path):
    data = tmp_path / "own"
    shutil.copytree(ROOT / "data" / "tiny_mm", data / "tiny_mm")
    (data / "tiny_mm" / "train.parquet").unlink()
    save("DIN_tiny", "checkpoints/tiny_mm/DIN_tiny.model")
    run("--expid", "DIN_tiny", "--quiet", "--data_root", str(data), "--out", "x.json")
    found = json.loads(Path("x.json").read_text())
    assert "popularity" not in found
    assert found["absent"]["popularity"] == "no training file to count clicks in"
    valid = pq.read_table(data / "tiny_mm" / "valid.parquet", columns=["item_id"])["item_id"].to_pylist()
    assert found["neighbours"][0]["item_id"] in valid


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--expid", "DIN_tiny"],
            "checkpoints/tiny_mm/DIN_tiny.model: no such file, DIN_tiny is not trained; run pyth",
        ),
        (["--expid", "DIN_tinny"], "did you mean 'DIN_tiny'?"),
        (["--expid", "DIN_tiny", "--weights", "no.model"], "--weights no.model: no such file"),
        (["--expid", "DIN_tiny", "--run", "20990101"], "'20990101': no experiment id, run or folder of a run below"),
        (["--expid", "DIN_tiny", "--rows", "1"], "--rows is 1, expected 2 or more"),
        (["--expid", "DIN_tiny", "--repeats", "0"], "--repeats is 0, expected 1 or more"),
        (["--expid", "DIN_tiny", "--seed", "-1"], "--seed is -1, expected 0 or more"),
    ],
)
def test_bad_input_is_one_line(options, message, workplace, capsys):
    before = set(workplace.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run(*options, "--quiet")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert set(workplace.rglob("*")) == before


def test_runs_that_do_not_fit(workplace):
    folder = make_run("DIN_MM_tiny", "20260101-000001-seed1")
    with pytest.raises(
        ConfigError, match="is a run of DIN_MM_tiny, expected one of DIN_tiny; give --expid DIN_MM_tiny"
    ):
        find_trained("DIN_tiny", run=str(folder), model_zoo="zoo")
    (folder / "best.model").unlink()
    with pytest.raises(MissingFileError, match="the weights of this run are gone; name others by --weights"):
        find_trained("DIN_MM_tiny", model_zoo="zoo")


def test_a_regression_is_refused(workplace, capsys):
    config = yaml.safe_load(Path("model_config.yaml").read_text())
    config["DIN_tiny"] |= {"task": "regression", "loss": "mse_loss", "metrics": ["logloss"], "monitor": "logloss"}
    Path("model_config.yaml").write_text(yaml.safe_dump(config))
    save("DIN_tiny", "checkpoints/tiny_mm/DIN_tiny.model")
    with pytest.raises(SystemExit):
        run("--expid", "DIN_tiny", "--quiet")
    assert "DIN_tiny: diagnose looks at predicted clicks, but task is regression" in capsys.readouterr().err
