"""Labels that are values of a column, and logs with a row per event: views, carts and purchases in one column.

``--labels action=click`` is a label of each row: whether its column has the value. ``--impressions event=view`` says
that the log is one of events: views are the rows to predict, and the events that the labels name are what follows them
(``positives``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from fuxictr_mm.datasets.own.options import Value
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError, nearest

#: Values that an error lists.
LISTED = 8


def text_of(column: str) -> pl.Expr:
    """Return the values of a column as texts without spaces around them."""
    return pl.col(column).cast(pl.String).str.strip_chars()


def is_held(value: Value) -> pl.Expr:
    """Whether a row has a value; null where its column is."""
    return text_of(value.column) == value.text


def check_value(table: Table, value: Value, option: str) -> None:
    """Raise a ConfigError if no row has the value."""
    counts = table.frame.select(text_of(value.column).value_counts(sort=True).alias("found")).unnest("found")
    known = counts.drop_nulls(value.column).collect(engine="streaming")[value.column].to_list()
    if value.text not in known:
        listing = ", ".join(known[:LISTED]) + (", ..." if len(known) > LISTED else "")
        raise ConfigError(
            f"--{option} {value.column}={value.text}: no row of {table.paths[0]} has this value"
            f"{nearest(value.text, known[:1000])} (there are: {listing})"
        )


@dataclass(frozen=True)
class EventLog:
    """What the events of a log are."""

    column: str  #: Of the kinds of events.
    impressions: Sequence[str]  #: Kinds whose events are the rows.
    labels: Mapping[str, str]  #: The kind of each label.

    @property
    def values(self) -> list[tuple[str, Value]]:
        """The kinds of events that are read, each with the option that names it."""
        shown = [("impressions", Value(self.column, kind)) for kind in self.impressions]
        return shown + [("labels", Value(self.column, kind)) for kind in self.labels.values()]

    def is_impression(self, kind: pl.Expr) -> pl.Expr:
        """Whether an event of a kind is a row to predict."""
        return kind.is_in(list(self.impressions))

    def is_read(self, kind: pl.Expr) -> pl.Expr:
        """Whether events of a kind are read."""
        return kind.is_in([value.text for _, value in self.values])
