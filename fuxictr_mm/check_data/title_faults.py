"""Faults of a single title, and how it is fixed.

A title has the first of these faults that holds, in the order of this file: empty, wrong encoding, JSON or code fence,
a model's own sentence, HTML tags or entities, backslash escapes, a web address, one word repeated (six times in a
row), a character lost.
"""

from __future__ import annotations

import functools
import html
import json
import re
import unicodedata
from collections.abc import Container
from typing import NamedTuple

from fuxictr_mm.check_data.checks import WARNING, Action, check, functions_of
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
