"""Checks of the titles of an item file: each by itself, their languages, and those that items share.

Only titles without a fault of ``title_faults`` are checked for their language, conservatively:

- another script: at least two letters and 30 % of all letters are of no script of the expected language;
- another language of the same script: at least 4 words and 15 letters, and the identifier gives the expected language
  less than 1 in 1000 and one other language at least half.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from fuxictr_mm.check_data.arrays import as_text, is_text
from fuxictr_mm.check_data.checks import CHECKS, INFO, WARNING, Fault, Measure, Report, check
from fuxictr_mm.check_data.columns import COLUMN_TYPE
from fuxictr_mm.check_data.files import DataFile
from fuxictr_mm.check_data.layout import ItemFile, Layout
from fuxictr_mm.check_data.title_faults import find_fault
from fuxictr_mm.data.arrow_types import is_bytes
from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.errors import UserError

logger = logging.getLogger(__name__)

#: Checks that need a library of the extra ``quality``.
LIBRARIES = {"mojibake": "ftfy", "lost-character": "ftfy", "foreign-title": "py3langid"}

#: Scripts by the first word of a letter's Unicode name; a language that is not listed is written in Latin letters.
_CJK = ("CJK", "IDEOGRAPHIC", "FULLWIDTH")
_SCRIPTS = {
    **dict.fromkeys(("zh", "yue", "wuu"), _CJK),
    "ja": (*_CJK, "HIRAGANA", "KATAKANA", "HALFWIDTH"),
    "ko": ("HANGUL", *_CJK),
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk", "sr", "kk", "ky", "mn"), ("CYRILLIC",)),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "ug"), ("ARABIC",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("DEVANAGARI",)),
    "he": ("HEBREW",),
    "el": ("GREEK",),
    "th": ("THAI",),
    "ka": ("GEORGIAN",),
    "hy": ("ARMENIAN",),
    "bn": ("BENGALI",),
    "ta": ("TAMIL",),
}
#: Letters of signs and formulas, which belong to no language.
_NEUTRAL = ("MODIFIER", "MATHEMATICAL", "FEMININE", "MASCULINE", "MICRO", "SCRIPT", "DOUBLE-STRUCK", "FULLWIDTH")

#: So many items that share a title are suspicious.
MOST_SHARING = 10
#: A language is identified from at least so many letters and words; probabilities of the expected one and of another.
LEAST_LETTERS, LEAST_WORDS, EXPECTED_MOST, OTHER_LEAST = 15, 4, 1e-3, 0.5


@dataclass(frozen=True)
class Titles:
    """Titles of an item file without another fault."""

    item: DataFile
    column: str
    #: ``row``, ``item_id`` and ``value``, the title.
    rows: pl.DataFrame
    #: Code of the expected language, such as ``"en"``; that of the majority by default.
    language: str | None = None
    #: Items whose embedding is equal, or nearly so, to another's.
    similar: Collection[int] = ()


def check_titles(
    layout: Layout,
    report: Report,
    column: str,
    language: str | None = None,
    similar: Collection[int] = (),
    needs_all: bool = False,
) -> None:
    """Check the titles of all item files that have the column; the other parameters are those of ``Titles``.

    A check whose library is not installed is left out, with a warning, and named in ``layout.not_checked``; with
    ``needs_all`` it is an error.
    """
    items = [item for item in layout.items if column in item.schema.names] if report.wants(str, Titles) else []
    if items and not needs_all:
        layout.not_checked += [f"{item.file}: {column} ({name})" for name in _leave_out(report) for item in items]
    for item in items:
        kind = item.schema.field(column).type
        if not (is_text(kind) or is_bytes(kind)):
            report.add(COLUMN_TYPE, Fault(item.file, column, found=f"holds {kind}", expected="text"))
            continue
        with report.reading(item.path):
            rows = _report_single(item, column, report)
            report.examine(Titles(item, column, rows, language, similar))


def _leave_out(report: Report) -> list[str]:
    """Remove the checks whose library is not installed from the report; return their names."""
    names = [name for name, library in LIBRARIES.items() if name in report.checks and not _is_installed(library)]
    if names:
        logger.warning(
            f"not checked, because {' and '.join(dict.fromkeys(LIBRARIES[name] for name in names))} is not installed: "
            f'{", ".join(names)}; pip install "fuxictr-mm[quality]"'
        )
    report.checks -= set(names)
    return names


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _report_single(item: ItemFile, column: str, report: Report) -> pl.DataFrame:
    """Report the faults of single titles and return the titles without; the padding item is left out."""
    found: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for start, batch in item.chunks([column]):
        for row, title in enumerate(as_text(batch.column(0)), start):
            if item.ids[row] != 0:
                fault = find_fault(title, report.checks)
                if fault or title.strip():
                    found[fault.check if fault else ""].append((row, int(item.ids[row]), title))
    schema = {"row": pl.Int64, ITEM_ID: pl.Int64, "value": pl.String}
    frames = {name: pl.DataFrame(rows, schema, orient="row") for name, rows in found.items()}
    others = frames.pop("", pl.DataFrame(schema=schema))
    for name, frame in frames.items():
        report.add(CHECKS[name], Fault(item.file, column, frame))
    return others


@check(Titles, WARNING, "the most frequent language (or --language)")
def foreign_title(titles: Titles) -> Iterator[Fault | Measure]:
    """Titles in another language."""
    identifier = _identifier()
    texts = titles.rows["value"].to_list()
    best = [identifier.classify(text)[0] if _is_long(text) else None for text in texts]
    language = titles.language
    if language is None:
        votes = Counter(code for code in best if code is not None)
        language = votes.most_common(1)[0][0] if votes else "en"
        yield Measure(("language",), language)
    elif language not in identifier.labels:
        raise UserError(f"--language: '{language}' is not a language code of py3langid, expected one such as en or zh")
    scripts = _SCRIPTS.get(language, ("LATIN",))
    foreign = [
        _other_script(text, scripts) or _other_language(text, code, language)
        for text, code in zip(texts, best, strict=True)
    ]
    values = [f"{text} ({other})" if other else None for text, other in zip(texts, foreign, strict=True)]
    rows = titles.rows.with_columns(value=pl.Series(values, dtype=pl.String)).drop_nulls("value")
    yield Fault(titles.item.file, titles.column, rows, expected=f"titles in '{language}'")


@functools.lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(
            'languages are identified by py3langid 0.4: pip install "fuxictr-mm[quality]", or --skip foreign-title'
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _is_long(title: str) -> bool:
    return len(title.split()) >= LEAST_WORDS and sum(map(str.isalpha, title)) >= LEAST_LETTERS


def _other_language(title: str, best: str | None, expected: str) -> str | None:
    """Return the most probable language of a title if it is clearly not the expected one."""
    if best is None or best == expected:
        return None
    probability = dict(_identifier().rank(title))
    return best if probability[expected] < EXPECTED_MOST and probability[best] >= OTHER_LEAST else None


def _other_script(title: str, expected: Sequence[str]) -> str | None:
    """Return the script of a title's letters where too many are not of the expected scripts."""
    scripts = Counter(unicodedata.name(c, "UNKNOWN").split()[0] for c in title if c.isalpha())
    total = sum(scripts.values())
    others = {s: n for s, n in scripts.items() if s not in expected and s not in _NEUTRAL}
    # Latin names occur in every language; only a title without anything else is in another language.
    least = 1.0 if set(others) == {"LATIN"} else 0.3
    if sum(others.values()) < max(2, least * total) or (set(others) == {"LATIN"} and not _is_long(title)):
        return None
    return max(others, key=others.__getitem__).lower() + " letters"


