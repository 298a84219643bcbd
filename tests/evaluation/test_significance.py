"""The bootstrap against a plain re-computation; how often a comparison errs."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from fuxictr_mm.evaluation import significance
from fuxictr_mm.evaluation.intervals import Errors, Ranking, sampling_variance
from fuxictr_mm.evaluation.significance import Side, bootstrap, conclude, difference, fixed, holm, pool, sample_users


def test_each_sample_has_as_many_users():
    drawn = sample_users(7, 50, np.random.default_rng(0))
    assert drawn.shape == (7, 50)
    assert (drawn.sum(axis=0) == 7).all()
    assert drawn.std() == pytest.approx(np.sqrt(6 / 7), rel=0.1)  # binomial, 7 trials of probability 1/7


def test_bootstrap_repeats_the_examples_of_users(monkeypatch):
    """The same users sampled, their examples repeated, scikit-learn's AUC; in chunks or at once."""
    generator = np.random.default_rng(3)
    user = np.unique(generator.integers(12, size=60), return_inverse=True)[1]
    label, scores = generator.integers(2, size=60), np.round(generator.random((2, 60)), 1)
    rankings = [Ranking(label, score) for score in scores]
    times = sample_users(user.max() + 1, 20, np.random.default_rng(5))[user].astype(int)
    expected = [
        [roc_auc_score(np.repeat(label, column), np.repeat(score, column)) for column in times.T] for score in scores
    ]
    np.testing.assert_allclose(bootstrap(rankings, user, 20, seed=5), expected)
    monkeypatch.setattr(significance, "CHUNK", 60 * 7)
    in_chunks = bootstrap(rankings, user, 20, seed=5)
    assert in_chunks.shape == (2, 20)
    np.testing.assert_allclose(in_chunks[:, :7], bootstrap(rankings, user, 7, seed=5))


def test_samples_of_one_class_are_left_out():
    found = bootstrap([Ranking(np.array([1, 0, 0, 0]), np.arange(4.0))], np.arange(4), 200, seed=0)
    assert 0 < found.shape[1] < 200
    assert not np.isnan(found).any()


def test_users_with_many_examples_widen_the_interval():
    """Each user's examples are copies of one: they tell no more than one each."""
    generator = np.random.default_rng(2)
    label = generator.integers(2, size=100)
    score = generator.normal(size=100) + label
    once = bootstrap([Ranking(label, score)], np.arange(100), 500, seed=1)
    copies = Ranking(np.repeat(label, 5), np.repeat(score, 5))
    by_user = bootstrap([copies], np.repeat(np.arange(100), 5), 500, seed=1)
    by_row = bootstrap([copies], np.arange(500), 500, seed=1)
    np.testing.assert_allclose(by_user, once)
    assert by_row.std() < 0.6 * by_user.std()


def sides(world, scores, other_seeds=((), ()), configurations=("a", "b"), samples=200):
    """Make two sides of lists of scores."""
    rankings = [[Ranking(world.label, score) for score in side] for side in scores]
    drawn = bootstrap([run for side in rankings for run in side], world.user, samples, seed=0)
    drawn = np.split(drawn, [len(rankings[0])])
    others = [[Ranking(world.label, score).value for score in side] for side in other_seeds]
    return [Side(*values) for values in zip("AB", configurations, rankings, drawn, others, strict=True)]


def compare(world, *arguments, **options):
    return difference(*sides(world, *arguments, **options), world.user.max() + 1)


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_seeds_of_one_configuration_do_not_differ(world, runs):
    """Given as two configurations; the bootstrap alone errs more often, so seeds have to count."""
    significant, naive = 0, 0
    for trial in range(40):
        examples = world(trial, 1000, 400)
        seed = examples.model(0.3)
        found = compare(examples, [[seed() for _ in range(runs)] for _ in "AB"])
        significant += found.is_significant()
        naive += found.rows_low > 0 or found.rows_high < 0
    assert significant <= 4
    assert runs < 3 or naive > 0


def test_single_runs_are_judged_by_other_seeds(world):
    significant = 0
    for trial in range(40):
        examples = world(trial, 1000, 400)
        seed = examples.model(0.3)
        others = [seed() for _ in range(4)]
        significant += compare(examples, [[seed()], [seed()]], (others, others), ("a", "a")).is_significant()
    assert significant <= 4


@pytest.mark.parametrize(("rows", "users", "trials"), [(10_000, 4_000, 10), (1_000, 400, 20)])
def test_a_planted_difference_is_significant_or_not_detectable(world, rows, users, trials):
    """Noise of 0.395 instead of 0.3 lowers the AUC by 0.004, noise of 0.48 by 0.01."""
    right = 0
    for trial in range(trials):
        drawn = world(trial, rows, users)
        better, worse = drawn.model(0.3), drawn.model(0.5)
        found = compare(drawn, [[worse() for _ in range(3)], [better() for _ in range(3)]])
        right += found.value < 0 if found.is_significant() else found.detectable > 0.01
    assert right >= 0.9 * trials


