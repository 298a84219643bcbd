"""Times of events as numbers that are ordered as the instants are."""

from __future__ import annotations

import re
from typing import Literal

import polars as pl

from fuxictr_mm.datasets.own.dates import from_national, order_of
from fuxictr_mm.datasets.own.number_column import is_integer
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError

ISO = (
    r"^(?<date>\d{4}-\d{2}-\d{2})(?:[T ](?<clock>\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?))?"
    r" ?(?<zone>Z|z|UTC|[+-]\d{2}(?::?\d{2})?)?$"
)
#: Of what times are numbers: of the source as they are, or instants in parts of a second since 1970 in UTC.
Unit = Literal["number", "us", "ns"]

#: Units of integers since 1970, by the zeros that they have more than seconds: those of 1973 to 2286 do not overlap.
UNITS = {"seconds": 0, "milliseconds": 3, "microseconds": 6, "nanoseconds": 9}

EXPECTED = "an integer, an ISO time such as 2024-05-31T18:00:00+02:00 or a date such as 31.05.2024 18:00 in all rows"


def from_iso(text: pl.Expr) -> pl.Expr:
    """Return ISO texts as microseconds since 1970 in UTC; null for another text. Without a zone, it is taken for UTC.

    Examples
    --------
    >>> texts = pl.Series(["2024-01-01T00:30:00+01:00", "2023-12-31 23:30Z", "noon"])
    >>> pl.select(from_iso(pl.lit(texts))).to_series().to_list()
    [1704065400000000, 1704065400000000, None]
    """
    parts = text.str.strip_chars().str.extract_groups(ISO).struct
    clock = parts.field("clock").fill_null("00:00")
    clock = pl.when(clock.str.len_chars() == 5).then(clock + ":00").otherwise(clock)
    local = (parts.field("date") + " " + clock).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    zone = parts.field("zone").str.replace(":", "", literal=True)
    hours, minutes = (zone.str.slice(at, 2).cast(pl.Int64, strict=False).fill_null(0) for at in (1, 3))
    sign = pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    return local.dt.timestamp("us") - sign * (hours * 60 + minutes) * 60_000_000


def read_times(table: Table, column: str) -> pl.Expr:
    """Return the column of times of a table as numbers."""
    kind, values = table.frame.collect_schema()[column], pl.col(column)
    unit = unit_of(table, column)
    if kind.is_integer():
        table.refuse(values.is_null(), column, EXPECTED)
        _refuse_two_units(table, column, values)
        return values.cast(pl.Int64)
    if kind.is_float():
        table.refuse(values.is_null() | ~values.is_finite(), column, EXPECTED)
        _refuse_two_units(table, column, values)
        return values.cast(pl.Float64)
    if isinstance(kind, pl.Datetime | pl.Date):
        table.refuse(values.is_null(), column, "a time")
        return values.dt.timestamp("ns" if unit == "ns" else "us")
    if kind != pl.String:
        raise ConfigError(f"--roles time={column}: {table.paths[0]} holds {kind} there, expected {EXPECTED}")
    text = values.str.strip_chars()
    is_number, has_zone = is_integer(text), text.str.contains(r"(?:Z|z|UTC|:.*[+-]\d{2}(?::?\d{2})?)$")
    if unit == "number":
        table.refuse(values.is_null() | ~is_number, column, EXPECTED)
        _refuse_two_units(table, column, text.cast(pl.Int64))
        return text.cast(pl.Int64)
    if (order := order_of(table, column)) is not None:
        return from_national(values, order)
    other = "; to convert a text of another form: "
    other += f'frame["{column}"] = pandas.to_datetime(frame["{column}"]), with dayfirst=True if the day is first'
    table.refuse(from_iso(values).is_null(), column, EXPECTED + other)
    has_first = table.frame.select(has_zone).head(1).collect().item()
    others = "a time with a zone" if has_first else "a time without a zone"
    table.refuse(has_zone != has_first, column, f"{others}, as in the first row")
    return from_iso(values)


def _refuse_two_units(table: Table, column: str, times: pl.Expr) -> None:
    """Raise a DataError if times since 1970 are of two units, such as seconds and milliseconds."""
    times = times.cast(pl.Float64)
    is_of = {name: times.is_between(10.0 ** (8 + zeros), 10.0 ** (10 + zeros)) for name, zeros in UNITS.items()}
    between = [times.is_between(10.0 ** (10 + zeros), 10.0 ** (11 + zeros), closed="none") for zeros in UNITS.values()]
    counts = table.frame.select(
        pl.any_horizontal(between).any().alias(":between"), **{n: i.sum() for n, i in is_of.items()}
    )
    is_between, *found = counts.collect(engine="streaming").row(0)
    held = {name: count for name, count in zip(is_of, found, strict=True) if count}
    if len(held) > 1 and not is_between:  # numbers of one unit that have grown so far were in between
        fewest = min(held, key=held.__getitem__)
        most = max((name for name in held if name != fewest), key=held.__getitem__)
        table.refuse(
            is_of[fewest],
            column,
            f"times in {most}, as in {held[most]} rows; {held[fewest]} are in {fewest}: write all in one unit",
        )


def unit_of(table: Table, column: str) -> Unit:
    """Return of what the numbers of ``read_times`` are; texts are instants unless the first is an integer."""
    kind = table.frame.collect_schema()[column]
    if isinstance(kind, pl.Datetime | pl.Date):
        return "ns" if isinstance(kind, pl.Datetime) and kind.time_unit == "ns" else "us"
    if kind != pl.String:
        return "number"
    first = table.frame.select(is_integer(pl.col(column).str.strip_chars())).head(1).collect().to_series()
    return "us" if len(first) and not first[0] else "number"


def as_instants(times: pl.Expr, unit: Unit) -> pl.Expr:
    """Return numbers of ``read_times`` as they are, or as points in time in UTC."""
    return times if unit == "number" else pl.from_epoch(times, unit).dt.replace_time_zone("UTC")


#: Seconds of the units of durations.
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(word: str, unit: Unit, option: str) -> int | float:
    """Return a duration such as 30m in the unit of times, or a number that is in it already.

    Raises
    ------
    ConfigError
        It is no duration, or has a unit where times are numbers, whose unit is not known.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", word)
    if found is None or not float(found[1]):
        raise ConfigError(f"{option} {word}: expected a duration such as 30m or 7d, or a number in the unit of times")
    number, suffix = float(found[1]), found[2]
    if unit != "number":
        return int(number * SECONDS[suffix] * (10**9 if unit == "ns" else 10**6))
    if suffix:
        raise ConfigError(f"{option} {word}: times are numbers; expected a number in their unit, without a letter")
    return int(number) if number.is_integer() else number
