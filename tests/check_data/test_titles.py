"""Titles: what is a fault, what only looks like one, and what a mended title is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.check_data.checks import Report
from fuxictr_mm.check_data.titles import JUDGED, check_titles, judge, mend

ENGLISH = [
    "the quick brown fox jumps over the lazy dog",
    "how to cook noodles in a small kitchen",
    "a day with my little brother at the beach",
    "why the castle on the hill was never finished",
]
SOUND = [
    "“Curly quotes” — it’s fine…",  # noqa: RUF001
    "Café Müller",
    "Amélie (2001)",
    "[REC] (2007)",
    "[2012] the best of",
    "WALL·E",
    "Se7en",
    "If...",
    "Sorry, Wrong Number",
    "I, Robot",
    "Here is the man",
    "The Translation",
    "Title: unknown pleasures",
    "100% Wolf 🐺",
    "¿Qué?",
    "None but the Lonely Heart",
    "{proof}",
    "Asimov: an AI",
    "Q&A; AT&T; R&B",
    "I <3 you <and> me",
    "a < b > c",
    r"C:\new\things",
    r"AC\DC, ¯\_(ツ)_/¯",
    "Tora! Tora! Tora!",
    "ha ha ha ha ha",
    "FearDotCom, Amazon.com",
]


@pytest.mark.parametrize("title", SOUND)
def test_sound_titles_are_left_alone(title):
    assert judge(title) is None
    assert mend(title) == title


@pytest.mark.parametrize(
    ("title", "check", "mended"),
    [
        ("", "empty-title", ""),
        ("\u3000\u200b", "empty-title", ""),
        ("???", "empty-title", ""),
        ("NULL", "empty-title", ""),
        ("Untitled", "empty-title", ""),
        ("CafÃ© con leche", "mojibake", "Café con leche"),
        ("broken \ufffd byte", "lost-character", "broken \ufffd byte"),
        ('{"title": "broken \ufffd byte"}', "json-title", "broken \ufffd byte"),
        ("<b>T</b>wo<br/>cats <!-- x -->", "markup-title", "Two cats"),
        ("<script>alert(1)</script>Two cats", "markup-title", "Two cats"),
        ("Two cats &amp;amp; a dog&#39;s&nbsp;day", "markup-title", "Two cats & a dog's day"),
        ("&lt;i&gt;Two cats&lt;/i&gt;", "markup-title", "Two cats"),
        (r"Two cats\nand a dog\t", "escape-title", "Two cats and a dog"),
        (r"Caf\u00e9 \ud83d\ude00 \xe9", "escape-title", "Café 😀 é"),
        (r"the \"Two\" cats", "escape-title", 'the "Two" cats'),
        (r"half \ud83d a pair", "escape-title", "half \ufffd a pair"),
        ("Two cats https://example.org/a?b=c", "url-title", "Two cats"),
        ("www.example.org", "url-title", ""),
        ("Cats cats cats, cats cats cats and dogs", "repeated-word-title", "Cats and dogs"),
        ('{"translation": "Two cats"}', "json-title", "Two cats"),
        ('{"a": {"b": ["Two cats"]}}', "json-title", "Two cats"),
        ('["Two cats", "Two dogs"]', "json-title", "Two cats"),
        ("{'title': 'Two cats'}", "json-title", "Two cats"),
        ('{"title": "Two ca', "json-title", "Two ca"),
        ('Two cats"}', "json-title", "Two cats"),
        ("```\nTwo cats\n```", "json-title", "Two cats"),
        ('```json\n{"title": "Two cats"}', "json-title", "Two cats"),
        ("{}", "empty-title", ""),
        ('Sure! Here\'s the English translation of the title: "Two cats"', "assistant-title", "Two cats"),
        ("Translation: Two cats", "assistant-title", "Two cats"),
        ("Translated to English: Two cats", "assistant-title", "Two cats"),
        ("I'm sorry, but I can't help with that.", "assistant-title", ""),
        ("As an AI", "assistant-title", ""),
        ("Please provide the text you would like translated", "assistant-title", ""),
    ],
)
def test_faults_are_named_and_mended(title, check, mended):
    verdict = judge(title)
    assert verdict is not None
    assert (verdict.check, mend(title)) == (check, mended)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_judged_and_a_mended_title_is_sound_or_empty(title):
    mended = mend(title)
    verdict = judge(mended)
    assert verdict is None or verdict.check in JUDGED


@pytest.mark.parametrize("part", ["a ", "ab", "<", "\\", "&", "www.", "<!--", "<script>", "http://"])
def test_long_titles_are_judged_too(part):
    judge(part * 5000 + ";")


def found(titles, check, **options):
    report = Report([check])
    check_titles("f.parquet", "item_title", titles, np.arange(1, len(titles) + 1), report, **options)
    return report.findings()


@pytest.mark.parametrize(
    "title",
    [
        "我的猫在厨房里",
        "Мой кот на кухне",
        "กินข้าว",
        "고양이가 부엌에 있다",
        "le petit chat noir qui dort sous la table",
        "Das kleine Haus am See und die Kinder",
        "El perro que habla con su abuela en la cocina",
    ],
)
def test_titles_in_another_language(title):
    (finding,) = found([*ENGLISH, title], "foreign-title")
    assert finding.rows.tolist() == [4]
    assert finding.expected == "titles in 'en'"


@pytest.mark.parametrize("title", ["Amour", "Bella ciao", "La vita", "π", "Crouching Tiger 卧", "Déjà vu in Paris"])
def test_short_titles_and_names_are_not_judged(title):
    assert found([*ENGLISH, title], "foreign-title") == []


def test_expected_language_may_be_given():
    (finding,) = found([*ENGLISH, "我的猫在厨房里", "Tom Hanks"], "foreign-title", language="zh")
    assert finding.rows.tolist() == [0, 1, 2, 3]


def test_shared_titles_are_infos_unless_something_else_is_shared():
    titles = ["one fish", "one fish", "two fish", "Two  Fish!", *["more fish"] * 10]
    infos, warnings = [], []
    for finding in found(titles, "duplicate-title"):
        (infos if finding.severity == "info" else warnings).extend(finding.rows.tolist())
    assert infos == [0, 1]
    assert sorted(warnings) == list(range(2, 14))
    (finding,) = found(titles[:2], "duplicate-title", twins={1, 2})
    assert finding.severity == "warning"
    assert finding.values[0] == "one fish (items 1, 2)"
