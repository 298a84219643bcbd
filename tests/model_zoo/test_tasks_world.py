"""In a world whose two labels share a taste and compete on popularity, one model finds both."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from fuxictr_mm.data.synthetic.spec import PRESETS
from fuxictr_mm.data.synthetic.world import World, sigmoid
from fuxictr_mm.data.synthetic.writer import generate
from fuxictr_mm.experiment import Experiment
from tests.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    generate(PRESETS["tasks"], folder / "tasks_mm", progress=False)
    return folder


@pytest.fixture(scope="module")
def logits(folder):
    """The log odds of both labels of the validation rows, and their common part."""
    world, rows = World.build(PRESETS["tasks"]), pl.read_parquet(folder / "tasks_mm" / "valid.parquet")
    users, items = rows["user_id"].to_numpy(), rows["item_id"].to_numpy()
    return [world.true_logit(users, items, context=factor) for factor in (1.0, world.spec.second_context, 0.0)]


def expected_auc(scores, logits):
    """Return the AUC of scores, over pairs of rows, expected of labels that are sampled from logits."""
    positive = sigmoid(logits[np.argsort(scores, kind="stable")])
    below = np.cumsum(1 - positive) - (1 - positive)
    return (positive * below).sum() / (positive.sum() * (1 - positive).sum() - (positive * (1 - positive)).sum())


def test_the_labels_share_and_compete(folder, logits):
    click, like, taste = logits
    rows = pl.read_parquet(folder / "tasks_mm" / "valid.parquet")
    for name, own, other in (("label", click, like), ("like", like, click)):
        assert expected_auc(own, own) > 0.92
        assert expected_auc(taste, own) > 0.75
        assert expected_auc(other, own) < 0.5
        assert roc_auc_score(rows[name], own) == pytest.approx(expected_auc(own, own), abs=0.01)


@pytest.mark.parametrize("expid", ["DIN_MM_tasks", "INFNet_tasks", "INFNet_uncertainty_tasks"])
def test_one_model_finds_both(folder, logits, expid):
    settings = {"model_root": str(folder / expid), "tensorboard": False, "test_data": None, "verbose": 0, "seed": 1}
    run = Experiment.load(expid, ROOT, data_root=str(folder), epochs=8, **settings).fit()
    scores = {name: run.predictions("valid", name)[:2] for name in ("label", "like")}
    for own, other in (("label", "like"), ("like", "label")):
        best_of_taste = expected_auc(logits[2], logits[own == "like"])
        assert roc_auc_score(*scores[own]) > best_of_taste + 0.04  # no score that ignores what the labels dispute
        assert roc_auc_score(scores[own][0], scores[other][1]) < 0.65
