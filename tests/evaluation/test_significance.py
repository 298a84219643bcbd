"""The two claims: seeds of one configuration are not told apart, and a difference of 0.01 AUC is found or too small."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fuxictr_mm.evaluation.significance import (
    RankedRows,
    Side,
    bootstrap_aucs,
    delong_variance,
    difference,
    fixed,
    holm,
    pool,
    verdict,
)


def sides(world, scores, other_seeds=((), ()), configurations=("a", "b"), samples=200):
    """Make two sides of lists of scores."""
    ranked = [[RankedRows(world.label, score) for score in side] for side in scores]
    drawn = bootstrap_aucs([run for side in ranked for run in side], world.user, samples, seed=0)
    drawn = np.split(drawn, [len(ranked[0])])
    others = [[RankedRows(world.label, score).auc for score in side] for side in other_seeds]
    return [Side(*values) for values in zip("AB", configurations, ranked, drawn, others, strict=True)]


def compare(world, *arguments, **options):
    first, second = sides(world, *arguments, **options)
    found = difference(first, second, world.user.max() + 1)
    return found, verdict(first, second, found)


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_seeds_of_one_configuration_are_not_told_apart(world, runs):
    """As two experiments: nothing says that the configuration is one, and yet 9 times in 10 no difference is shown."""
    sentences, naive = [], 0
    for trial in range(40):
        rows = world(trial, 1000, 400)
        seed = rows.model(0.3)
        found, sentence = compare(rows, [[seed() for _ in range(runs)] for _ in "AB"])
        sentences.append(sentence)
        naive += found.rows_low > 0 or found.rows_high < 0
    assert sum(sentence.startswith("no difference") for sentence in sentences) >= 36
    # What rows alone would say of 3 seeds against 3 is wrong more often: the reason why seeds are counted.
    assert runs < 3 or naive > 0


def test_single_runs_with_more_seeds_in_the_records(world):
    shown = 0
    for trial in range(40):
        rows = world(trial, 1000, 400)
        seed = rows.model(0.3)
        others = [seed() for _ in range(4)]
        shown += compare(rows, [[seed()], [seed()]], (others, others), ("a", "a"))[0].is_shown()
    assert shown <= 4


@pytest.mark.parametrize(("rows", "users"), [(10_000, 4_000), (1_000, 400)])
def test_a_planted_difference_is_found_or_the_rows_are_too_few(world, rows, users):
    """Noise of 0.395 instead of 0.3 takes 0.004 off AUC, 0.48 takes 0.01 off."""
    found_or_said = 0
    for trial in range(20):
        drawn = world(trial, rows, users)
        better, worse = drawn.model(0.3), drawn.model(0.5)
        found, sentence = compare(drawn, [[worse() for _ in range(3)], [better() for _ in range(3)]])
        if found.is_shown():
            assert sentence.startswith("B is better than A by 0.0")
            found_or_said += 1
        else:
            blind = re.search(r"differences below (0\.\d+) cannot be seen \(80 % power\)", sentence)
            found_or_said += float(blind[1]) > 0.01
    assert found_or_said >= 18


def test_the_interval_covers_the_true_difference(world):
    """New rows and new seeds: the difference of two populations lies in 95 % of the intervals."""
    large = world(0, 200_000, 50_000)
    large.generator = np.random.default_rng(1)
    truth = [RankedRows(large.label, large.model(noise)()).auc for noise in (0.3, 0.6)]
    covered = 0
    for trial in range(40):
        rows = world(1000 + trial, 1000, 400)
        one, two = rows.model(0.3), rows.model(0.6)
        found, _ = compare(rows, [[one() for _ in range(3)], [two() for _ in range(3)]])
        covered += found.low <= truth[0] - truth[1] <= found.high
    assert covered >= 35


def test_the_interval_by_hand(world):
    rows = world(5, 500, 200)
    one, two = rows.model(0.3), rows.model(0.6)
    first, second = sides(rows, [[one() for _ in range(3)], [two() for _ in range(2)]])
    found = difference(first, second, 200)
    mean = first.samples.mean(axis=0) - second.samples.mean(axis=0)
    spread = np.sqrt(((first.aucs - first.mean) ** 2).sum() + ((second.aucs - second.mean) ** 2).sum()) / np.sqrt(3)
    of_rows = stats.t.ppf(0.975, 199) * mean.std(ddof=1)
    of_seeds = stats.t.ppf(0.975, 3) * spread * np.sqrt(1 / 3 + 1 / 2)
    width = np.sqrt(of_rows**2 + of_seeds**2)
    assert found.value == pytest.approx(first.mean - second.mean)
    assert (found.low, found.high) == pytest.approx((found.value - width, found.value + width))
    assert (found.rows_low, found.rows_high) == pytest.approx(tuple(np.percentile(mean, [2.5, 97.5])))
    assert found.detectable > width
    z = found.value / np.sqrt(delong_variance(first.runs, second.runs))
    assert found.delong_p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert (found.p_value < 0.05) == (abs(found.value) > width)
    # At the level of p, the interval would just reach the difference.
    reach = np.hypot(
        stats.t.isf(found.p_value / 2, 199) * found.rows_error, stats.t.isf(found.p_value / 2, 3) * found.seeds_error
    )
    assert reach == pytest.approx(abs(found.value))


def test_sentences(world):
    rows = world(6, 600, 250)
    good, bad = rows.model(0.1), rows.model(3.0)
    _, sentence = compare(rows, [[good() for _ in range(3)], [bad() for _ in range(3)]])
    assert re.fullmatch(r"A is better than B by 0\.\d{4} \(95 % interval 0\.\d{4} to 0\.\d{4}\)", sentence)
    _, sentence = compare(rows, [[good()], [bad()]])
    assert "no difference shown: the weights of A rank these rows better than those of B by 0." in sentence
    assert sentence.endswith("but other seeds of A and B alone may change as much: run 3 of each")
    _, sentence = compare(rows, [[good() for _ in range(3)], [bad()]])
    assert sentence.endswith("but other seeds of B alone may change as much: run 3 of each")
    _, sentence = compare(rows, [[good()], [good()]], configurations=("a", "a"))
    assert sentence.endswith("(two seeds of one configuration)")
    same = good()
    assert compare(rows, [[same], [same]])[1] == "no difference: A and B predict the same"


def test_the_larger_part_of_the_interval_is_named(world):
    """Few seeds weigh more than their error says: t of 4 degrees is 2.8, of 249 it is 2.0."""
    rows = world(6, 600, 250)
    first, second = sides(rows, [[rows.model(0.3)() for _ in range(3)] for _ in "AB"])
    spread = float(np.sqrt((np.var(first.aucs) + np.var(second.aucs)) * 3 / 4))
    drawn = first.samples.mean(axis=0) - second.samples.mean(axis=0)
    wanted = spread * np.sqrt(2 / 3) * 1.2  # error of the rows, between the error of the seeds and its part
    stretched = first.samples + ((wanted / drawn.std(ddof=1) - 1) * (drawn - drawn.mean()))[None]
    found = difference(replace(first, samples=stretched), second, 250)
    assert found.seeds_error < found.rows_error
    assert found.seeds_reach > found.rows_reach
    assert np.hypot(found.rows_reach, found.seeds_reach) == pytest.approx(found.high - found.value)
    blank = replace(found, value=found.low - found.low, p_value=1.0)
    assert "with these seeds differences below" in verdict(first, second, blank)
    assert "(80 % power)" in verdict(first, second, blank)
    assert "(80 % power, for this pair alone)" in verdict(first, second, blank, 1.0)


def test_zero_has_no_sign(world):
    rows = world(6, 600, 250)
    score = rows.model(0.3)()
    found, _ = compare(rows, [[score, score], [score, score]])
    assert fixed(-found.value) == fixed(-0.00004) == "0.0000"
    sentence = verdict(*sides(rows, [[score], [score]]), replace(found, rows_error=1.0, low=-0.0, high=-0.0))
    assert "-0.0000" not in sentence


def test_a_few_runs_alone_say_nothing_of_seeds():
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
