"""CSV files as pandas reads them: blank lines, and rows with too few fields."""

from __future__ import annotations

import csv
import mmap
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from fuxictr_mm.data.parquet import partition_columns

_TRUTH_VALUES = {"": None} | {
    spelled: number
    for text, number in (("true", "1"), ("false", "0"))
    for spelled in (text, text.title(), text.upper())
}


def scan_csv(file: Path, separator: str, blank: Sequence[int]) -> pl.LazyFrame:
    """Return the columns of a CSV file, as texts, and of its Hive partitions, lazily.

    ``blank`` are the file's ``blank_rows``: polars reads them as nulls, pandas skips them, and so does this.
    """
    frame = pl.scan_csv(file, separator=separator, infer_schema=False)
    if blank:
        index, rows = pl.col("\0row"), pl.Series(blank, dtype=pl.UInt32)
        frame = frame.with_row_index("\0row").filter(~index.is_in(rows.implode())).drop("\0row")
    return with_partitions(frame, file)


def blank_rows(file: Path, separator: str) -> list[int]:
    """Return which rows of a CSV file, counted from 0 after the header, are lines of nothing but white space."""
    white = b" \t\r\n".replace(separator.encode(), b"")
    with file.open("rb") as stream:
        if not file.stat().st_size:  # which cannot be mapped
            return []
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if not re.search(rb"\n[ \t\r]*(?:\n|[ \t\r]\Z)", content):  # of most files, and ten times as fast
                return []
        row, quoted, found = -1, False, []
        for line in stream:
            if not quoted and not line.strip(white):
                if row < 0:  # polars skips those before the header
                    continue
                found.append(row)
            quoted ^= bool(line.count(b'"') % 2)
            row += not quoted
    return found


def plain_numbers(texts: pl.Expr) -> pl.Expr:
    """Return texts of numbers as they can be cast: without spaces around them, truth values as 1 and 0, empty as null.

    Pandas reads spaces and truth values so, and writes the latter for columns of them.
    """
    return texts.str.strip_chars(" \t").replace(_TRUTH_VALUES)


def to_numbers(texts: pl.Expr, kind: type[pl.DataType]) -> pl.Expr:
    """Return ``plain_numbers`` as numbers; other texts are an error."""

    def cast(values: pl.Series) -> pl.Series:
        found = values.cast(kind, strict=False)
        if found.null_count() == values.null_count():  # of most files, and twice as fast
            return found
        return pl.select(plain_numbers(pl.lit(values)).cast(kind)).to_series()

    return texts.map_batches(cast, kind, is_elementwise=True)


def find_stray_quote(file: Path, separator: str) -> int:
    """Return the line, from 1, where a row begins that has a quote inside a text or one that is not closed; 0 if none.

    It is the first such line, found by Python's CSV reader, because errors of polars do not name it.
    """
    quotes = 0

    def counted(lines: Iterable[str]) -> Iterator[str]:
        nonlocal quotes
        for line in lines:
            quotes += line.count('"')
            yield line

    with file.open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = csv.reader(counted(stream), delimiter=separator, strict=True)
        start = 1
        try:
            for _ in rows:
                if quotes % 2:
                    return start
                start, quotes = rows.line_num + 1, 0
        except csv.Error:  # also of a field that is too long, as the rest of the file would be
            return start if quotes else 0
    return 0


def find_long_row(file: Path, separator: str) -> tuple[int, int, int] | None:
    """Return the first row that has more fields than the header, from 0 after it, and the numbers of fields of both."""
    with file.open(encoding="utf-8", errors="replace", newline="") as stream, suppress(csv.Error):
        lines = csv.reader(stream, delimiter=separator, strict=True)
        rows = (row for row in lines if len(row) > 1 or "".join(row).strip())
        expected = len(next(rows, []))
        return next(((number, len(row), expected) for number, row in enumerate(rows) if len(row) > expected), None)
    return None  # damaged in another way


def with_partitions(frame: pl.LazyFrame, file: Path) -> pl.LazyFrame:
    """Add the columns of a file's Hive partitions that it does not hold."""
    found = partition_columns(file)
    present = frame.collect_schema().names() if found else []
    added = [
        pl.lit(value.as_py(), pl.Int64 if pa.types.is_integer(value.type) else pl.String).alias(name)
        for name, value in found.items()
        if name not in present
    ]
    return frame.with_columns(added)


def count_short_rows(file: Path, separator: str) -> tuple[int, int]:
    """Return how many rows of a CSV file have fewer fields than the header, and the first, from 0 after the header.

    Polars and pandas fill them with missing values. Blank lines do not count.
    """
    # A separator that does not occur: every line is one text. Quotes are looked at below.
    other = "\x1f" if separator != "\x1f" else "\x1e"
    options: dict[str, Any] = {"separator": other, "has_header": False, "quote_char": None, "infer_schema": False}
    lines = pl.scan_csv(file, new_columns=["line"], encoding="utf8-lossy", truncate_ragged_lines=True, **options)
    line = pl.col("line")
    has_quotes = line.str.contains('"', literal=True)
    if lines.select(has_quotes.any()).collect(engine="streaming").item():
        # Commas in quotes are not separators; a field may begin on one line and end on another.
        lines = lines.with_columns(line.str.replace_all(r'"[^"]*"', ""))
        if lines.select(has_quotes.any()).collect(engine="streaming").item():
            return _count_by_rows(file, separator)
    lines = lines.filter(line.str.strip_chars(" \t\r".replace(separator, "")) != "")
    fields = line.str.count_matches(separator, literal=True)
    found = lines.select(fields=fields).with_row_index("row").filter(pl.col("fields") < pl.col("fields").first())
    count, row = found.select(pl.len(), pl.col("row").min()).collect(engine="streaming").row(0)
    return count, -1 if row is None else row - 1


def _count_by_rows(file: Path, separator: str) -> tuple[int, int]:
    """Do what ``count_short_rows`` does by Python's reader, where texts hold line breaks."""
    with file.open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = (row for row in csv.reader(stream, delimiter=separator) if len(row) > 1 or "".join(row).strip())
        header = next(rows, [])
        found: list[int] = []
        with suppress(csv.Error):  # damaged in another way, which is found when it is read
            found += (number for number, row in enumerate(rows) if len(row) < len(header))
    return len(found), found[0] if found else -1
