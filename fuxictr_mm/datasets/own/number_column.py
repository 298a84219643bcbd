"""A column of texts that may be numbers: the tests of its texts, and the casts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from fuxictr_mm.datasets.own.amounts import AMOUNT, NUMBERS, Form, unit_of
from fuxictr_mm.datasets.own.missing import is_missing
from fuxictr_mm.datasets.own.other_texts import is_word

#: Integers as they are written; 007 is an id or a code.
INTEGER = r"^-?(?:0|[1-9]\d*)$"


def is_integer(text: pl.Expr) -> pl.Expr:
    """Whether a text is an integer of 64 bits."""
    return text.str.contains(INTEGER) & text.cast(pl.Int64, strict=False).is_not_null()


def example_of(text: pl.Expr, is_one: pl.Expr) -> pl.Expr:
    """Return the least text of which something is true: without a filter, all columns are read in one pass."""
    return pl.when(is_one).then(text).min()


def as_integers(text: pl.Expr) -> pl.Expr:
    """Return texts as integers; null for another text."""
    return pl.when(is_integer(text)).then(text).cast(pl.Int64, strict=False)


def as_numbers(name: str, form: Form) -> pl.Expr:
    """Return texts as numbers; null for another text."""
    text = pl.col(name)
    return form.numbers(pl.when(form.is_number(text)).then(text)).alias(name)


@dataclass(frozen=True)
class NumberColumn:
    """A column of texts without a unit, and in which ways each may be a number."""

    name: str
    text: pl.Expr  #: Without spaces around it.
    kinds: Mapping[str, pl.Expr]  #: Whether a text is an integer, digits alone, or a number of a decimal mark.
    is_number: pl.Expr  #: Whether it is a number in any way.
    is_numeric: bool  #: Whether it may become a quantity.
    is_asked: bool  #: Whether numbers are asked for.

    def tests(self, all_count: bool = True) -> list[pl.Expr]:
        """Return what the texts tell of how they are read, each with the name of the column in its own.

        Unless ``all_count``, texts that may be missing are none of them: words, and any others where numbers are asked
        for, but not amounts of several units.
        """
        name, text, is_none = self.name, self.text, is_missing(self.text)
        is_other = is_none
        if not all_count:
            is_other |= ~self.is_number & unit_of(text).is_null() if self.is_asked else is_word(text)
        tests = [(is_other | test).all().alias(f"{kind} {name}") for kind, test in self.kinds.items()]
        tests.append((is_none | self.is_number).mean().alias(f"any {name}"))
        for mark in NUMBERS:
            is_marked = ~is_other & text.str.contains(mark, literal=True)
            tests.append(example_of(text, is_marked).alias(f"first {mark} {name}"))
        tests.append(example_of(text, ~is_other & text.str.contains(r"^\(|\d-$")).alias(f"negative {name}"))
        return [*tests, (is_none | text.str.contains(AMOUNT)).all().alias(f"amount {name}")]
