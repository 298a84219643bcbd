"""Titles: what is a fault, what only looks like one, and what a fixed title is."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.check_data import files
from fuxictr_mm.check_data.check import check_folder
from fuxictr_mm.check_data.checks import Report
from fuxictr_mm.check_data.title_faults import find_fault, fix_title
from fuxictr_mm.check_data.titles import Titles

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
    "I Can't Help Myself (Sugar Pie Honey Bunch)",
    "I Can’t Help Falling in Love with You",  # noqa: RUF001
    "I'm Sorry, I Can't Stop Loving You",
    "As an AI Engineer: a working day",
    'The song "Yesterday" [live "1965"]',
    'A set {"small"}',
    '["Weird Al" Yankovic] his best songs',
    "['N Sync] greatest hits",
]


@pytest.mark.parametrize("title", SOUND)
def test_sound_titles_are_left_alone(title):
    assert find_fault(title) is None
    assert fix_title(title) == title


@pytest.mark.parametrize(
    ("title", "check", "fixed"),
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
        ("As an AI assistant I do not know", "assistant-title", ""),
        ("Sorry, I can’t assist with that", "assistant-title", ""),  # noqa: RUF001
        ("I cannot help with this request.", "assistant-title", ""),
        ("['Two cats']", "json-title", "Two cats"),
        ('["Two cats", "Two do', "json-title", "Two cats"),
        ('Here: {"title": "Two cats"}', "json-title", "Two cats"),
        ("Please provide the text you would like translated", "assistant-title", ""),
    ],
)
def test_faults_are_named_and_fixed(title, check, fixed):
    fault = find_fault(title)
    assert fault is not None
    assert (fault.check, fix_title(title)) == (check, fixed)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_fixed_in_the_end(title):
    fixed = fix_title(title)
    assert fix_title(fixed) == fixed


@pytest.mark.parametrize("part", ["a ", "ab", "<", "\\", "&", "www.", "<!--", "<script>", "http://"])
def test_long_titles_take_no_time_either(part):
    fault = find_fault(part * 5000 + ";")
    assert fault is None or len(fault.fixed) < 5000 * len(part)


def found(titles, check, **options):
    report = Report([check])
    rows = pl.DataFrame({"value": titles}).with_row_index("row").with_columns(item_id=pl.col("row") + 1)
    report.examine(Titles(files.DataFile(Path("f.parquet")), "item_title", rows, **options))
    return report.findings()


def rows_of(finding):
    return finding.rows["row"].to_list()


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
    assert rows_of(finding) == [4]


@pytest.mark.parametrize("title", ["Amour", "Bella ciao", "La vita", "π", "Crouching Tiger 卧", "Déjà vu in Paris"])
def test_short_titles_and_names_are_not_judged(title):
    assert found([*ENGLISH, title], "foreign-title") == []


def test_expected_language_may_be_given():
    (finding,) = found([*ENGLISH, "我的猫在厨房里", "Tom Hanks"], "foreign-title", language="zh")
    assert rows_of(finding) == [0, 1, 2, 3]


def test_shared_titles_are_infos_unless_something_else_is_shared():
    titles = ["one fish", "one fish", "two fish", "Two  Fish!", *["more fish"] * 10]
    infos, warnings = [], []
    for finding in found(titles, "duplicate-title"):
        (infos if finding.severity == "info" else warnings).extend(rows_of(finding))
    assert infos == [0, 1]
    assert sorted(warnings) == list(range(2, 14))
    (finding,) = found(titles[:2], "duplicate-title", similar={1, 2})
    assert finding.severity == "warning"
    assert "1, 2" in finding.rows["value"][0]


def test_no_title_is_needed():
    assert found([], "duplicate-title") == found([], "foreign-title") == []


def test_padding_and_shared_titles_over_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_ROWS", 256)
    titles = ["", *[f"title {number % 600}" for number in range(1, 700)]]
    titles[300], titles[5] = "<b>bold</b>", "NULL"
    pq.write_table(pa.table({"item_id": range(700), "item_title": titles}), tmp_path / "item_info.parquet")
    report, _ = check_folder(tmp_path, ["empty-title", "markup-title", "duplicate-title"])
    found = {f.check: rows_of(f) for f in report.findings()}
    assert found.pop("duplicate-title") == [r for n in range(1, 100) if n != 5 for r in (n, n + 600)]
    assert found == {"empty-title": [5], "markup-title": [300]}
