"""Sizes of a model on the meta device are those of the model."""

import pytest
import torch

from fuxictr_mm.data.dataset import read_dataset
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.plan.model import _state_per_weight, measure_model
from tests.paths import ROOT

SPECS = [{"name": "item_id", "table": "touched"}, {"name": "txt_emb_pca8", "freeze_emb": False}]


@pytest.mark.parametrize("expid", ["DIN_MM_tiny", "QIN_tiny"])
def test_parameters(expid, build):
    settings = {"feature_specs": SPECS, "use_features": ["likes_level", "item_id", "item_tags", "txt_emb_pca8"]}
    experiment = Experiment.load(expid, ROOT, **settings)
    dataset = read_dataset(experiment.config, {"train": True})
    found = measure_model(experiment, dataset.features, dataset.items.num_items, history=10)
    model, _ = build(expid, **settings)
    assert {(t.name, t.rows, t.touched) for t in found.tables} == {
        ("likes_level", 11, False),
        ("item_id", 1001, True),
        ("item_tags", 193, False),
        ("txt_emb_pca8", 1001, False),
    }
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.other + sum(t.weights for t in found.tables) == total
    assert {t.state for t in found.tables} == {2.0, 2.0 + 1 / 16}  # of item_id, the update of each row
    assert found.activations is not None
    assert found.activations[1] > 0


@pytest.mark.parametrize(
    ("optimizer", "table_optimizer", "touched", "expected"),
    [
        ("adam", None, False, 2),
        ("sgd", None, False, 0),
        ("adagrad", None, False, 1),
        ("adam", None, True, 2),
        ("adam", "sgd", True, 0),
        ("adam", "rowwise_adagrad", True, 1 / 16),
        ("adamw", "rowwise_adagrad", True, 1 / 16),  # which decays by default
    ],
)
def test_state_of_optimizers(optimizer, table_optimizer, touched, expected):
    assert _state_per_weight(optimizer, table_optimizer, 16, touched) == expected


def test_no_table_is_made():
    experiment = Experiment.load("DIN_MM_tiny", ROOT)
    dataset = read_dataset(experiment.config, {"train": True})
    before = torch.get_rng_state()
    found = measure_model(experiment, dataset.features, 2**31 - 2, history=10)  # 137 GB
    torch.set_rng_state(before)
    assert found.tables
    assert found.activations is not None
    assert found.activations[0] < 1e9


def test_activations_grow_with_the_history(build):
    experiment = Experiment.load("DIN_MM_tiny", ROOT)
    dataset = read_dataset(experiment.config, {"train": True})
    rows = [measure_model(experiment, dataset.features, 1001, history).activations[1] for history in (5, 50)]
    # Index, row, and scores and weights of the heads of each item; products with the query are not kept.
    assert 45 * 30 < rows[1] - rows[0] < 45 * 300
