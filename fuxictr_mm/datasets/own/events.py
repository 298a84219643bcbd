"""Labels that are values of a column, and logs with a row per event: views, carts and purchases in one column.

``--labels action=click`` is a label of each row: whether its column has the value. ``--impressions event=view`` says
that the log is one of events: views are the rows to predict, and the events that the labels name are what follows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from fuxictr_mm.datasets.own.instants import Unit
from fuxictr_mm.datasets.own.options import Value
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError, nearest

#: Seconds of the units of ``--within``.
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

#: Values that an error lists.
LISTED = 8


def is_held(value: Value) -> pl.Expr:
    """Whether a row has a value; null where its column is."""
    return text_of(value.column) == value.text


def text_of(column: str) -> pl.Expr:
    """Return the values of a column as texts without spaces around them."""
    return pl.col(column).cast(pl.String).str.strip_chars()


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


#: By label, how many of its events were assigned to impressions, and how many there are.
Counts = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class EventLog:
    """What the events of a log are."""

    column: str  #: Of the kinds of events.
    impressions: Sequence[str]  #: Kinds whose events are the rows.
    labels: Mapping[str, str]  #: The kind of each label.

    @property
    def kinds(self) -> list[str]:
        """The kinds of events that are read."""
        return list(dict.fromkeys([*self.impressions, *self.labels.values()]))

    @property
    def is_impression(self) -> pl.Expr:
        """Whether an event is a row to predict."""
        return pl.col(":kind").is_in(list(self.impressions))

    def with_labels(self, events: pl.DataFrame, within: float | None = None) -> tuple[pl.DataFrame, Counts]:
        """Return events with the labels of impressions, null for other events; and how many were assigned.

        An event is assigned to the newest impression of the same user and item that is not later, nor longer ago than
        ``within``. ``events`` has
        ``:user``, ``:item``, ``:time``, ``:kind`` and ``:source_row`` in ascending order, and all events of its users.
        """
        of_pair = [":user", ":item"]
        frame = events.with_columns(self.is_impression.alias(":is_impression"))
        # Of one time, an impression is before what follows from it.
        frame = frame.sort(*of_pair, ":time", ~pl.col(":is_impression"), ":source_row")
        frame = frame.with_columns(pl.col(":is_impression").cum_sum().over(of_pair).alias(":visit"))
        of_visit = [*of_pair, ":visit"]
        shown_at = pl.col(":time").first().over(of_visit)
        is_assigned = (pl.col(":visit") > 0) & pl.col(":user").is_not_null() & ~pl.col(":is_impression")
        if within is not None:
            is_assigned &= pl.col(":time") - shown_at <= within
        frame = frame.with_columns(is_assigned.alias(":is_assigned"))
        found = {name: pl.col(":is_assigned") & (pl.col(":kind") == kind) for name, kind in self.labels.items()}
        frame = frame.with_columns(
            pl.when(":is_impression").then(hit.any().over(of_visit).cast(pl.Float32)).alias(name)
            for name, hit in found.items()
        )
        counts = {}
        for name, hit in found.items():
            of_kind = frame.filter((pl.col(":kind") == self.labels[name]) & ~pl.col(":is_impression"))
            counts[name] = (int(of_kind.select(hit.sum()).item()), len(of_kind))
        return frame.sort(":source_row").drop(":is_impression", ":visit", ":is_assigned"), counts


def parse_within(word: str, unit: Unit) -> float:
    """Return ``--within`` in the unit of times.

    Raises
    ------
    ConfigError
        It is no duration, or has a unit where times are numbers, whose unit is not known.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", word)
    if found is None:
        raise ConfigError(f"--within {word}: expected a duration such as 30m or 7d, or a number in the unit of times")
    number, suffix = float(found[1]), found[2]
    if unit == "number":
        if suffix:
            raise ConfigError(f"--within {word}: times are numbers; expected a number in their unit, without a letter")
        return number
    return number * SECONDS[suffix] * (1_000_000 if unit == "us" else 1_000_000_000)
