"""Weighted metrics and DeLong's variance against plain re-computations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from fuxictr_mm.evaluation.intervals import Errors, Ranking, auc_with_interval, sampling_error, sampling_variance
from fuxictr_mm.evaluation.significance import Side, bootstrap, difference

#: Label, score with ties, and weight of each example.
EXAMPLES = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.1, 0.2, 0.2, 0.5, 0.9]), st.integers(0, 3)), min_size=2, max_size=12
)
BOTH_CLASSES = EXAMPLES.filter(lambda examples: len({label for label, _, _ in examples}) == 2)


@settings(max_examples=80, deadline=None)
@given(BOTH_CLASSES)
def test_weights_are_repetitions(examples):
    label, score, weight = (np.array(column) for column in zip(*examples, strict=True))
    (found,) = Ranking(label, score).weighted(weight[:, None].astype(float))
    repeated = np.repeat(label, weight)
    if len(set(repeated)) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(repeated, np.repeat(score, weight)))


@settings(max_examples=60, deadline=None)
@given(EXAMPLES, st.integers(0, 9))
def test_delong_by_all_pairs(examples, seed):
    """The paper's form: covariance matrices of the components, and the contrast (1, -1) of two AUCs."""
    label, score, _ = (np.array(column) for column in zip(*examples, strict=True))
    found = auc_with_interval(label, score)
    positives, negatives = int(label.sum()), int((1 - label).sum())
    if not positives or not negatives:
        assert set(found.values()) == {None}
        return
    other = np.random.default_rng(seed).permutation(score)
    won = [
        (s[label == 1][:, None] > s[label == 0]) + 0.5 * (s[label == 1][:, None] == s[label == 0])
        for s in (score, other)
    ]
    for axis, ours in ((1, 0), (0, 1)):
        np.testing.assert_allclose(Ranking(label, score).components[ours], won[0].mean(axis=axis), atol=1e-12)
    assert found["auc"] == pytest.approx(roc_auc_score(label, score))
    assert found["low"] <= found["auc"] <= found["high"]
    if min(positives, negatives) < 2:
        assert sampling_error([Ranking(label, score)]) is None
        return
    covariance = np.cov([w.mean(axis=1) for w in won]) / positives + np.cov([w.mean(axis=0) for w in won]) / negatives
    pair = Ranking(label, score), Ranking(label, other)
    assert sampling_variance([pair[0]]) == pytest.approx(covariance[0, 0], abs=1e-15)
    contrast = np.array([1, -1])
    assert sampling_variance([pair[0]], [pair[1]]) == pytest.approx(contrast @ covariance @ contrast, abs=1e-15)
    assert sampling_variance([pair[0]], [pair[0]]) == 0


def test_delong_variance_is_that_of_samples():
    generator, aucs, variances = np.random.default_rng(0), [], []
    label = np.repeat([0.0, 1.0], 100)
    for _ in range(400):
        ranking = Ranking(label, generator.normal(label, 1))
        aucs.append(ranking.value)
        variances.append(sampling_variance([ranking]))
    assert np.mean(variances) == pytest.approx(np.var(aucs), rel=0.15)


@pytest.mark.parametrize(("positives", "negatives"), [(2, 2), (3, 3), (4, 4), (6, 6), (20, 20), (200, 200), (2, 100)])
@pytest.mark.parametrize("distance", [0, 1, 3])
def test_the_interval_covers_the_true_auc(positives, negatives, distance):
    """Scores from two normal distributions, whose AUC is known: 0.5, 0.76 or 0.98."""
    generator, samples = np.random.default_rng(0), 200
    label = np.repeat([1.0, 0.0], [positives, negatives])
    truth = stats.norm.cdf(distance / math.sqrt(2))
    found = [auc_with_interval(label, generator.normal(distance * label, 1)) for _ in range(samples)]
    inside = sum(entry["low"] <= truth <= entry["high"] for entry in found)
    assert inside >= stats.binom.ppf(0.01, samples, 0.95)
    assert all(entry["low"] < entry["high"] for entry in found)


def test_the_interval_of_many_examples_is_delongs():
    generator = np.random.default_rng(0)
    label = np.repeat([1.0, 0.0], [6000, 14000])
    ranking = Ranking(label, generator.normal(label, 1))
    found = auc_with_interval(label, ranking.score)
    half = 1.959964 * sampling_error([ranking])
    assert (found["low"], found["high"]) == pytest.approx((ranking.value - half, ranking.value + half), abs=5e-4)


def test_the_interval_of_some_hundred_examples_is_hardly_wider_than_delongs():
    label = np.repeat([1.0, 0.0], 200)
    ranking = Ranking(label, np.random.default_rng(0).normal(label, 1))
    found = auc_with_interval(label, ranking.score)
    assert 1 < (found["high"] - found["low"]) / (2 * 1.959964 * sampling_error([ranking])) < 1.05


@pytest.mark.parametrize(("label", "expected"), [(np.repeat([0, 1], 20), 0.0), (np.repeat([0, 1], [39, 1]), None)])
def test_delong_p_without_variance_and_of_one_example(label, expected):
    """The first ranks every pair right, the second every pair wrong."""
    rankings = [Ranking(label, sign * np.arange(40.0)) for sign in (1, -1)]
    drawn = bootstrap(rankings, np.arange(40), 200, seed=0)
    pair = [Side(name, name, [rankings[i]], drawn[i : i + 1]) for i, name in enumerate("AB")]
    assert difference(*pair, 40).rows_p == expected


@pytest.mark.parametrize("metric", ["RMSE", "MAE"])
def test_errors_under_weights_are_those_of_repeated_examples(metric):
    generator = np.random.default_rng(0)
    label, prediction = generator.normal(size=(2, 30))
    times = generator.integers(0, 4, size=30)
    error = np.repeat(prediction - label, times)
    expected = np.sqrt((error**2).mean()) if metric == "RMSE" else np.abs(error).mean()
    (found,) = Errors(label, prediction, metric).weighted(times[:, None].astype(float))
    assert found == pytest.approx(expected)
    assert Errors(label, prediction, metric).value == pytest.approx(
        Errors(label, prediction, metric).weighted(np.ones((30, 1)))[0]
    )


@pytest.mark.parametrize("metric", ["RMSE", "MAE"])
def test_the_error_of_a_difference_in_errors_is_that_of_samples(metric):
    """Two runs with a common part of their errors: the difference varies less than if they had none."""
    generator = np.random.default_rng(1)
    found, estimated = [], []
    for _ in range(400):
        common, *own = generator.normal(size=(3, 300))
        pair = [Errors(np.zeros(300), common + size * part, metric) for size, part in zip((0.3, 0.6), own, strict=True)]
        found.append(pair[0].value - pair[1].value)
        estimated.append(sampling_error(pair[:1], pair[1:]))
    assert np.mean(estimated) == pytest.approx(np.std(found), rel=0.1)
    assert np.mean(estimated) < 0.8 * np.hypot(sampling_error(pair[:1]), sampling_error(pair[1:]))  # unpaired
