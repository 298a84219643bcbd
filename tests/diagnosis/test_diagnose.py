"""``fuxictr-mm diagnose`` from its options to its file; planted faults of a trained model are found, and only they."""

import json
import shutil
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from fuxictr_mm import Experiment, cli
from fuxictr_mm.config import list_experiments
from fuxictr_mm.data.loaders import take_rows
from fuxictr_mm.diagnosis.diagnose import diagnose, format_summary
from fuxictr_mm.diagnosis.findings import SEVERITIES
from fuxictr_mm.diagnosis.slices import count_items
from fuxictr_mm.diagnosis.trained import find_trained
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.yaml_files import load_yaml
from tests import several_histories
from tests.errors import raises_naming
from tests.paths import ROOT, TINY
from tests.projects import write_project

#: Findings that the trained model has none of.
FAULTS = {
    "model_at_chance",
    "uniform_attention",
    "silent_head",
    "heads_alike",
    "attention_does_nothing",
    "modality_does_nothing",
    "modality_imbalance",
    "history_does_nothing",
    "context_does_nothing",
    "senet_constant",
    "senet_closed",
    "miscalibrated",
    "vectors_collapsed",
    "vectors_missing",
    "weak_on_cold_items",
}


def faults(result):
    return {(f["code"], f["subject"]) for f in result["findings"] if f["code"] in FAULTS}


def look(experiment, model, dataset, repeats=2):
    return diagnose(experiment, model, dataset.splits["valid"], repeats=repeats)


@pytest.fixture(scope="module")
def healthy(trained):
    """The diagnosis of the trained model."""
    experiment, model, dataset = trained
    popularity = count_items(TINY / "train.parquet", "label", 1001)
    return diagnose(experiment, model, dataset.splits["valid"], popularity)


def test_a_healthy_model_has_no_faults(healthy):
    assert healthy["metrics"]["auc"] > 0.78
    assert faults(healthy) == set()
    attention = healthy["attention"][0]
    assert attention["entropy_ratio"] < 0.97
    assert attention["uniform_auc_lost"] > attention["uniform_noise"]
    for head in healthy["heads"][0]["heads"]:
        assert 0.1 < head["output_share"] < 0.5
    groups = {g["name"]: g for g in healthy["importance"]["groups"]}
    for name in ("text", "image", "history", "whole context"):
        assert groups[name]["auc_lost"] > 2 * groups[name]["noise"]
    assert groups["all modalities"]["auc_lost"] > max(groups["text"]["auc_lost"], groups["image"]["auc_lost"])


def test_the_result_is_plain_and_complete(healthy):
    assert json.loads(json.dumps(healthy, allow_nan=False)) == healthy
    assert healthy["version"] == 1
    assert healthy["absent"] == {}
    assert healthy["passes"] == 1 + 10 + 5 * 10  # attention uniform, without, 4 + 4 heads; 6 fields, 4 more groups
    summary = format_summary(healthy)
    for part in ("attention 3", "target.txt_emb_pca8", "all modalities", "never shown", "nearest to", "findings:"):
        assert part in summary


@pytest.mark.parametrize("weight", ["W_o", "W_v"])
def test_a_zeroed_head(faulty, weight):
    experiment, model, dataset = faulty
    dim = model.attention.head_dim
    with torch.no_grad():
        matrix = getattr(model.attention, weight).weight
        (matrix[:, 2 * dim : 3 * dim] if weight == "W_o" else matrix[2 * dim : 3 * dim]).zero_()
    result = look(experiment, model, dataset)
    assert faults(result) == {("silent_head", "attention head 2")}
    head = result["heads"][0]["heads"][2]
    assert (head["output_norm"], head["removed_auc_lost"], head["removed_noise"]) == (0, 0, 0)
    assert result["findings"][0]["severity"] == "problem"


