"""The order of findings."""

from fuxictr_mm.diagnosis.findings import MODEL_AT_CHANCE, NOTE, PROBLEM, WARNING, Finding, ordered


def make(severity, code):
    return Finding(severity, "section", code, "subject", "text", "advice")


def test_the_worst_come_first_and_equals_keep_their_order():
    found = [make(NOTE, "a"), make(WARNING, "silent_head"), make(PROBLEM, "c"), make(WARNING, "d")]
    assert [f.code for f in ordered(found)] == ["c", "silent_head", "d", "a"]


def test_at_chance_parts_without_effect_are_left_out():
    found = [make(WARNING, "silent_head"), make(NOTE, "a"), make(PROBLEM, MODEL_AT_CHANCE)]
    assert [f.code for f in ordered(found)] == [MODEL_AT_CHANCE, "a"]
