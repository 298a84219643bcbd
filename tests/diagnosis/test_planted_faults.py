"""Faults planted in a trained model are found, and nothing else; a healthy model has none of them."""

import json

import pytest
import torch
from torch import nn

from fuxictr_mm.diagnosis.diagnose import diagnose, format_summary
from fuxictr_mm.diagnosis.scorer import take
from fuxictr_mm.errors import DataError

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


def look(model, dataset, params, repeats=2):
    return diagnose(model, params, dataset.splits["valid"], repeats=repeats)


def test_a_healthy_model_has_none(healthy):
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


def test_it_is_plain_and_whole(healthy):
    assert json.loads(json.dumps(healthy, allow_nan=False)) == healthy
    assert healthy["version"] == 1
    assert healthy["absent"] == {}
    assert healthy["passes"] == 1 + 10 + 5 * 10  # attention even, without, 4 + 4 heads; 6 fields, 4 more groups
    summary = format_summary(healthy)
    for part in ("attention 3", "target.txt_emb_pca8", "all modalities", "never shown", "nearest to", "findings:"):
        assert part in summary


@pytest.mark.parametrize("weight", ["W_o", "W_v"])
def test_a_zeroed_head_is_found_and_only_it(faulty, weight):
    model, dataset, params = faulty
    width = model.attention.head_dim
    with torch.no_grad():
        matrix = getattr(model.attention, weight).weight
        (matrix[:, 2 * width : 3 * width] if weight == "W_o" else matrix[2 * width : 3 * width]).zero_()
    result = look(model, dataset, params)
    assert faults(result) == {("silent_head", "attention head 2")}
    head = result["heads"][0]["heads"][2]
    assert (head["output_norm"], head["removed_auc_lost"], head["removed_noise"]) == (0, 0, 0)
    finding = next(f for f in result["findings"] if f["code"] == "silent_head")
    assert finding["severity"] == "problem"
    assert finding["text"].startswith("head 2 of attention does nothing: removing it costs 0.0000 AUC; its output is ")


def test_uniform_attention_is_found(faulty):
    model, dataset, params = faulty
    nn.init.zeros_(model.attention.W_q.weight)
    result = look(model, dataset, params)
    assert faults(result) == {("uniform_attention", "attention")}
    entry = result["attention"][0]
    assert entry["entropy_ratio"] == pytest.approx(1, abs=1e-6)
    assert abs(entry["uniform_auc_lost"]) < 1e-5
    assert entry["histogram"][-1]["count"] == sum(b["count"] for b in entry["histogram"]) == 4 * entry["rows"]
    assert result["heads"][0]["divergence"] == pytest.approx(0, abs=1e-6)


def test_vectors_replaced_by_noise_before_training_are_found(settings, tiny_dataset, train):
    params, model_class = settings("DIN_MM_tiny", seed=1)
    dataset = tiny_dataset(params)
    vectors = dataset.items["img_emb_pca8"]
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0)) * vectors[1:].std()
    dataset.items.column_img_emb_pca8 = noise.index_fill(0, torch.tensor([0]), 0.0)
    result = look(train(params, model_class, dataset, epochs=3), dataset, params, repeats=5)
    assert faults(result) == {("modality_does_nothing", "image")}
    groups = {g["name"]: g for g in result["importance"]["groups"]}
    assert groups["text"]["auc_lost"] > 10 * abs(groups["image"]["auc_lost"])


def test_a_modality_that_the_model_ignores_costs_exactly_nothing(faulty):
    model, dataset, params = faulty
    for name, parameter in model.embedding_layer.named_parameters():
        if "img_emb_pca8" in name:
            nn.init.zeros_(parameter)
    result = look(model, dataset, params)
    entries = {e["name"]: e for e in result["importance"]["fields"] + result["importance"]["groups"]}
    for name in ("img_emb_pca8", "image"):
        assert (entries[name]["auc_lost"], entries[name]["noise"], entries[name]["lost"]) == (0, 0, [0, 0])
    (finding,) = [f for f in result["findings"] if f["code"] == "not_read"]
    assert (finding["severity"], finding["subject"]) == ("note", "image")
    assert finding["text"].startswith("the model does not read the modality image (img_emb_pca8): permuting changes no")
    assert not {code for code, _ in faults(result)} & {"modality_does_nothing", "field_does_nothing"}


