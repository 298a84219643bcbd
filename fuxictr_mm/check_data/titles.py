r"""Checks of titles, and how each title is fixed.

A title has the first of these faults that holds, in the order of this file: empty, wrong encoding, JSON or code fence,
a model's own sentence, HTML tags or entities, backslash escapes, a web address, one word repeated (six times in a
row), a character lost. Only titles with none of these are checked for their language, conservatively:

- another script: at least two letters and 30 % of all letters are of no script of the expected language;
- another language of the same script: at least 4 words and 15 letters, and the identifier gives the expected language
  less than 1 in 1000 and one other language at least half.
"""

from __future__ import annotations

import functools
import html
import importlib.util
import json
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl

from fuxictr_mm.check_data.arrays import as_text, is_text
from fuxictr_mm.check_data.checks import CHECKS, INFO, WARNING, Action, Fault, Measure, Report, check, functions_of
from fuxictr_mm.check_data.columns import COLUMN_TYPE
from fuxictr_mm.check_data.files import DataFile
from fuxictr_mm.check_data.layout import ItemFile, Layout
from fuxictr_mm.data.arrow_types import is_bytes
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.errors import UserError

logger = logging.getLogger(__name__)

#: Checks that need a library of the extra ``quality``.
LIBRARIES = {"mojibake": "ftfy", "lost-character": "ftfy", "foreign-title": "py3langid"}

PLACEHOLDERS = frozenset(
    [
        *("null", "none", "nan", "nil", "n/a", "undefined", "untitled", "no title", "not available", "tbd"),
        *("[deleted]", "[removed]", "item title", "title here", "lorem ipsum"),
    ]
)