@check(Titles, WARNING, "a title per item")
def duplicate_title(titles: Titles) -> Iterator[Fault]:
    """Items that share a title."""
    rows = titles.rows.with_columns(
        key=pl.Series([normalized(title) for title in titles.rows["value"]], dtype=pl.String),
        similar=pl.Series([key in titles.similar for key in titles.rows[ITEM_ID]], dtype=pl.Boolean),
    )
    rows = rows.filter(pl.col(ITEM_ID).n_unique().over("key") > 1)
    # Two items may share a title. Another spelling, similar embeddings or many such items are evidence of a fault.
    groups = rows.group_by("key", maintain_order=True).agg(
        pl.col("row", ITEM_ID, "value"),
        suspicious=(pl.col("value").n_unique() > 1) | (pl.col("similar").sum() > 1) | (pl.len() >= MOST_SHARING),
        items=pl.col(ITEM_ID).head(10),
    )
    names_of = titles.item.translation.names_of
    texts = [
        [f"{title} (items {', '.join(map(str, names_of(pl.Series(items))))})" for title in group]
        for group, items in groups.select("value", "items").iter_rows()
    ]
    groups = groups.with_columns(value=pl.Series(texts, dtype=pl.List(pl.String)))
    for suspicious, severity, found in (
        (True, WARNING, ""),
        (False, INFO, "items that share only a title"),
    ):
        shared = groups.filter(pl.col("suspicious") == suspicious).explode("row", ITEM_ID, "value", **EMPTY_AS_NULL)
        yield Fault(
            titles.item.file, titles.column, shared.select("row", ITEM_ID, "value"), severity=severity, found=found
        )


def normalized(title: str) -> str:
    """Return a title without case, punctuation and spacing, for comparison.

    Examples
    --------
    >>> normalized("Two  Cats!") == normalized("two cats")
    True
    """
    folded = unicodedata.normalize("NFKC", title).casefold()
    kept = "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in folded)
    return " ".join(kept.split()) or folded
