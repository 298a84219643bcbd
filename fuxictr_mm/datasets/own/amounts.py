"""Amounts such as ``1.299,00 €``: numbers with one unit, read where the rows settle what points and commas mean."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from fuxictr_mm.datasets.own.missing import is_missing
from fuxictr_mm.datasets.own.other_texts import Others, is_word

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
        return is_missing(column.str.strip_chars()) | is_missing(self.bare(column)) | self.is_number(column)

    def is_number(self, column: pl.Expr) -> pl.Expr:
        """Whether texts are numbers of this form."""
        bare, text = self.bare(column), column.str.strip_chars()
        marks = [self.decimal] if self.decimal else list(NUMBERS)
        is_number = pl.any_horizontal(*(bare.str.contains(p[mark]) for mark in marks for p in (NUMBERS, PLAIN)))
        return is_number & (text != bare if self.unit else pl.lit(True))

    def numbers(self, column: pl.Expr) -> pl.Expr:
        """Return texts as numbers; null for another text."""
        bare = self.bare(column)
        thousands = "," if self.decimal == "." else "."
        plain = bare.str.replace_all(rf"[{GROUPING}{thousands}]", "").str.replace(",", ".", literal=True)
        plain = plain.str.replace(r"^\((.*)\)$|^(.*)-$", "-${1}${2}")
        return plain.cast(pl.Float64, strict=False)


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


def unit_of(text: pl.Expr) -> pl.Expr:
    """Return the unit of each amount; null of other texts, and of numbers without one."""
    parts = text.str.extract_groups(AMOUNT).struct
    return pl.coalesce(parts.field("before"), parts.field("after"))


def common_unit(text: pl.Expr) -> pl.Expr:
    """Return the unit that most amounts among some texts have, null if none has one."""
    return unit_of(text).drop_nulls().mode().min()


def form_in(
    frame: pl.LazyFrame, name: str, form: Form, is_asked: bool
) -> tuple[Form | None, str | None, Others | None]:
    """Return how all amounts of a column are written, all with a unit.

    Or None, and an example if it may be two numbers. The last are the texts that are no amounts, such as "on request";
    if ``is_asked``, any texts but amounts of other units. ``form`` has the unit, and the decimal mark if an earlier log
    tells it.
    """
    text = pl.col(name).str.strip_chars()
    bare = form.bare(pl.col(name))
    is_none = is_missing(text) | is_missing(bare)
    is_amount = {mark: (text != bare) & bare.str.contains(pattern) for mark, pattern in NUMBERS.items()}
    is_any = pl.any_horizontal(*is_amount.values()).fill_null(False)
    is_other = is_none | (~is_any & (~text.str.contains(AMOUNT) if is_asked else is_word(text)))
    tests = {mark: (is_other | test).all() for mark, test in is_amount.items()}
    example = text.filter(bare.str.contains(r"[.,]") & ~is_other).first()
    longest = bare.filter(~is_other).str.len_chars().max()
    others = (~is_none & ~is_any).any()
    tests |= {"example": example, "longest": longest, "others": others}
    found = frame.select(**tests).collect(engine="streaming").row(0, named=True)
    if len(form.unit) == 1 and form.unit.isalpha() and (found["longest"] or 0) < 2:
        return None, None, None  # such as 4g and 5g, which are names
    fits = [mark for mark in NUMBERS if found[mark]]
    if not fits or (form.decimal and form.decimal not in fits):
        return None, None, None
    if len(fits) == 2 and not form.decimal and found["example"]:
        return None, found["example"], None
    decimal = form.decimal or (fits[0] if len(fits) == 1 else "")
    return Form(form.unit, decimal), None, Others.of(frame, text, is_none, is_any) if found["others"] else None