_FENCE = re.compile(r"^\s*```[a-zA-Z]*\s*(.*?)\s*(?:```\s*)?$", re.DOTALL)
_JSON_START = re.compile(r"""^\s*(?:\{\s*["'“]|\[\s*["'{\[])""")
_JSON_END = re.compile(r"""["”]\s*[}\]]+\s*$""")
_JSON_KEY = re.compile(
    r"""["“](?:translation|translated|title|text|output|result|answer)[\w ]*["”]\s*:""", re.IGNORECASE
)
_JSON_VALUE = re.compile(r"""["'“][\w ]+["'”]\s*:\s*(?:"([^"]*)|'([^']*)|“([^”]*))""")
_JSON_FIRST = re.compile(r"""\s*\[\s*(?:"([^"]*)|'([^']*)|“([^”]*))""")
_LEAD_IN = re.compile(
    r"""^\s*(?:(?:sure|certainly|of\ course|okay|ok)[,!.:]\s*)?
    (?:here(?:\ is|'s|\u2019s)\ (?:the|your|a|an)\ (?:\w+\s){0,3}(?:translation|translated|title|english)\b[^:\n]{0,60}:
    |(?:the\ )?(?:english\ )?translat(?:ion|ed\ title)(?:\ (?:is|in\ english|of\ the\ title))?\s*:
    |translated\ (?:from|to|into)\ \w+\s*:)\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL = re.compile(
    r"""^\s*(?:(?:(?:i'm|i\u2019m|i\ am)\ )?sorry,?\ (?:but\ )?i\ (?:can't|can\u2019t|cannot|am\ unable\ to)\ (?:
        do\ that|help\ you|help\W*$
        |(?:help\ with|translate|assist|provide|fulfill|process|generate|comply|access|understand)\b)
    |as\ an\ ai\ (?:language\ )?(?:model|assistant)\b
    |as\ an\ ai\b\W*(?:i\b|$)
    |i\ (?:cannot|can't|can\u2019t|am\ unable\ to)\ (?:translate|assist|help\ with|provide)\b
    |(?:please\ )?(?:provide|give\ me)\ (?:me\ )?(?:with\ )?the\ (?:text|title)\ (?:to|you))""",
    re.IGNORECASE | re.VERBOSE,
)

#: Tags inside a word or between two; the content of scripts goes as well.
_INLINE_TAG = re.compile(
    r"</?(?:a|abbr|b|big|code|em|font|i|s|small|span|strike|strong|sub|sup|tt|u)(?:\s[^<>]*)?/?>", re.IGNORECASE
)
_BLOCK_TAG = re.compile(
    r"""<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>
    |</?(?:article|body|br|button|center|div|footer|form|h[1-6]|head|header|hr|html|iframe|img|input|label|li|link|meta
    |ol|option|p|pre|script|section|select|style|svg|table|tbody|td|th|title|tr|ul|video)(?:\s[^<>]*)?/?>""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
#: A file's name, such as C:\new, and no escape.
_DRIVE = re.compile(r"\b[A-Za-z]:\\")
_ESCAPE = re.compile(r"(?<!\\)(?:(?:\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2})+|\\[nrt]|\\(?=[\"']))")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+\.\S+", re.IGNORECASE)
_REPEATS = re.compile(r"\b(\w+)(?:\W+\1\b){5,}", re.IGNORECASE)

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


class TitleFault(NamedTuple):
    """The check that a title fails, and the fixed title (unchanged if the check has no fix)."""

    check: str
    fixed: str


def find_fault(title: str, checks: Container[str] | None = None) -> TitleFault | None:
    """Return the first fault of a title among some checks (all by default), or None.

    The checks of a single title are functions that return the fixed title where it has the fault.

    Examples
    --------
    >>> find_fault('{"translation": "Two cats"}')
    TitleFault(check='json-title', fixed='Two cats')
    >>> find_fault("“Two cats” — it’s fun") is None
    True
    """
    for name, function in functions_of(str).items():
        fixed = function(title) if checks is None or name in checks else None
        if fixed is not None:
            return TitleFault(name, fixed)
    return None


def fix_title(title: str, checks: Container[str] | None = None) -> str:
    """Return a title with the faults of some checks (all by default) fixed, one after the other.

    Examples
    --------
    >>> fix_title('```json {"title": "Two cats"} ```')
    'Two cats'
    """
    for _ in range(4):
        fault = find_fault(title, checks)
        if fault is None:
            return title
        title = fault.fixed
    return title


@check(str, WARNING, "a title", Action.FIX_TITLE, "placeholders become empty")
def empty_title(title: str) -> str | None:
    """Empty titles or placeholders."""
    folded = title.strip().casefold()
    return "" if folded in PLACEHOLDERS or not any(map(_is_visible, folded)) else None


def _is_visible(character: str) -> bool:
    """Whether a character is a letter, a mark, a number or a pictograph, and no punctuation, space or control."""
    category = unicodedata.category(character)
    return category[0] in "LMN" or category == "So"


@check(str, WARNING, "readable text", Action.FIX_TITLE, "decoded by ftfy")
def mojibake(title: str) -> str | None:
    """Text decoded by the wrong encoding."""
    decoded = _decoded(title)
    return decoded if decoded != title and "\ufffd" not in decoded else None


@functools.lru_cache(maxsize=1)
def _decoded(title: str) -> str:
    try:
        import ftfy
    except ImportError:
        raise UserError(
            'wrong encodings are found by ftfy: pip install "fuxictr-mm[quality]", or --skip mojibake lost-character'
        ) from None
    return ftfy.fix_encoding(title)


@check(str, WARNING, "only the title", Action.FIX_TITLE, "the text inside is kept")
def json_title(title: str) -> str | None:
    """JSON or code fences left by a translating model."""
    fence = _FENCE.match(title)
    inside = fence[1] if fence else title
    return _text_inside(inside) if fence or _is_json(inside) else None


def _is_json(text: str) -> bool:
    # A name in brackets may have quotation marks as well: ["Weird Al"] best of, The Song [Live "1965"].
    if _JSON_END.search(text) and (_JSON_KEY.search(text) or not re.search(r"[\[{]", text.lstrip()[1:])):
        return True
    if _JSON_START.match(text) and (_JSON_VALUE.search(text) or re.search(r"['\"”][}\]]+\s*$|^[^\]}]*$", text)):
        return True
    if text.lstrip()[:1] not in ("{", "["):
        return False
    if _JSON_KEY.search(text):
        return True
    try:
        return isinstance(json.loads(text), dict) or _JSON_START.match(text) is not None
    except (ValueError, RecursionError):
        return False


def _text_inside(text: str) -> str:
    """Return the only or the likeliest text of a JSON value, complete or broken."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        found = _JSON_VALUE.search(text) or _JSON_FIRST.match(text)
        if found:
            return next(text for text in found.groups() if text is not None).strip()
        bare = _JSON_END.sub("", text).strip()
        return "" if bare[:1] in ("{", "[") else bare
    while isinstance(value, dict | list):
        inner = list(value.values()) if isinstance(value, dict) else value
        value = next((v for v in inner if isinstance(v, str | dict | list) and v), "")
    return value.strip() if isinstance(value, str) else str(value)


@check(str, WARNING, "only the title", Action.FIX_TITLE, "the introduction is removed, a refusal becomes empty")
def assistant_title(title: str) -> str | None:
    """Sentences of a translating model."""
    if _REFUSAL.match(title):
        return ""
    lead_in = _LEAD_IN.match(title)
    return title[lead_in.end() :].strip().strip("\"“”'") if lead_in else None


def _rewritten(title: str, new: str) -> str | None:
    return " ".join(new.split()) if new != title else None


@check(str, WARNING, "only the title", Action.FIX_TITLE, "tags are removed, entities become characters")
def markup_title(title: str) -> str | None:
    """HTML tags or entities."""
    bare = _BLOCK_TAG.sub(" ", _INLINE_TAG.sub("", title))
    return _rewritten(title, _ENTITY.sub(lambda entity: html.unescape(entity[0]), bare))


@check(str, WARNING, "the unescaped characters", Action.FIX_TITLE, "decoded")
def escape_title(title: str) -> str | None:
    r"""Backslash escapes such as \n or \u00e9."""
    return None if _DRIVE.search(title) else _rewritten(title, _ESCAPE.sub(_unescaped, title))


def _unescaped(escapes: re.Match[str]) -> str:
    if escapes[0] == "\\":
        return ""  # before a quotation mark
    # Two escapes of four digits may be the halves of one character.
    units = b"".join(
        chr(int(e[2:], 16)).encode("utf-16-le", "surrogatepass") for e in re.findall(r"\\[uUx][0-9a-fA-F]+", escapes[0])
    )
    text = units.decode("utf-16-le", "replace")
    return text if units and all(map(str.isprintable, text)) else " "


@check(str, WARNING, "only the title", Action.FIX_TITLE, "the address is removed")
def url_title(title: str) -> str | None:
    """Web addresses."""
    return _rewritten(title, _ADDRESS.sub(" ", title))


@check(str, WARNING, "a title", Action.FIX_TITLE, "equal words that follow each other become one")
def repeated_word_title(title: str) -> str | None:
    """One word repeated many times."""
    return _rewritten(title, _REPEATS.sub(r"\1", title))


@check(str, WARNING, "readable text")
def lost_character(title: str) -> str | None:
    """Characters that a wrong decoding lost (U+FFFD)."""
    return title if "\ufffd" in _decoded(title) else None


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

    A check whose library is not installed is left out, with a warning, and named in ``layout.not_checked``.

    Parameters
    ----------
    needs_all : bool
        A missing library is an error.

    Raises
    ------
    UserError
        A library is missing, or does not support the language.
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
        shared = groups.filter(pl.col("suspicious") == suspicious).explode("row", ITEM_ID, "value")
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