def test_the_interval_covers_the_true_difference(world):
    """New examples and new seeds: the difference of two populations lies in 95 % of the intervals."""
    large = world(0, 200_000, 50_000)
    large.generator = np.random.default_rng(1)
    truth = [Ranking(large.label, large.model(noise)()).value for noise in (0.3, 0.6)]
    covered = 0
    for trial in range(40):
        examples = world(1000 + trial, 1000, 400)
        one, two = examples.model(0.3), examples.model(0.6)
        found = compare(examples, [[one() for _ in range(3)], [two() for _ in range(3)]])
        covered += found.low <= truth[0] - truth[1] <= found.high
    assert covered >= 35


def test_the_interval_by_hand(world):
    examples = world(5, 500, 200)
    one, two = examples.model(0.3), examples.model(0.6)
    first, second = sides(examples, [[one() for _ in range(3)], [two() for _ in range(2)]])
    found = difference(first, second, 200)
    mean = first.samples.mean(axis=0) - second.samples.mean(axis=0)
    spread = np.sqrt(((first.values - first.mean) ** 2).sum() + ((second.values - second.mean) ** 2).sum()) / np.sqrt(3)
    of_rows = stats.t.ppf(0.975, 199) * mean.std(ddof=1)
    of_seeds = stats.t.ppf(0.975, 3) * spread * np.sqrt(1 / 3 + 1 / 2)
    half = np.sqrt(of_rows**2 + of_seeds**2)
    assert found.value == pytest.approx(first.mean - second.mean)
    assert (found.rows_reach, found.seeds_reach) == pytest.approx((of_rows, of_seeds))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half))
    assert (found.rows_low, found.rows_high) == pytest.approx(tuple(np.percentile(mean, [2.5, 97.5])))
    assert found.detectable > half
    z = found.value / np.sqrt(sampling_variance(first.runs, second.runs))
    assert found.rows_p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert (found.p_value < 0.05) == (abs(found.value) > half)
    # At the level of p, the interval would just reach the difference.
    tails = [stats.t.isf(found.p_value / 2, degrees) for degrees in (199, 3)]
    reach = np.hypot(tails[0] * found.rows_error, tails[1] * found.seeds_error)
    assert reach == pytest.approx(abs(found.value))


def test_single_runs_are_never_significant_and_same_scores_have_no_difference(world):
    examples = world(6, 600, 250)
    good, bad = examples.model(0.1), examples.model(3.0)
    assert compare(examples, [[good() for _ in range(3)], [bad() for _ in range(3)]]).is_significant()
    alone = compare(examples, [[good()], [bad()]])
    assert alone.low > 0
    assert alone.seeds is None
    assert not alone.is_significant()
    same = good()
    equal = compare(examples, [[same], [same]])
    assert (equal.value, equal.rows_error, equal.p_value, equal.rows_p) == (0, 0, 1, 1)


def test_conclusions_name_the_better_side_and_the_detectable_difference(world):
    examples = world(6, 600, 250)
    pair = sides(examples, [[examples.model(noise)() for _ in range(3)] for noise in (3.0, 0.1)])
    found = difference(*pair, 250)
    assert conclude(*pair, found).startswith(f"B is better than A by {-found.value:.4f} ")
    assert f"{found.detectable:.4f}" in conclude(*pair, found, p_value=1.0)
    assert fixed(-0.00004) == "0.0000"
    zero = replace(found, value=-0.0, low=-0.0, high=-0.0, p_value=1.0)
    assert "-0.0000" not in conclude(*pair, zero)


def test_a_group_of_one_tells_nothing_of_seeds():
    assert pool([[0.7], [0.6, 0.7]]) is None
    assert pool([[0.7, 0.7], [0.6, 0.6]]).value == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_by_its_definition(p_values):
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    expected = np.empty(count)
    for place, index in enumerate(order):
        expected[index] = min(1, max((count - k) * p_values[order[k]] for k in range(place + 1)))
    np.testing.assert_allclose(holm(p_values), expected)


def test_the_side_with_the_smaller_error_is_better():
    generator = np.random.default_rng(2)
    label = generator.normal(size=500)
    runs = [[Errors(label, label + noise * generator.normal(size=500), "RMSE") for _ in range(3)] for noise in (1, 0.5)]
    drawn = bootstrap([run for side in runs for run in side], np.arange(500), 200, seed=0)
    sides = [Side(n, n, r, d) for n, r, d in zip(("far", "near"), runs, (drawn[:3], drawn[3:]), strict=True)]
    found = difference(*sides, 500)
    assert found.value > 0
    assert conclude(*sides, found).startswith("near is better than far by 0.")
    assert conclude(*sides[::-1], difference(*sides[::-1], 500)).startswith("near is better than far by 0.")
