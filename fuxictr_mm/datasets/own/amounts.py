"""Amounts such as ``1.299,00 €``: numbers with one unit, read where the rows settle what points and commas mean."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from fuxictr_mm.datasets.own.missing import is_missing

CURRENCIES = r"[€$£¥₹₩₽]|EUR|USD|GBP|CHF|CNY|JPY"
#: What separates thousands and never decimals: apostrophes (Switzerland), and spaces that do not break (France).
GROUPING = "'\u2019\u00a0\u202f"
#: A currency, percent or a common unit before or after a number.
AMOUNT = (
    rf"^\(?[+-]?(?P<before>{CURRENCIES})?\s?[+-]?\d[\d.,{GROUPING}]*-?\s?"
    rf"(?P<after>{CURRENCIES}|%|zł|kr|Kč|Ft|lei|kg|g|km|m|cm|mm|l|ml)?[)-]?$"
)


def _signed(number: str) -> str:
    """Return the pattern of numbers with a sign; those in parentheses, or before a minus (SAP), are negative."""
    return rf"^(?:[+-]?{number}|\({number}\)|{number}-)$"


#: By the decimal mark, numbers with or without separators of thousands, also Indian ones: 1,00,000. Many are of both
#: marks: 12, 1.299 and 1,299.
NUMBERS = {
    ",": _signed(rf"(?:0|[1-9]\d*|[1-9]\d{{0,2}}(?:[.{GROUPING}]\d{{3}})+)(?:,\d+)?"),
    ".": _signed(rf"(?:0|[1-9]\d*|[1-9]\d{{0,2}}(?:[,{GROUPING}]\d{{3}})+|[1-9]\d?(?:,\d\d)+,\d{{3}})(?:\.\d+)?"),
}
#: By the decimal mark, numbers in which neither mark separates thousands; 007 is an id or a code, and so is e5.
PLAIN = {
    mark: _signed(
        rf"(?:(?:0|[1-9]\d*|[1-9]\d{{0,2}}(?:[{GROUPING}]\d{{3}})+)(?:[{mark}]\d*)?|[{mark}]\d+)(?:[eE][+-]?\d+)?"
    )
    for mark in NUMBERS
}
#: Numbers that a category may be read as: those of which the text is the same again, and integers as floats.
SAME = r"^-?(?:0|[1-9]\d*)(?:\.0|\.\d*[1-9])?$"
#: Numbers of telephones, which are no quantities.
PHONE = r"^\+\d{7,}$"


@dataclass(frozen=True)
class Form:
    """How the numbers of a column are written."""

    unit: str = ""
    decimal: str = ""  #: The decimal mark, where the rows tell; the other mark separates thousands.

    def bare(self, column: pl.Expr) -> pl.Expr:
        """Return texts without spaces around them and without the unit, which may be before or after the number."""
        text, unit = column.str.strip_chars(), re.escape(self.unit)
        return text.str.replace(rf"^(\(?[+-]?){unit}\s*|\s*{unit}([)-]?)$", "${1}${2}") if unit else text

    def fits(self, column: pl.Expr) -> pl.Expr:
        """Whether texts are numbers of this form, or missing."""
        bare, text = self.bare(column), column.str.strip_chars()
        marks = [self.decimal] if self.decimal else list(NUMBERS)
        is_number = pl.any_horizontal(*(bare.str.contains(p[mark]) for mark in marks for p in (NUMBERS, PLAIN)))
        return is_missing(text) | (is_number & (text != bare if self.unit else pl.lit(True)))

    def numbers(self, column: pl.Expr) -> pl.Expr:
        """Return texts as numbers; null for another text."""
        bare = self.bare(column)
        thousands = "," if self.decimal == "." else "."
        plain = bare.str.replace_all(rf"[{GROUPING}{thousands}]", "").str.replace(",", ".", literal=True)
        plain = plain.str.replace(r"^\((.*)\)$|^(.*)-$", "-${1}${2}")
        return plain.cast(pl.Float64, strict=False)


def unit_in(text: str | None) -> str:
    """Return the unit of an amount; "" if it has none.

    Examples
    --------
    >>> [unit_in(text) for text in ("1.299,00 €", "CHF 12", "4,5kg", "12", "K1")]
    ['€', 'CHF', 'kg', '', '']
    """
    match = re.match(AMOUNT, text or "")
    return (match["before"] or match["after"] or "") if match else ""


def decimal_in(fits: Collection[str], marks: Collection[str], known: str, is_asked: bool) -> str | None:
    """Return the decimal mark of a column of numbers without unit: "" if there is none, None if the rows do not tell.

    ``fits`` are the decimal marks with which all rows are numbers, ``marks`` those that occur. ``known`` is that of an
    earlier log. If ``is_asked``, the column is known to hold numbers, and a mark that may be either is the decimal one.

    Examples
    --------
    >>> decimal_in((",",), (",", "."), "", False), decimal_in((",", "."), (".",), "", False)
    (',', None)
    """
    if not marks and fits:
        return ""
    if known in fits:
        return known
    if len(fits) == 1:
        return next(iter(fits))
    return next(iter(marks)) if fits and is_asked and len(marks) == 1 else None


def form_in(frame: pl.LazyFrame, name: str, form: Form, has_commas: bool) -> tuple[Form | None, str | None]:
    """Return how all texts of a column are written, all with a unit; or None, and an example if it may be two numbers.

    ``form`` has the unit, and the decimal mark if an earlier log tells it. Where ``has_commas`` is false, commas
    separate columns, and a decimal comma is taken only if it is known.
    """
    text = pl.col(name).str.strip_chars()
    bare, is_none = form.bare(pl.col(name)), is_missing(text)
    is_marked = bare.str.contains(r"[.,]") & ~is_none
    tests = {mark: (is_none | ((text != bare) & bare.str.contains(pattern))).all() for mark, pattern in NUMBERS.items()}
    example, longest = text.filter(is_marked).first(), bare.filter(~is_none).str.len_chars().max()
    found = frame.select(example=example, longest=longest, **tests).collect(engine="streaming").row(0, named=True)
    if len(form.unit) == 1 and form.unit.isalpha() and (found["longest"] or 0) < 2:
        return None, None  # such as 4g and 5g, which are names
    fits = [mark for mark in NUMBERS if found[mark]]
    if form.decimal in fits:
        return form, None
    if len(fits) == 2:
        return (None, found["example"]) if found["example"] else (form, None)
    if not fits or form.decimal or (fits == [","] and not has_commas):
        return None, None
    return Form(form.unit, fits[0]), None
