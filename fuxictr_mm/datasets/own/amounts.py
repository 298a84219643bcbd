"""Amounts such as ``1.299,00 €``: numbers with one unit, read where the rows settle what points and commas mean."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

CURRENCIES = r"[€$£¥₹₩₽]|EUR|USD|GBP|CHF|CNY|JPY"
#: A currency, percent or a common unit before or after a number.
AMOUNT = (
    rf"^(?P<before>{CURRENCIES})?\s?[+-]?\d[\d.,]*\s?"
    rf"(?P<after>{CURRENCIES}|%|zł|kr|Kč|Ft|lei|kg|g|km|m|cm|mm|l|ml)?$"
)
#: By the decimal mark, numbers with or without separators of thousands. Many are of both: 12, 1.299 and 1,299.
NUMBERS = {
    ",": r"^[+-]?(?:0|[1-9]\d*|[1-9]\d{0,2}(?:\.\d{3})+)(?:,\d+)?$",
    ".": r"^[+-]?(?:0|[1-9]\d*|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?$",
}
#: By the decimal mark, numbers without separators of thousands; 007 is an id or a code, and so is e5.
PLAIN = {mark: rf"^[+-]?(?:(?:0|[1-9]\d*)(?:[{mark}]\d*)?|[{mark}]\d+)(?:[eE][+-]?\d+)?$" for mark in NUMBERS}
#: Numbers of telephones, which are no quantities.
PHONE = r"^\+\d{7,}$"


@dataclass(frozen=True)
class Form:
    """How the numbers of a column are written."""

    unit: str = ""
    decimal: str = ""  #: The decimal mark, where the rows tell; the other mark separates thousands.

    def bare(self, column: pl.Expr) -> pl.Expr:
        """Return texts without spaces around them and without the unit, which may be before or after the number."""
        text = column.str.strip_chars()
        if not self.unit:
            return text
        is_before = text.str.starts_with(self.unit)
        without = pl.when(is_before).then(text.str.strip_prefix(self.unit)).otherwise(text.str.strip_suffix(self.unit))
        return without.str.strip_chars()

    def numbers(self, column: pl.Expr) -> pl.Expr:
        """Return texts as numbers; null for another text."""
        bare = self.bare(column)
        thousands = "," if self.decimal == "." else "."
        plain = bare.str.replace_all(thousands, "", literal=True).str.replace(",", ".", literal=True)
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


def form_in(
    frame: pl.LazyFrame, name: str, form: Form, missing: Collection[str], has_commas: bool
) -> tuple[Form | None, str | None]:
    """Return how all texts of a column are written, all with a unit; or None, and an example if it may be two numbers.

    ``form`` has the unit, and the decimal mark if an earlier log tells it. Where ``has_commas`` is false, commas
    separate columns, and a decimal comma is taken only if it is known.
    """
    text = pl.col(name).str.strip_chars()
    bare, is_missing = form.bare(pl.col(name)), text.is_null() | text.is_in(list(missing))
    is_marked = bare.str.contains(r"[.,]") & ~is_missing
    tests = {
        mark: (is_missing | ((text != bare) & bare.str.contains(pattern))).all() for mark, pattern in NUMBERS.items()
    }
    example, longest = text.filter(is_marked).first(), bare.filter(~is_missing).str.len_chars().max()
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
