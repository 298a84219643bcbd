"""AUC with weights, DeLong's variance and resampled users against plain re-computations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fuxictr_mm.evaluation.significance import RankedRows, bootstrap_aucs, delong_variance, draw_users

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.2, 0.5, 0.9]), st.integers(0, 3)), min_size=2, max_size=12
).filter(lambda rows: len({label for label, _, _ in rows}) == 2)


@settings(max_examples=80, deadline=None)
@given(ROWS)
def test_weights_are_rows_counted_so_often(rows):
    label, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    (found,) = RankedRows(label, score).weighted_auc(weight[:, None].astype(float))
    repeated = np.repeat(label, weight)
    if len(set(repeated)) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(repeated, np.repeat(score, weight)))


def structural_components(label, score):
    """By all pairs: for each positive the share of negatives below it, for each negative that of positives above it."""
    won = (score[label == 1][:, None] > score[label == 0]) + 0.5 * (score[label == 1][:, None] == score[label == 0])
    return won.mean(axis=1), won.mean(axis=0)


@settings(max_examples=60, deadline=None)
@given(ROWS.filter(lambda rows: 2 <= sum(label for label, _, _ in rows) <= len(rows) - 2), st.integers(0, 9))
def test_delong_by_all_pairs(rows, seed):
    label, score, _ = (np.array(column) for column in zip(*rows, strict=True))
    other = np.random.default_rng(seed).permutation(score)
    parts = [structural_components(label, s) for s in (score, other)]
    for found, expected in zip(RankedRows(label, score).components, parts[0], strict=True):
        np.testing.assert_allclose(found, expected)
    # The paper's form: covariance matrices of the components, and the contrast (1, -1) of the two AUCs.
    positive, negative = (np.cov([a, b]) for a, b in zip(*parts, strict=True))
    covariance = positive / (label == 1).sum() + negative / (label == 0).sum()
    contrast = np.array([1, -1])
    pair = RankedRows(label, score), RankedRows(label, other)
    assert delong_variance([pair[0]]) == pytest.approx(covariance[0, 0], abs=1e-15)
    assert delong_variance([pair[0]], [pair[1]]) == pytest.approx(contrast @ covariance @ contrast, abs=1e-15)


def test_delong_is_the_deviation_of_drawn_rows():
    """Rows drawn anew from one population: the AUC deviates as DeLong's variance says."""
    generator = np.random.default_rng(1)
    aucs, variances = [], []
    for _ in range(400):
        label = np.repeat([0, 1], [200, 100])
        run = RankedRows(label, generator.normal(size=300) + label)
        aucs.append(run.auc)
        variances.append(delong_variance([run]))
    assert np.mean(variances) == pytest.approx(np.var(aucs), rel=0.15)


def test_each_draw_is_as_many_users():
    drawn = draw_users(7, 50, np.random.default_rng(0))
    assert drawn.shape == (7, 50)
    assert (drawn.sum(axis=0) == 7).all()
    assert drawn.std() == pytest.approx(np.sqrt(6 / 7), rel=0.1)  # binomial of 7 draws with chance 1/7


def test_bootstrap_is_that_of_repeated_rows(monkeypatch):
    """The same users drawn, their rows repeated, scikit-learn's AUC; in chunks or at once."""
    generator = np.random.default_rng(3)
    user = np.unique(generator.integers(12, size=60), return_inverse=True)[1]
    label, scores = generator.integers(2, size=60), np.round(generator.random((2, 60)), 1)
    runs = [RankedRows(label, score) for score in scores]
    users = user.max() + 1
    times = draw_users(users, 20, np.random.default_rng(5))[user].astype(int)
    expected = [
        [roc_auc_score(np.repeat(label, column), np.repeat(score, column)) for column in times.T] for score in scores
    ]
    np.testing.assert_allclose(bootstrap_aucs(runs, user, 20, seed=5), expected)
    monkeypatch.setattr("fuxictr_mm.evaluation.significance.CHUNK", 60 * 7)
    in_chunks = bootstrap_aucs(runs, user, 20, seed=5)
    assert in_chunks.shape == (2, 20)
    np.testing.assert_allclose(in_chunks[:, :7], bootstrap_aucs(runs, user, 7, seed=5))


def test_draws_of_one_class_are_left_out():
    label = np.array([1, 0, 0, 0])
    found = bootstrap_aucs([RankedRows(label, np.arange(4.0))], np.arange(4), 200, seed=0)
    assert 0 < found.shape[1] < 200
    assert not np.isnan(found).any()


def test_users_with_many_rows_widen_the_interval():
    """Each user's rows are copies of one: there is as much to learn as from one row each."""
    generator = np.random.default_rng(2)
    label = generator.integers(2, size=100)
    score = generator.normal(size=100) + label
    once = bootstrap_aucs([RankedRows(label, score)], np.arange(100), 500, seed=1)
    copies = RankedRows(np.repeat(label, 5), np.repeat(score, 5))
    by_user = bootstrap_aucs([copies], np.repeat(np.arange(100), 5), 500, seed=1)
    by_row = bootstrap_aucs([copies], np.arange(500), 500, seed=1)
    np.testing.assert_allclose(by_user, once)
    assert by_row.std() < 0.6 * by_user.std()
