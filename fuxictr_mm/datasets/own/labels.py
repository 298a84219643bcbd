"""The ways of labelling the rows of a log: numbers of a column, one of its values, or other rows that follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from shlex import quote

import numpy as np
import polars as pl

from fuxictr_mm.datasets.own.events import LISTED, check_value, is_held
from fuxictr_mm.datasets.own.options import Value
from fuxictr_mm.datasets.own.positives import Positives
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import DataError

#: What spreadsheets and databases write for 1 and 0, in lower case.
TRUTH = {"true": "1", "t": "1", "yes": "1", "y": "1", "false": "0", "f": "0", "no": "0", "n": "0"}

#: Those of a column of truth values; beside numbers, n may be none.
TRUTH_VALUES = ("true", "false")


@dataclass(frozen=True)
class Label(ABC):
    """A label of the rows of a log."""

    name: str
    log: Table
    is_later: bool  #: Whether the rows are of a later log, in which all may have the same value.

    @abstractmethod
    def read(self) -> pl.Expr:
        """Return the values of the rows of the log.

        Raises
        ------
        DataError
            A value that is none, or the same one in all rows of a log that is not a later one.
        """

    @property
    def is_positive(self) -> pl.Expr:
        """Whether a row that was read is a positive one, which enters histories."""
        return (pl.col(self.name) == 1).fill_null(False)

    def _check_both(self, number: pl.Expr, otherwise: str = "") -> pl.Expr:
        """Return 0 and 1, which are not the same in all rows; ``otherwise`` is what to do then."""
        if not self.is_later:
            least, most = self._range(number)
            if (least, most) != (0, 1):
                hint = "; if every row is a click, rename the column and add --negatives 1" if least == 1 else ""
                expected = f"0 in some rows and 1 in others{otherwise or hint}"
                raise DataError(f"{self.log.paths[0]}: {self.name} holds {_held(least)}, expected {expected}")
        return number.alias(self.name)

    def _range(self, number: pl.Expr) -> tuple[float | None, float | None]:
        row = self.log.frame.select(least=number.min(), most=number.max()).collect(engine="streaming").row(0)
        return row[0], row[1]


@dataclass(frozen=True)
class ValueLabel(Label):
    """Whether a column has a value: ``--labels action=click``."""

    value: Value

    def read(self) -> pl.Expr:
        """Return 1 where the column has the value."""
        if not self.is_later:
            check_value(self.log, self.value, "labels")
        return self._check_both(is_held(self.value).cast(pl.Float32))


@dataclass(frozen=True)
class MatchedLabel(Label):
    """Whether another row belongs to a row: one of a file (``--positives``), or an event (``--impressions``)."""

    positives: Positives
    time: str  #: Column of the times of the log.
    is_row: pl.Expr | None  #: The events that are rows, of a log of events.

    def read(self) -> pl.Expr:
        """Return 1 for each row of the log that another one belongs to, and otherwise 0."""
        flags = self._flags
        return (
            pl.col(":source_row")
            .map_batches(
                lambda numbers: pl.Series(flags[numbers.to_numpy()]), return_dtype=pl.Float32, is_elementwise=True
            )
            .alias(self.name)
        )

    @property
    def is_positive(self) -> pl.Expr:
        """Whether a row is a positive one: of a log of events, the event itself."""
        event = self.positives.value
        return super().is_positive if event is None else pl.col(":kind") == event.text

    @cached_property
    def _flags(self) -> np.ndarray:
        flags = self.positives.find(self.log, self.time, self.is_row)
        if not self.is_later and ((flags.all() and self.is_row is None) or not flags.any()):
            path, log = self.positives.table.paths[0], self.log.paths[0]
            found = f"all rows of {log} have a positive" if flags.all() else f"no row belongs to one of {log}"
            raise DataError(
                f"{path}: {found}, expected some as {self.name}; check that both files have the same ids and times, "
                "and --match_on"
            )
        return flags.astype(np.float32)


@dataclass(frozen=True)
class ColumnLabel(Label):
    """The numbers of a column."""

    def _read(
        self, words: Collection[str], is_known: Callable[[pl.Expr], pl.Expr], expected: str,
        remedy: Callable[[pl.Expr], str] | None = None,
    ) -> pl.Expr:  # fmt: skip
        """Return numbers, also of ``words`` of ``TRUTH``; one that is not ``is_known`` is refused."""
        label = pl.col(self.name)
        if self.log.frame.collect_schema()[self.name] == pl.String:
            label = label.str.strip_chars().str.to_lowercase()
            label = label.replace({**{word: TRUTH[word] for word in words}, "": None})
        number = label.cast(pl.Float64, strict=False).fill_nan(None)
        wrong = label.is_not_null() & ~is_known(number).fill_null(False) & (label.cast(pl.String) != "NaN")
        self.log.refuse(wrong, self.name, expected, None if remedy is None else partial(remedy, number))
        return number


@dataclass(frozen=True)
class TruthLabel(ColumnLabel):
    """A column of 0 and 1, or of words for them."""

    def read(self) -> pl.Expr:
        """Return 0 and 1, null where the column has none."""
        expected = "0, 1, yes, no, true, false or null"
        number = self._read(TRUTH, lambda number: number.is_in([0.0, 1.0]), expected, self._remedy)
        return self._check_both(number.cast(pl.Float32))

    def _remedy(self, number: pl.Expr) -> str:
        """Return what to do about a label that is not 0 and 1: of words and of numbers."""
        name = self.name
        counts = self.log.frame.select(pl.col(name).filter(number.is_null()).value_counts(sort=True)).unnest(name)
        found = counts.drop_nulls(name).head(LISTED).collect(engine="streaming")[name]
        words = [str(word).strip() for word in found]
        if words:
            named = " or ".join(f"--labels {quote(f'{name}={word}')}" for word in reversed(words[:2]))
            return f"name the value that is 1 (there are: {', '.join(words)}): {named}"
        return (
            f"for one of its values, name it: --labels {name}=VALUE; for ratings, add --positive_from 4 or another "
            f"threshold; to predict the number itself, add --types {name}=numeric"
        )


@dataclass(frozen=True)
class ThresholdLabel(ColumnLabel):
    """Whether the number of a column is high enough, as of ratings: ``--positive_from 4``."""

    bound: float

    def read(self) -> pl.Expr:
        """Return 0 and 1, null where the column has no number."""
        number = self._read(TRUTH_VALUES, pl.Expr.is_finite, "a number or null") >= self.bound
        return self._check_both(number.cast(pl.Float32), "; change --positive_from")


@dataclass(frozen=True)
class NumberLabel(ColumnLabel):
    """The numbers of a column, which are to be predicted: ``--types watch_time=numeric``."""

    def read(self) -> pl.Expr:
        """Return the numbers, null where the column has none."""
        number = self._read(TRUTH_VALUES, pl.Expr.is_finite, "a number or null")
        if not self.is_later:
            least, most = self._range(number)
            if least == most:
                raise DataError(f"{self.log.paths[0]}: {self.name} holds {_held(least)}, expected different numbers")
        return number.alias(self.name)


def _held(least: float | None) -> str:
    return "no value" if least is None else f"{least:g} in all rows"
