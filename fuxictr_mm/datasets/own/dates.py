"""Dates as nations write them, such as 30.03.2024 14:05 or Mar 30, 2024 2:05 PM, of one order in all rows."""

from __future__ import annotations

import re
from time import time
from typing import Literal

import polars as pl

from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import DataError

#: Day, month and year in the order in which they are written; a month that is an English word tells the order itself.
Order = Literal["dmy", "mdy", "ymd", "word"]

#: Parts that no date has, such as those of 12-34-5678, are of numbers of another kind.
_PART, _YEAR = r"(?:0?[1-9]|[12]\d|3[01])", r"(?:19|20)\d{2}"
_LONG = rf"{_PART}\.{_PART}\.{_YEAR}|{_PART}/{_PART}/{_YEAR}|{_PART}-{_PART}-{_YEAR}|{_YEAR}[/.]{_PART}[/.]{_PART}"
_SHORT_YEAR = r"\d{2}"
_SHORT = "|".join(
    rf"{_PART}{mark}{_PART}{mark}{_SHORT_YEAR}|{_SHORT_YEAR}{mark}{_PART}{mark}{_PART}" for mark in (r"\.", "/", "-")
)
_MONTHS = [
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
]  # fmt: skip
_MONTH = rf"(?i:{'|'.join(f'{month[:3]}(?:{month[3:]})?' for month in _MONTHS)}|sept)\.?"
_DAY = rf"{_PART}(?i:st|nd|rd|th)?"
_WORD = rf"{_DAY}[ /-]{_MONTH}(?:[/-]|,? ){_YEAR}|{_MONTH} {_DAY},? {_YEAR}|{_YEAR}[ /-]{_MONTH}[ /-]{_PART}"
_CLOCK = (  # JavaScript writes a narrow space before AM and PM
    r"(?:(?:T|,? +)(?<hour>\d{1,2}):(?<minute>\d{2})(?::(?<second>\d{2}(?:[.,]\d{1,9})?))?"
    r"(?:\s?(?<half>[AaPp])\.?[Mm]\.?)?)?$"
)
NATIONAL = rf"^(?<date>{_LONG}|{_WORD}){_CLOCK}"
#: The same, also with years of two digits, which only times of rows have: in other columns, 10-11-12 may be anything.
NATIONAL_TIME = rf"^(?<date>{_LONG}|{_WORD}|{_SHORT}|{_PART}[ /-]{_MONTH}[ /-]{_SHORT_YEAR}){_CLOCK}"


def from_national(text: pl.Expr, order: Order) -> pl.Expr:
    """Return texts of ``NATIONAL_TIME`` as microseconds since 1970, taken for UTC; null for another text.

    No log has rows of the future: with a year of two digits, a date of 20.. that is later than now is the one a century
    before, and null if that is before 1970.

    Examples
    --------
    >>> texts = pl.Series(["30.03.2024 14:05", "3/30/2024 2:05 PM", "30 Mar 2024, 14:05"])
    >>> [pl.select(from_national(pl.lit(texts), order)).to_series().to_list() for order in ("dmy", "mdy", "word")]
    [[1711807500000000, None, None], [None, 1711807500000000, None], [None, None, 1711807500000000]]
    """
    parts = text.str.strip_chars().str.extract_groups(NATIONAL_TIME).struct
    date = parts.field("date")
    numbers = date.str.extract_all(r"\d+")
    if order == "word":
        word = date.str.extract(r"([A-Za-z]{3})").str.to_lowercase()
        month = word.replace_strict({name[:3]: f"{number:02}" for number, name in enumerate(_MONTHS, 1)}, default=None)
        numbers = pl.when(date.str.contains(r"^\d{4}")).then(numbers.list.reverse()).otherwise(numbers)
        day, year = (numbers.list.get(at, null_on_oob=True) for at in (0, 1))
    else:
        year, month, day = (numbers.list.get(order.index(letter), null_on_oob=True) for letter in "ymd")
    is_short = year.str.contains(rf"^{_SHORT_YEAR}$")
    in_full = pl.when(is_short).then("20" + year).otherwise(year)
    year = pl.when(in_full.str.contains(rf"^{_YEAR}$")).then(in_full)
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
    iso = pl.concat_str(pl.concat_str(year, month.str.zfill(2), day.str.zfill(2), separator="-"), clock, separator=" ")
    found = iso.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    earlier = found.dt.offset_by("-100y").dt.timestamp("us")
    tomorrow = int((time() + 86400) * 1e6)  # of all time zones
    is_later = is_short & (found.dt.timestamp("us") > tomorrow)
    return pl.when(~is_later).then(found.dt.timestamp("us")).when(earlier >= 0).then(earlier)


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
    date = text.str.extract_groups(NATIONAL_TIME).struct.field("date")
    first = table.frame.select(date, text=text).head(1).collect()
    if not len(first) or first["date"][0] is None:
        return None
    separator = next((mark for mark in "./-" if mark in first["date"][0]), "")
    is_short, is_word = re.search(r"\d{4}", first["date"][0]) is None, re.search("[A-Za-z]{3}", first["date"][0])
    orders: tuple[Order, ...] = ("dmy", "mdy", "ymd") if is_short else ("dmy", "mdy")
    is_one = date.str.contains(r"\d{4}") != is_short
    if is_word:
        orders = ("word",)
    elif not is_short and first["date"][0][:4].isdecimal():
        orders = ("ymd",)
    elif table.date_order is not None:
        orders = (table.date_order,)
    else:
        # A row with another separator is of another source, and does not tell the order of this one.
        is_one &= text.str.contains(rf"^\d+[{separator}]")
        orders = tuple(order for order in orders if separator != "." or order[0] != "m")  # the month never comes first
    times = {order: from_national(text, order) for order in orders}
    is_read = {order: found.is_not_null() & is_one for order, found in times.items()}
    counts = [is_read[order].sum().alias(order) for order in orders]
    found = table.frame.select(*counts, rows=pl.len()).collect(engine="streaming").row(0, named=True)
    possible = [order for order in orders if found[order] == found["rows"]]
    if len(possible) > 1:
        what = "which of day, month and year" if "ymd" in possible else "whether the day or the month"
        raise DataError(
            f"{table.where(0)}: {column} is {first['text'][0]!r}, and no row tells {what} is first; add "
            f"{' or '.join(f'--date_order {order}' for order in possible)}"
        )
    if not possible:
        best = max(orders, key=found.__getitem__)
        if 2 * found[best] < found["rows"] and table.date_order is None:  # the first row is the odd one
            return None
        mark = f" with {separator!r}" if table.date_order is None else ""
        form = " and a year of two digits (1970 to now)" if is_short else ""
        expected = "a date with the English name of its month" if is_word else f"a date of the order {best}{mark}"
        expected += f"{form}, as in {found[best]} of {found['rows']} rows"
        table.refuse(~is_read[best].fill_null(False), column, expected)
    return possible[0]
