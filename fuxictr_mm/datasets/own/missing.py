"""Texts that stand for a missing value: of numbers, of ids, and of categories, of which fewer words do."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl


def _forms(words: Iterable[str]) -> tuple[str, ...]:
    """Return words in lower case, in upper case and capitalized."""
    return tuple(sorted({form for word in words for form in (word, word.upper(), word.capitalize())}))


#: What no table has as a value.
_NEVER = (*_forms(("", "?", "n/a", "n.a.", "#n/a", "null", "(null)", r"\n")), "nan", "NAN", "NaN")
#: What a category may have as a value: "none" of the kinds of a discount, "NA" of the codes of countries.
_WORDS = _forms(("none", "-", "--", "\u2013", "\u2014"))
#: What an id may be as well: of these, Nan and Nil are names.
_SHORT = ("Nan", *_forms(("nil", "na")))
#: What stands for no number.
MISSING = (*_NEVER, *_WORDS, *_SHORT)
#: What stands for no user: ``na`` may be a name, and NA is how R writes a missing value.
NO_USER = (*_NEVER, *_WORDS, "NA")
#: What stands for no item.
NO_ITEM = (*_NEVER, *_WORDS)
#: What stands for no category, list or text.
NO_CATEGORY = _NEVER


def is_missing(text: pl.Expr) -> pl.Expr:
    """Whether a text without spaces around it stands for no number."""
    return text.is_null() | text.is_in(list(MISSING))


def words_of_no(role: str) -> tuple[str, ...]:
    """Return the texts that stand for no id of a role."""
    return NO_USER if role == "user" else NO_ITEM


def without(text: pl.Expr, words: Iterable[str]) -> pl.Expr:
    """Return texts without spaces around them, null for those that stand for a missing value.

    Examples
    --------
    >>> pl.select(without(pl.lit(pl.Series(["ios ", "N/A", "none"])), NO_CATEGORY)).to_series().to_list()
    ['ios', None, 'none']
    """
    text = text.str.strip_chars()
    return pl.when(~text.is_in(list(words))).then(text)