def test_uniform_attention(faulty):
    experiment, model, dataset = faulty
    nn.init.zeros_(model.attention.W_q.weight)
    result = look(experiment, model, dataset)
    assert faults(result) == {("uniform_attention", "attention")}
    entry = result["attention"][0]
    assert entry["entropy_ratio"] == pytest.approx(1, abs=1e-6)
    assert abs(entry["uniform_auc_lost"]) < 1e-5
    assert entry["histogram"][-1]["count"] == sum(b["count"] for b in entry["histogram"]) == 4 * entry["rows"]
    assert result["heads"][0]["divergence"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_embeddings_that_are_noise(load, tiny_dataset, train):
    """Replaced before training, which then learns not to use them."""
    experiment = load("DIN_MM_tiny", seed=1)
    dataset = tiny_dataset(experiment.config.to_dict())
    stored = dataset.items["img_emb_pca8"]
    noise = torch.randn(stored.shape, generator=torch.Generator().manual_seed(0)) * stored[1:].std()
    dataset.items.column_img_emb_pca8 = noise.index_fill(0, torch.tensor([0]), 0.0)
    result = look(experiment, train(experiment, dataset, epochs=3), dataset, repeats=5)
    assert faults(result) == {("modality_does_nothing", "image")}
    groups = {g["name"]: g for g in result["importance"]["groups"]}
    assert groups["text"]["auc_lost"] > 10 * abs(groups["image"]["auc_lost"])


def test_a_modality_that_is_not_read_costs_exactly_nothing(faulty):
    experiment, model, dataset = faulty
    for name, parameter in model.embedding_layer.named_parameters():
        if "img_emb_pca8" in name:
            nn.init.zeros_(parameter)
    result = look(experiment, model, dataset)
    entries = {e["name"]: e for e in result["importance"]["fields"] + result["importance"]["groups"]}
    for name in ("img_emb_pca8", "image"):
        assert (entries[name]["auc_lost"], entries[name]["noise"], entries[name]["lost"]) == (0, 0, [0, 0])
    (finding,) = [f for f in result["findings"] if f["code"] == "not_read"]
    assert (finding["severity"], finding["subject"]) == ("note", "image")
    assert not {code for code, _ in faults(result)} & {"modality_does_nothing", "field_does_nothing"}


def test_a_history_that_is_not_read_is_no_warning(faulty):
    experiment, model, dataset = faulty
    nn.init.zeros_(model.attention.W_o.weight)
    result = look(experiment, model, dataset)
    found = [(f["severity"], f["code"]) for f in result["findings"] if f["subject"] == "history"]
    assert found == [("note", "not_read")]


def test_a_model_at_chance_comes_first_and_its_parts_not_at_all(faulty):
    """Predictions without relation to the input: no part has an effect, which tells nothing of any part."""
    experiment, model, dataset = faulty

    class Scramble(nn.Module):
        def forward(self, probability):
            noise = torch.frac((probability.detach() * 1e6).sin().abs() * 43758.5453)
            return 0.3 + 0.2 * noise

    model.output_activation = nn.Sequential(model.output_activation, Scramble())
    result = look(experiment, model, dataset)
    assert result["metrics"]["low"] < 0.5 < result["metrics"]["high"]
    assert (result["findings"][0]["severity"], result["findings"][0]["code"]) == ("problem", "model_at_chance")
    assert not [f for f in result["findings"] if "nothing" in f["code"] or f["code"] == "silent_head"]


def test_predictions_that_are_worse_than_a_constant(faulty):
    experiment, model, dataset = faulty

    class Reverse(nn.Module):
        def forward(self, probability):
            return 1 - 0.1 * probability

    model.output_activation = nn.Sequential(model.output_activation, Reverse())
    result = look(experiment, model, dataset, repeats=1)
    found = {f["code"]: f for f in result["findings"] if f["section"] == "metrics"}
    assert found.keys() == {"ranks_backwards", "worse_than_constant"}
    assert f"{result['metrics']['logloss']:.4f}" in found["worse_than_constant"]["text"]
    assert "--calibrate" in found["worse_than_constant"]["advice"]


def test_a_dominated_modality(faulty):
    experiment, model, dataset = faulty
    with torch.no_grad():
        for name, parameter in model.embedding_layer.named_parameters():
            if "img_emb_pca8" in name:
                parameter *= 0.2
    result = look(experiment, model, dataset)
    assert faults(result) & {("modality_imbalance", "image"), ("modality_does_nothing", "image")}


def test_an_excluded_field(faulty):
    """The weight of target.img_emb_pca8, the sixth field, is scaled to almost 0."""
    experiment, model, dataset = faulty

    class Shut(nn.Module):
        def forward(self, weights):
            return weights * torch.tensor([1.0, 1, 1, 1, 1, 1e-4, 1, 1, 1, 1])

    model.senet.excitation.append(Shut())
    assert ("senet_closed", "target.img_emb_pca8") in faults(look(experiment, model, dataset))


def test_distorted_probabilities(faulty):
    experiment, model, dataset = faulty

    class Square(nn.Module):
        def forward(self, probability):
            return probability**2

    model.output_activation = nn.Sequential(model.output_activation, Square())
    result = look(experiment, model, dataset)
    assert faults(result) == {("miscalibrated", "predictions")}
    assert result["calibration"]["mean_prediction"] < result["calibration"]["rate"] - 0.1
    (advice,) = (finding["advice"] for finding in result["findings"] if finding["code"] == "miscalibrated")
    assert f"fuxictr-mm predict --expid {experiment.config.expid}" in advice


def test_a_constant_senet_and_missing_and_collapsed_embeddings(faulty):
    experiment, model, dataset = faulty
    nn.init.zeros_(model.senet.excitation[2].weight)
    items = model.feature_map.items
    items.column_txt_emb_pca8 = items["txt_emb_pca8"].index_fill(0, torch.arange(0, 1001, 4), 0.0)
    items.column_img_emb_pca8 = items["img_emb_pca8"] * torch.tensor([1.0] + 7 * [1e-3])
    result = look(experiment, model, dataset)
    vectors = {("vectors_missing", "txt_emb_pca8"), ("vectors_collapsed", "img_emb_pca8")}
    assert {*vectors, ("senet_constant", "senet")} <= faults(result)
    assert {f["mean"] for f in result["senet"][0]["fields"]} == {0.5}


def test_too_few_clicks_are_refused(trained):
    experiment, model, dataset = trained
    table = dataset.splits["valid"]
    rows = torch.cat([(table.label == 0).nonzero().flatten()[:20], (table.label == 1).nonzero().flatten()[:1]])
    with raises_naming(DataError, "1 clicks in 21"):
        diagnose(experiment, model, take_rows(table, rows))


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
    """A folder with the configuration, its own weights, and a FuxiCTR model file."""
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    for file in (ROOT / "model_zoo").glob("*.py"):
        (zoo / file.name).symlink_to(file)
    (zoo / "Other.py").write_text(CHALLENGE)
    few = (ROOT / "model_config.yaml").read_text().split("DIN_MM_V1_tiny:")[0]
    other = {**list_experiments(ROOT)["DIN_tiny"], "model": "Other", "batch_view": "challenge", "embedding_dim": 4}
    for key in [k for k in other if k.startswith(("dnn", "attention", "net_", "batch_norm"))]:
        del other[key]
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path, f"{few}\nOther_tiny: {json.dumps(other)}\n")


