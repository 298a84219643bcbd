"""Captions of the figures of runs."""

import re

import numpy as np

from fuxictr_mm.evaluation.compare import Comparison, _compare_all
from fuxictr_mm.evaluation.intervals import Ranking
from fuxictr_mm.evaluation.significance import Side, bootstrap
from fuxictr_mm.report import figures
from fuxictr_mm.report.comparisons import Comparisons
from fuxictr_mm.report.figures import plot_differences, plot_intervals


class Named:
    def __init__(self, name):
        self.name = name


def test_an_experiment_that_is_better_than_the_first_is_not_called_worse(monkeypatch):
    """As where the leaderboard is not ordered by AUC."""
    generator = np.random.default_rng(0)
    label, user = generator.integers(0, 2, 1000), np.repeat(np.arange(200), 5)
    runs = {
        name: [Ranking(label, strength * label + generator.normal(size=1000)) for _ in range(3)]
        for name, strength in (("good", 1.5), ("bad", 0.2))
    }
    drawn = bootstrap([*runs["good"], *runs["bad"]], user, 100, 0)
    sides = [Side(name, name, runs[name], samples) for name, samples in zip(runs, np.split(drawn, 2), strict=True)]
    comparison = Comparisons(Comparison(sides, [[], []], _compare_all(sides, 200), 1000, 0, 200, 100), [])
    for order in (["good", "bad"], ["bad", "good"]):
        caption = plot_intervals(comparison, [Named(name) for name in order]).caption
        assert re.match("good is highest with .* and bad lowest with ", caption)
    monkeypatch.setattr(figures, "MOST_ROWS", 1)
    assert "first 1 of 2" in plot_intervals(comparison, [Named("good"), Named("bad")]).caption
    monkeypatch.undo()
    for order, said in ((["good", "bad"], "Significantly worse: bad"), (["bad", "good"], "Significantly better: good")):
        caption = plot_differences(comparison, [Named(name) for name in order]).caption
        assert said in caption
        assert caption.count("Significantly") == 1
