"""Captions of the figures of a diagnosis."""

import pytest

from fuxictr_mm.report.diagnosis_figures import plot_diagnosis


@pytest.mark.parametrize(
    ("drop", "warned", "said"),
    [
        (-0.05, True, "Harmful"),
        (-0.015, False, None),  # more than its noise, which is expected of some of many parts
        (-0.001, False, "No more than noise"),
        (0.05, False, "Each has an effect"),
    ],
)
def test_captions_say_what_the_findings_say(drop, warned, said):
    entries = [("text", 0.1), ("image", drop)]
    groups = [{"name": name, "kind": "modality", "auc_lost": value, "noise": 0.01} for name, value in entries]
    heads = [
        {"head": head, "output_share": 0.5, "removed_auc_lost": value, "removed_noise": 0.01}
        for head, (_, value) in enumerate(entries)
    ]
    of_heads = [{"attention": "attention", "all_removed_auc_lost": 0.1, "heads": heads}]
    findings = [
        {"section": section, "code": "harmful", "subject": subject}
        for section, subject in (("importance", "image"), ("heads", "attention head 1"))
        if warned
    ]
    diagnosis = {"importance": {"groups": groups, "fields": []}, "heads": of_heads, "findings": findings}
    plots, notes = plot_diagnosis(diagnosis)
    assert (len(plots), notes) == (2, [])
    for plot in plots:
        claims = [claim for claim in ("Harmful", "No more than noise", "Each has an effect") if claim in plot.caption]
        assert claims == ([said] if said else [])
