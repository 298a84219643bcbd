r"""Checks of titles, and how each is mended.

A title is judged by the first of these that holds: empty, wrong encoding, JSON or code fence, a model's own sentence,
HTML tags or entities, backslash escapes, a web address, one word over and over (six times in a row), a character lost.
Only titles with none of these are judged for their language, and conservatively:

- another script: at least two letters and 30 % of all letters are of no script of the expected language;
- another language of the same script: at least 4 words and 15 letters, and the identifier gives the expected language
  less than 1 in 1000 and one other language at least half.
"""

from __future__ import annotations

import functools
import html
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from fuxictr_mm.check_data.checks import Report
from fuxictr_mm.errors import UserError

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
_LEAD_IN = re.compile(
    r"""^\s*(?:(?:sure|certainly|of\ course|okay|ok)[,!.:]\s*)?
    (?:here(?:\ is|'s|\u2019s)\ (?:the|your|a|an)\ (?:\w+\s){0,3}(?:translation|translated|title|english)\b[^:\n]{0,60}:
    |(?:the\ )?(?:english\ )?translat(?:ion|ed\ title)(?:\ (?:is|in\ english|of\ the\ title))?\s*:
    |translated\ (?:from|to|into)\ \w+\s*:)\s*""",
    re.IGNORECASE | re.VERBOSE,
)
_REFUSAL = re.compile(
    r"""^\s*(?:(?:i'm|i\u2019m|i\ am)\ sorry,?\ (?:but\ )?i\ (?:can't|can\u2019t|cannot|am\ unable)
    |as\ an\ ai\b
    |i\ (?:cannot|can't|can\u2019t|am\ unable\ to)\ (?:translate|assist|help|provide)
    |(?:please\ )?(?:provide|give\ me)\ (?:me\ )?(?:with\ )?the\ (?:text|title)\ (?:to|you)
    |sorry,\ (?:but\ )?i\ (?:can't|can\u2019t|cannot))""",
    re.IGNORECASE | re.VERBOSE,
)

#: Tags that stand inside a word or between two; the content of scripts goes as well.
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
#: Letters of signs and formulas that say nothing of a language.
_NEUTRAL = ("MODIFIER", "MATHEMATICAL", "FEMININE", "MASCULINE", "MICRO", "SCRIPT", "DOUBLE-STRUCK", "FULLWIDTH")

MOST_SHARING = 10
_TITLE_LETTERS, _TITLE_WORDS, _EXPECTED_AT_MOST, _OTHER_AT_LEAST = 15, 4, 1e-3, 0.5


class Verdict(NamedTuple):
    """What is wrong with a title, and the title that it should be (None where nobody can tell)."""

    check: str
    mended: str | None


def judge(title: str) -> Verdict | None:
    """Return what is wrong with a title's text, or None.

    Examples
    --------
    >>> judge('{"translation": "Two cats"}')
    Verdict(check='json-title', mended='Two cats')
    >>> judge("“Two cats” — it’s fun") is None
    True
    """
    folded = title.strip().casefold()
    if folded in PLACEHOLDERS or not any(_is_visible(c) for c in folded):
        return Verdict("empty-title", "")
    decoded = _ftfy().fix_encoding(title)
    if decoded != title and "�" not in decoded:
        return Verdict("mojibake", decoded)
    fence = _FENCE.match(title)
    inside = fence[1] if fence else title
    if fence or _is_json(inside):
        return Verdict("json-title", _text_inside(inside))
    if _REFUSAL.match(title):
        return Verdict("assistant-title", "")
    lead_in = _LEAD_IN.match(title)
    if lead_in:
        return Verdict("assistant-title", title[lead_in.end() :].strip().strip("\"“”'"))
    for check, change in _REWRITES.items():
        rewritten = change(title)
        if rewritten != title:
            return Verdict(check, " ".join(rewritten.split()))
    return Verdict("lost-character", None) if "�" in decoded else None


def _without_markup(title: str) -> str:
    bare = _BLOCK_TAG.sub(" ", _INLINE_TAG.sub("", title))
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), bare)


def _without_escapes(title: str) -> str:
    return title if _DRIVE.search(title) else _ESCAPE.sub(_unescaped, title)


def _unescaped(escapes: re.Match[str]) -> str:
    if escapes[0] == "\\":
        return ""  # before a quotation mark
    # Two escapes of four digits may be the halves of one character.
    units = b"".join(
        chr(int(e[2:], 16)).encode("utf-16-le", "surrogatepass") for e in re.findall(r"\\[uUx][0-9a-fA-F]+", escapes[0])
    )
    text = units.decode("utf-16-le", "replace")
    return text if units and all(map(str.isprintable, text)) else " "


def _without_address(title: str) -> str:
    return _ADDRESS.sub(" ", title)


def _without_repeats(title: str) -> str:
    return _REPEATS.sub(r"\1", title)


_REWRITES = {
    "markup-title": _without_markup,
    "escape-title": _without_escapes,
    "url-title": _without_address,
    "repeated-word-title": _without_repeats,
}
#: The checks that `judge` gives, in its order.
JUDGED = ("empty-title", "mojibake", "json-title", "assistant-title", *_REWRITES, "lost-character")


def _is_visible(character: str) -> bool:
    """Whether a character is a letter, a mark, a number or a picture, and no punctuation, space or control."""
    category = unicodedata.category(character)
    return category[0] in "LMN" or category == "So"


def mend(title: str) -> str:
    """Return a title with its faults mended, one after the other; a sound title as it is.

    Examples
    --------
    >>> mend('```json {"title": "Two cats"} ```')
    'Two cats'
    """
    for _ in range(4):
        verdict = judge(title)
        if verdict is None or verdict.mended is None:
            return title
        title = verdict.mended
    return title