def test_a_history_that_is_not_read_is_no_warning(faulty):
    model, dataset, params = faulty
    nn.init.zeros_(model.attention.W_o.weight)
    result = look(model, dataset, params)
    found = [(f["severity"], f["code"]) for f in result["findings"] if f["subject"] == "history"]
    assert found == [("note", "not_read")]


def test_a_model_at_chance_is_said_first_and_its_parts_not_at_all(faulty):
    """Weights drawn anew on the output's way: everything does nothing, which is no news of any part."""
    model, dataset, params = faulty

    class Scramble(nn.Module):
        def forward(self, probability):
            noise = torch.frac((probability.detach() * 1e6).sin().abs() * 43758.5453)
            return 0.3 + 0.2 * noise

    model.output_activation = nn.Sequential(model.output_activation, Scramble())
    result = look(model, dataset, params)
    assert result["metrics"]["low"] < 0.5 < result["metrics"]["high"]
    assert (result["findings"][0]["severity"], result["findings"][0]["code"]) == ("problem", "model_at_chance")
    assert "holds 0.5" in result["findings"][0]["text"]
    assert not [f for f in result["findings"] if "nothing" in f["code"] or f["code"] == "silent_head"]


def test_a_drowned_modality_is_found(faulty):
    model, dataset, params = faulty
    with torch.no_grad():
        for name, parameter in model.embedding_layer.named_parameters():
            if "img_emb_pca8" in name:
                parameter *= 0.2
    result = look(model, dataset, params)
    assert faults(result) & {("modality_imbalance", "image"), ("modality_does_nothing", "image")}


def test_a_constant_senet_is_found(faulty):
    model, dataset, params = faulty
    nn.init.zeros_(model.senet.excitation[2].weight)
    result = look(model, dataset, params)
    assert ("senet_constant", "senet") in faults(result)
    assert {f["mean"] for f in result["senet"][0]["fields"]} == {0.5}


def test_a_shut_out_field_is_found(faulty):
    """The weight of target.img_emb_pca8, the sixth field, falls to sigmoid(-9)."""
    model, dataset, params = faulty

    class Shut(nn.Module):
        def forward(self, weights):
            return weights * torch.tensor([1.0, 1, 1, 1, 1, 1e-4, 1, 1, 1, 1])

    model.senet.excitation.append(Shut())
    assert ("senet_closed", "target.img_emb_pca8") in faults(look(model, dataset, params))


def test_distorted_probabilities_are_found(faulty):
    model, dataset, params = faulty

    class Square(nn.Module):
        def forward(self, probability):
            return probability**2

    model.output_activation = nn.Sequential(model.output_activation, Square())
    result = look(model, dataset, params)
    assert faults(result) == {("miscalibrated", "predictions")}
    assert result["calibration"]["mean_prediction"] < result["calibration"]["rate"] - 0.1


def test_missing_and_collapsed_vectors_are_found(faulty):
    model, dataset, params = faulty
    items = model.feature_map.items
    items.column_txt_emb_pca8 = items["txt_emb_pca8"].index_fill(0, torch.arange(0, 1001, 4), 0.0)
    items.column_img_emb_pca8 = items["img_emb_pca8"] * torch.tensor([1.0] + 7 * [1e-3])
    found = faults(look(model, dataset, params))
    assert {("vectors_missing", "txt_emb_pca8"), ("vectors_collapsed", "img_emb_pca8")} <= found


def test_too_few_clicks_are_refused(trained):
    model, dataset, params = trained
    table = dataset.splits["valid"]
    rows = torch.cat([(table.label == 0).nonzero().flatten()[:20], (table.label == 1).nonzero().flatten()[:1]])
    with pytest.raises(DataError, match="1 clicks in the 21 rows looked at, expected 2 or more with and without"):
        diagnose(model, params, take(table, rows))
