"""Captions of the figures of a diagnosis."""

import pytest

from fuxictr_mm.report.diagnosis_figures import plot_diagnosis


@pytest.mark.parametrize(("drop", "said"), [(-0.05, "Harmful"), (-0.001, "No more than noise"), (0.05, "Each costs")])
def test_a_rise_of_the_auc_is_not_noise(drop, said):
    entries = [("text", 0.1), ("image", drop)]
    groups = [{"name": name, "kind": "modality", "auc_lost": value, "noise": 0.01} for name, value in entries]
    heads = [
        {"head": head, "output_share": 0.5, "removed_auc_lost": value, "removed_noise": 0.01}
        for head, (_, value) in enumerate(entries)
    ]
    of_heads = [{"attention": "attention", "all_removed_auc_lost": 0.1, "heads": heads}]
    plots, notes = plot_diagnosis({"importance": {"groups": groups, "fields": []}, "heads": of_heads})
    assert (len(plots), notes) == (2, [])
    for plot in plots:
        assert said in plot.caption
