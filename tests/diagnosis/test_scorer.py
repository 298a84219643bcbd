"""Changed examples, samples, and the AUC drop of changed predictions."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from fuxictr_mm.diagnosis.scorer import Scorer, sample, with_context, with_history
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming


def test_context_and_histories_come_from_other_examples(trained):
    table = trained[2].splits["valid"].slice(0, 50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    moved = with_context(table, ["likes_level"], order)
    assert torch.equal(moved.context["likes_level"], table.context["likes_level"][order])
    assert torch.equal(moved.context["views_level"], table.context["views_level"])
    moved = with_history(table, order)
    ours, theirs = (t.history_values.split(t.history_offsets.diff().tolist()) for t in (moved, table))
    for row, other in enumerate(order.tolist()):
        assert torch.equal(ours[row], theirs[other])
    assert torch.equal(moved.target, table.target)


def test_a_sample_depends_on_its_seed(trained):
    table = trained[2].splits["valid"].slice(0, 50)
    assert sample(table, 50, 0) is table
    drawn = sample(table, 20, 1)
    assert len(drawn) == 20
    assert torch.equal(drawn.target, sample(table, 20, 1).target)
    assert not torch.equal(drawn.target, sample(table, 20, 2).target)


def test_the_drop_is_a_difference_of_aucs(trained):
    experiment, model, dataset = trained
    passes = []
    scorer = Scorer(experiment, model, dataset.splits["valid"], advance=lambda: passes.append(1))
    base = scorer.score_base()
    assert scorer.cost(base) == (0, 0)
    changed = np.random.default_rng(0).permutation(base)
    expected = roc_auc_score(scorer.label, base) - roc_auc_score(scorer.label, changed)
    drop = scorer.cost(changed)
    assert drop.value == pytest.approx(expected)
    assert 0 < drop.noise < drop.value
    assert scorer.passes == len(passes) == 1


def test_predictions_that_are_not_finite_are_refused(faulty):
    experiment, model, dataset = faulty
    torch.nn.init.constant_(model.attention.W_o.weight, torch.nan)
    with raises_naming(DataError, "finite"):
        Scorer(experiment, model, dataset.splits["valid"]).score_base()
