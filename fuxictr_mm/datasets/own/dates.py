"""Dates as nations write them, such as 30.03.2024 14:05 or 3/30/2024 2:05 PM, of one order in all rows."""

from __future__ import annotations

from typing import Literal

import polars as pl

from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import DataError

#: Day, month and year in the order in which they are written.
Order = Literal["dmy", "mdy", "ymd"]

#: Parts that no date has, such as those of 12-34-5678, are of numbers of another kind.
_PART, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:19|20)\d{2}"
NATIONAL = (
    rf"^(?<date>{_PART}\.{_PART}\.{_YEAR}|{_PART}/{_PART}/{_YEAR}|{_PART}-{_PART}-{_YEAR}|{_YEAR}[/.]{_PART}[/.]{_PART})"
    r"(?:(?:T|,? +)(?<hour>\d{1,2}):(?<minute>\d{2})(?::(?<second>\d{2}(?:[.,]\d{1,9})?))?"
    r"(?: ?(?<half>[AaPp])\.?[Mm]\.?)?)?$"
)


def from_national(text: pl.Expr, order: Order) -> pl.Expr:
    """Return such texts as microseconds since 1970, taken for UTC; null for another text.

    Examples
    --------
    >>> texts = pl.Series(["30.03.2024 14:05", "3/30/2024 2:05 PM"])
    >>> [pl.select(from_national(pl.lit(texts), order)).to_series().to_list() for order in ("dmy", "mdy")]
    [[1711807500000000, None], [None, 1711807500000000]]
    """
    parts = text.str.strip_chars().str.extract_groups(NATIONAL).struct
    numbers = parts.field("date").str.extract_all(r"\d+")
    year, month, day = (numbers.list.get(order.index(letter), null_on_oob=True).str.zfill(2) for letter in "ymd")
    half, hour = parts.field("half").str.to_lowercase(), parts.field("hour").cast(pl.Int64)
    is_of_twelve = hour.is_between(1, 12)
    hour = (
        pl.when(half.is_null())
        .then(hour.fill_null(0))
        .when(is_of_twelve)
        .then(hour % 12 + pl.when(half == "p").then(12).otherwise(0))
    )
    seconds = parts.field("second").fill_null("00").str.replace(",", ".", literal=True)
    clock = pl.concat_str(
        hour.cast(pl.String).str.zfill(2), parts.field("minute").fill_null("00"), seconds, separator=":"
    )
    iso = pl.concat_str(pl.concat_str(year, month, day, separator="-"), clock, separator=" ")
    return iso.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False).dt.timestamp("us")


def order_of(table: Table, column: str) -> Order | None:
    """Return the order that all dates of a column are of; None if the first value, or most are no such dates.

    Raises
    ------
    DataError
        The rows may be of two orders, and ``date_order`` of the table does not say of which; or not all are of one.
    """
    if table.frame.collect_schema()[column] != pl.String:
        return None
    text = pl.col(column).str.strip_chars()
    date = text.str.extract_groups(NATIONAL).struct.field("date")
    first = table.frame.select(date, text=text).head(1).collect()
    if not len(first) or first["date"][0] is None:
        return None
    separator = next(mark for mark in "./-" if mark in first["date"][0])
    orders: tuple[Order, ...] = ("dmy", "mdy")
    is_one = pl.lit(True)
    if first["date"][0][:4].isdecimal():
        orders = ("ymd",)
    elif table.date_order is not None:
        orders = (table.date_order,)
    else:
        # A row with another separator is of another source, and does not tell the order of this one.
        is_one = text.str.contains(rf"^\d+[{separator}]")
        orders = ("dmy",) if separator == "." else orders  # where the month never comes first
    is_read = {order: from_national(text, order).is_not_null() & is_one for order in orders}
    counts = [is_read[order].sum().alias(order) for order in orders]
    found = table.frame.select(*counts, rows=pl.len()).collect(engine="streaming").row(0, named=True)
    possible = [order for order in orders if found[order] == found["rows"]]
    if len(possible) > 1:
        raise DataError(
            f"{table.where(0)}: {column} is {first['text'][0]!r}, and no row tells whether the day or the month is "
            "first; add --date_order dmy, or --date_order mdy"
        )
    if not possible:
        best = max(orders, key=found.__getitem__)
        if 2 * found[best] < found["rows"] and table.date_order is None:  # the first row is the odd one
            return None
        mark = f" with {separator!r}" if table.date_order is None else ""
        expected = f"a date of the order {best}{mark}, as in {found[best]} of {found['rows']} rows"
        table.refuse(~is_read[best].fill_null(False), column, expected)
    return possible[0]
