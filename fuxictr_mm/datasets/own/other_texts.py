"""Texts among numbers, such as "on request": how many there are, and whether they count as missing."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

#: Words among numbers count as missing where at least this fraction of the values are numbers.
MOSTLY = 0.9

#: Where numbers are asked for, other texts count as missing from this fraction of numbers on.
HALF = 0.5

#: More different words than a log has for a missing value are codes, such as ABC and XYZ.
FEW_WORDS = 10


def is_word(text: pl.Expr) -> pl.Expr:
    """Whether a text has no digits: "on request" is no amount, but 12X may be a code."""
    return ~text.str.contains(r"\d")


@dataclass(frozen=True)
class Others:
    """What is no number in a column of texts."""

    values: int  #: Values that are not missing.
    count: int  #: Those of them that are no numbers.
    example: str | None
    are_words: bool  #: Whether none of them has digits.
    words: int  #: How many of them are different, about.
    has_codes: bool  #: Whether some are digits alone, such as 007.
    distinct: int  #: Numbers that are different as texts, about.

    @classmethod
    def of(cls, rows: pl.LazyFrame, text: pl.Expr, is_none: pl.Expr, is_number: pl.Expr) -> Others:
        """Return what is no number among texts without spaces around them."""
        is_other = ~is_none & ~is_number
        counts = rows.select(
            values=(~is_none).sum(),
            count=is_other.sum(),
            example=text.filter(is_other).first(),
            are_words=(is_word(text) | ~is_other).fill_null(True).all(),
            words=text.filter(is_other).approx_n_unique(),
            has_codes=(is_other & text.str.contains(r"^\d+$")).any(),
            distinct=text.filter(~is_none & is_number).approx_n_unique(),
        )
        return cls(**counts.collect(engine="streaming").row(0, named=True))

    @property
    def numbers(self) -> float:
        """The fraction of the values that are numbers."""
        return 1 - self.count / max(self.values, 1)

    def are_missing(self, is_asked: bool, is_later: bool) -> bool:
        """Whether they count as missing: a few words among many numbers, or any text where numbers are asked for."""
        if is_asked:
            return self.numbers >= HALF
        if is_later:
            return self.are_words and self.numbers >= HALF
        return self.are_words and self.words <= FEW_WORDS and self.numbers >= MOSTLY

    def __str__(self) -> str:
        return f"{self.count} of {self.values} values are no numbers, such as {self.example!r}"
