"""The order of findings."""

import pytest

from fuxictr_mm.diagnosis.findings import (
    MODEL_AT_CHANCE,
    NOTE,
    PROBLEM,
    WARNING,
    Finding,
    Scale,
    ordered,
)
from fuxictr_mm.runs import cost_name


def make(severity, code):
    return Finding(severity, "section", code, "subject", "text", "advice")


def test_the_worst_come_first_and_equals_keep_their_order():
    found = [make(NOTE, "a"), make(WARNING, "silent_head"), make(PROBLEM, "c"), make(WARNING, "d")]
    assert [f.code for f in ordered(found)] == ["c", "silent_head", "d", "a"]


def test_at_chance_parts_without_effect_are_left_out():
    found = [make(WARNING, "silent_head"), make(NOTE, "a"), make(PROBLEM, MODEL_AT_CHANCE)]
    assert [f.code for f in ordered(found)] == [MODEL_AT_CHANCE, "a"]


@pytest.mark.parametrize(("drop", "found"), [(-0.02, 1), (-0.008, 0), (-0.004, 0), (0.02, 0)])
def test_what_raises_the_auc_when_it_is_changed_is_harmful(drop, found):
    harmful = list(Scale().find_harmful("importance", "image", "permuting it", drop, 0.005))
    assert [(f.severity, f.code, f.subject) for f in harmful] == [(WARNING, "harmful", "image")] * found
    assert Scale().is_negligible(drop, 0.005) == (abs(drop) < 0.005)


def test_a_regression_is_measured_by_its_error_and_a_fraction_of_it_is_negligible():
    scale = Scale.of({"metric": "RMSE", "metrics": {"rmse": 20.0}})
    assert (cost_name(scale.metric), scale.is_negligible(0.02, 0.0), scale.is_negligible(0.03, 0.0)) == (
        "RMSE increase",
        True,
        False,
    )
    (finding,) = scale.find_harmful("importance", "image", "permuting it", -0.1, 0.01)
    assert "lowers the RMSE by 0.1" in finding.text
    assert Scale.of({}) == Scale()  # of an older version