def _is_json(text: str) -> bool:
    if _JSON_START.match(text) or _JSON_END.search(text):
        return True
    if text.lstrip()[:1] not in ("{", "["):
        return False
    if _JSON_KEY.search(text):
        return True
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _ftfy() -> Any:
    try:
        import ftfy
    except ImportError:
        raise UserError('titles are checked with ftfy: pip install "fuxictr-mm[quality]", or --skip mojibake') from None
    return ftfy


def _text_inside(text: str) -> str:
    """Return the only or the likeliest text of a JSON value, whole or broken."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        found = _JSON_VALUE.search(text)
        if found:
            return next(text for text in found.groups() if text is not None).strip()
        bare = _JSON_END.sub("", text).strip()
        return "" if bare[:1] in ("{", "[") else bare
    while isinstance(value, dict | list):
        inner = list(value.values()) if isinstance(value, dict) else value
        value = next((v for v in inner if isinstance(v, str | dict | list) and v), "")
    return value.strip() if isinstance(value, str) else str(value)


def check_titles(
    file: str,
    column: str,
    titles: Sequence[str],
    ids: np.ndarray,
    report: Report,
    language: str | None = None,
    twins: Collection[int] = (),
) -> None:
    """Check the titles of an item file.

    Parameters
    ----------
    file, column : str
        Where they stand.
    titles : sequence of str, (I,)
        One per row; null is empty.
    ids : ndarray of int64, (I,)
        Item ids of the rows; the padding item is not judged.
    report : Report
        Takes the findings.
    language : str, optional
        Code of the expected language, such as ``"en"``; that of the majority by default.
    twins : collection of int
        Items whose vectors are the same, or nearly, as another's.
    """
    sound = []
    for row, (title, item) in enumerate(zip(titles, ids.tolist(), strict=True)):
        if item == 0:
            continue
        verdict = judge(title) if report.wants(*JUDGED) else None
        if verdict:
            report.add(verdict.check, file, column, [row], [item], [title])
        elif title.strip():
            sound.append(row)
    if report.wants("foreign-title"):
        _check_language(file, column, titles, ids, sound, report, language)
    if report.wants("duplicate-title"):
        _check_duplicates(file, column, titles, ids, sound, report, twins)


@functools.lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(
            'languages are told by py3langid 0.4: pip install "fuxictr-mm[quality]", or --skip foreign-title'
        ) from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _check_language(
    file: str,
    column: str,
    titles: Sequence[str],
    ids: np.ndarray,
    rows: Sequence[int],
    report: Report,
    language: str | None,
) -> None:
    identifier = _identifier()
    ranks = {r: dict(identifier.rank(titles[r])) for r in rows if _is_long(titles[r])}
    if language is None:
        votes = Counter(max(chances, key=chances.__getitem__) for chances in ranks.values())
        language = votes.most_common(1)[0][0] if votes else "en"
        report.measures["language"] = language
    elif language not in identifier.labels:
        raise UserError(f"--language: '{language}' is no language code that py3langid knows, such as en or zh")
    scripts = _SCRIPTS.get(language, ("LATIN",))
    for row in rows:
        foreign = _other_script(titles[row], scripts)
        if foreign is None and row in ranks:
            best = max(ranks[row], key=ranks[row].__getitem__)
            if ranks[row][language] < _EXPECTED_AT_MOST and ranks[row][best] >= _OTHER_AT_LEAST:
                foreign = best
        if foreign is not None:
            report.add(
                "foreign-title",
                file,
                column,
                [row],
                ids[[row]],
                [f"{titles[row]} ({foreign})"],
                expected=f"titles in '{language}'",
            )


def _is_long(title: str) -> bool:
    return len(title.split()) >= _TITLE_WORDS and sum(map(str.isalpha, title)) >= _TITLE_LETTERS


def _other_script(title: str, expected: Sequence[str]) -> str | None:
    """Return the script of a title's letters where too many are not of the expected scripts."""
    scripts = Counter(unicodedata.name(c, "UNKNOWN").split()[0] for c in title if c.isalpha())
    total = sum(scripts.values())
    others = {s: n for s, n in scripts.items() if s not in expected and s not in _NEUTRAL}
    # Latin names are common in every language; only a title that has nothing else is foreign.
    least = 1.0 if set(others) == {"LATIN"} else 0.3
    if sum(others.values()) >= max(2, least * total):
        if set(others) == {"LATIN"} and not _is_long(title):
            return None
        return max(others, key=others.__getitem__).lower() + " letters"
    return None


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


def _check_duplicates(
    file: str,
    column: str,
    titles: Sequence[str],
    ids: np.ndarray,
    rows: Sequence[int],
    report: Report,
    twins: Collection[int],
) -> None:
    groups: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        groups[normalized(titles[row])].append(row)
    for group in groups.values():
        if len({int(ids[r]) for r in group}) < 2:
            continue
        # Two items may well share a title. Another spelling, the same vectors or a crowd say that something is wrong.
        suspect = (
            len({titles[r] for r in group}) > 1
            or sum(int(ids[r]) in twins for r in group) > 1
            or len(group) >= MOST_SHARING
        )
        shared = f"(items {', '.join(str(ids[r]) for r in group[:10])})"
        report.add(
            "duplicate-title",
            file,
            column,
            group,
            ids[group],
            [f"{titles[r]} {shared}" for r in group],
            severity="" if suspect else "info",
            found="" if suspect else "items that share a title, and nothing else",
        )
