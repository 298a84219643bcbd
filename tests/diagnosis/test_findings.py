"""The order of findings."""

import pytest

from fuxictr_mm.diagnosis.findings import (
    MODEL_AT_CHANCE,
    NOTE,
    PROBLEM,
    WARNING,
    Finding,
    find_harmful,
    is_negligible,
    ordered,
)


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
    harmful = list(find_harmful("importance", "image", "permuting it", drop, 0.005))
    assert [(f.severity, f.code, f.subject) for f in harmful] == [(WARNING, "harmful", "image")] * found
    assert is_negligible(drop, 0.005) == (abs(drop) < 0.005)