def save(expid, path, seed=1):
    """Write untrained weights of an experiment."""
    experiment = Experiment.load(expid, model_zoo="zoo", verbose=0)
    torch.manual_seed(seed)
    model = experiment.build_model(experiment.load_dataset({"valid": True}))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    model.save_weights(str(path))
    return experiment.config.to_dict()


def make_run(expid, name, *, finished=True, **changes):
    """Make a run's folder as training leaves it, as far as a diagnosis reads it."""
    folder = Path("checkpoints/tiny_mm") / expid / name
    settings = save(expid, folder / "best.model")
    (folder / "config.yaml").write_text(json.dumps({**settings, **changes}))
    (folder / "environment.json").write_text(json.dumps({"started_at": f"2026-01-01T00:00:{name[13:15]}"}))
    if finished:
        (folder / "result.json").write_text(
            json.dumps({"valid": {"AUC": 0.5}, "test": None, "seconds": 1.0, "valid_rows": 3000, "parameters": 1})
        )
    return folder


def run(*options):
    cli.main(["diagnose", "--model_zoo", "zoo", "--repeats", "1", "--rows", "400", *options])


def refusal(capsys, *options):
    with pytest.raises(SystemExit) as stop:
        run(*options, "--quiet")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_the_newest_finished_run_is_diagnosed(workplace, capsys):
    make_run("DIN_MM_tiny", "20260101-000001-seed1")
    newest = make_run("DIN_MM_tiny", "20260101-000002-seed1")
    line = json.dumps({"epoch": 12, "step": 1, "AUC": 0.5})  # the last one that the configuration allows
    (newest / "metrics.jsonl").write_text(f"{line}\n")
    make_run("DIN_MM_tiny", "20260101-000003-seed1", finished=False)
    before = set(workplace.rglob("*"))
    run("--expid", "DIN_MM_tiny")
    assert set(workplace.rglob("*")) - before == {workplace / newest / "diagnosis.json"}
    found = json.loads((newest / "diagnosis.json").read_text())
    assert (found["expid"], found["run"], found["model"], found["dataset_id"], found["split"]) == (
        "DIN_MM_tiny", newest.name, "DIN_MM", "tiny_mm", "valid"
    )  # fmt: skip
    assert found["weights"] == str(newest / "best.model")
    assert "best_epoch_was_last" in {finding["code"] for finding in found["findings"]}
    by_popularity = found["calibration"]["by_popularity"]
    assert [b["rows"] for b in by_popularity] == [b["rows"] for b in found["popularity"]]
    assert (found["rows"], found["rows_in_split"], found["repeats"]) == (400, 3000, 1)
    printed = capsys.readouterr().out
    assert f"AUC {found['metrics']['auc']:.4f}" in printed
    assert str(newest / "diagnosis.json") in printed
    run("--expid", "DIN_MM_tiny", "--run", "20260101-000001-seed1", "--quiet")
    assert capsys.readouterr().out == ""
    other = json.loads((newest.parent / "20260101-000001-seed1" / "diagnosis.json").read_text())
    assert other["seed"] == 0
    assert "best_epoch_was_last" not in {finding["code"] for finding in other["findings"]}


def test_a_run_is_built_by_its_own_configuration(workplace, capsys):
    folder = make_run("DIN_MM_tiny", "20260101-000001-seed1")
    config = load_yaml("model_config.yaml")
    config["DIN_MM_tiny"]["num_heads"] = 2
    Path("model_config.yaml").write_text(json.dumps(config))
    run("--expid", "DIN_MM_tiny", "--run", str(folder), "--json", "--quiet")
    found = json.loads(capsys.readouterr().out)
    assert found["attention"][0]["num_heads"] == 4
    assert found == json.loads((folder / "diagnosis.json").read_text())


def test_weights_without_a_run(workplace):
    save("DIN_tiny", "checkpoints/tiny_mm/DIN_tiny.model")
    run("--expid", "DIN_tiny", "--quiet")
    found = json.loads(Path("checkpoints/tiny_mm/DIN_tiny.diagnosis.json").read_text())
    assert found["run"] is None
    assert set(found["absent"]) == {"senet"}
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
    assert "'label'" in refusal(capsys, "--expid", "DIN_tiny", "--split", "test")


def test_a_fuxictr_model(workplace):
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


def test_without_a_training_file_popularity_is_left_out(workplace, tmp_path):
    data = tmp_path / "own"
    shutil.copytree(TINY, data / "tiny_mm")
    (data / "tiny_mm" / "train.parquet").unlink()
    save("DIN_tiny", "checkpoints/tiny_mm/DIN_tiny.model")
    run("--expid", "DIN_tiny", "--quiet", "--data_root", str(data), "--out", "x.json")
    found = json.loads(Path("x.json").read_text())
    assert "popularity" not in found
    assert "popularity" in found["absent"]
    valid = pq.read_table(data / "tiny_mm" / "valid.parquet", columns=["item_id"])["item_id"].to_pylist()
    assert found["neighbours"][0]["item_id"] in valid


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--expid", "DIN_tiny"], "checkpoints/tiny_mm/DIN_tiny.model"),
        (["--expid", "DIN_tinny"], "did you mean 'DIN_tiny'"),
        (["--expid", "DIN_tiny", "--weights", "no.model"], "no.model"),
        (["--expid", "DIN_tiny", "--run", "20990101"], "'20990101'"),
        (["--expid", "DIN_tiny", "--rows", "1"], "--rows is 1"),
        (["--expid", "DIN_tiny", "--repeats", "0"], "--repeats is 0"),
        (["--expid", "DIN_tiny", "--seed", "-1"], "--seed is -1"),
        (["--expid", "DIN_tiny", "--seed", str(2**70)], "--seed is"),
    ],
)
def test_bad_input_is_one_line(options, found, workplace, capsys):
    before = set(workplace.rglob("*"))
    assert found in refusal(capsys, *options)
    assert set(workplace.rglob("*")) == before


def test_runs_that_do_not_fit(workplace):
    folder = make_run("DIN_MM_tiny", "20260101-000001-seed1")
    with raises_naming(ConfigError, "DIN_MM_tiny"):
        find_trained("DIN_tiny", run=str(folder), model_zoo="zoo")
    (folder / "best.model").unlink()
    with raises_naming(MissingFileError, "weights"):
        find_trained("DIN_MM_tiny", model_zoo="zoo")


def test_items_of_raw_columns(tmp_path, capsys):
    several_histories.write_world(tmp_path, "csv", rows=1000)
    several_histories.load(tmp_path, "DIN").fit()
    cli.main(["diagnose", "--config", str(tmp_path), "--expid", "DIN", "--json", "--repeats", "2"])
    found = json.loads(capsys.readouterr().out)
    groups = {group["name"]: group["fields"] for group in found["importance"]["groups"]}
    assert (groups["history"], groups["history bought"]) == (["when"], ["bought", "kind", "price"])
    # Rows of the validation split, by the clicks of their item in training.
    raw = {split: pl.read_csv(tmp_path / f"{split}.csv") for split in ("train", "valid")}
    counts = Counter(raw["train"].filter(pl.col("label") == 1)["shown"].to_list())
    for bucket in found["popularity"]:
        low, high = bucket["from"], bucket["to"]
        within = [
            item for item in raw["valid"]["shown"] if low <= counts[item] and (high is None or counts[item] <= high)
        ]
        assert bucket["rows"] == len(within)
    assert sum(bucket["rows"] for bucket in found["popularity"]) == len(raw["valid"])
