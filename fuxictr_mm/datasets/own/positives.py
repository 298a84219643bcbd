"""Labels of other rows, which belong to rows of the log: of a file (``--positives``), or events (``--impressions``)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl

from fuxictr_mm.datasets.own.dates import order_of
from fuxictr_mm.datasets.own.events import is_held, text_of
from fuxictr_mm.datasets.own.instants import Unit, parse_duration, read_times, unit_of
from fuxictr_mm.datasets.own.missing import without
from fuxictr_mm.datasets.own.options import Value
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError, DataError, nearest

logger = logging.getLogger(__name__)

#: Positive rows that are matched at a time; the log is read once for each part.
PART_ROWS = 5_000_000

#: A warning says from this fraction on how many match no row.
MANY = 0.1

#: Between the values of several columns; no text has it.
_BETWEEN = "\x1f"


@dataclass(frozen=True)
class Positives:
    """The positive rows of one label.

    Each belongs to the row of the log that has the same values in the columns ``on``: with a time, to the latest of
    them that is not later, and at most ``within`` earlier (``parse_duration``).
    """

    label: str
    table: Table
    on: Sequence[str]
    time: str | None = None  #: Column of the times of the table; None: rows of the log are told apart by ``on``.
    within: str | None = None
    value: Value | None = None  #: What the rows hold, of a log of events; None: all rows of the table are positive.
    #: By column, the texts that stand for a missing value; of others, only an empty one does.
    missing: Mapping[str, Collection[str]] = field(default_factory=dict)

    @cached_property
    def _file(self) -> str:
        return f"--positives {self.label}={self.table.paths[0].name}"

    def check(self) -> None:
        """Raise a ConfigError if a column does not exist."""
        names = self.table.schema
        missing = next((name for name in [*self.on, self.time] if name is not None and name not in names), None)
        if missing is not None:
            fix = "name another" if missing == self.time else "rename one, or name others: --match_on"
            raise ConfigError(
                f"{self._file}: the file has no column '{missing}'{nearest(missing, names)} (it has: "
                f"{', '.join(names)}); {fix}"
            )

    def find(self, log: Table, log_time: str, is_row: pl.Expr | None = None) -> np.ndarray:
        """Return whether a positive row belongs to each row of the log, ``(R,)`` bool; counts are logged.

        ``is_row`` says which rows of the log they may belong to, by default all.
        """
        flags = np.zeros(log.frame.select(pl.len()).collect(engine="streaming").item(), dtype=bool)
        shown = self._keyed(log, log_time, is_row)
        found = self._keyed(self.table, self.time, None if self.value is None else is_held(self.value))
        if self.time is not None:
            shown, found = self._with_one_unit(shown, found, log, log_time)
        count = found.select(pl.len()).collect(engine="streaming").item()
        parts, matched = max(1, -(-count // PART_ROWS)), 0
        example: int | None = None
        for number in range(parts):
            is_here = pl.col(":key").hash(0) % parts == number
            positives = found.filter(is_here).collect(engine="streaming")
            keys = positives.lazy().select(":key").unique()
            rows = shown.filter(is_here).join(keys, on=":key", how="semi").collect(engine="streaming")
            pairs = self._match(positives, rows, log, log_time)
            flags[pairs[":shown"].drop_nulls().to_numpy()] = True
            matched += len(pairs) - pairs[":shown"].null_count()
            without = pairs.filter(pl.col(":shown").is_null())[":row"].sort().to_list()[:1]
            example = min([*without, *([] if example is None else [example])], default=None)
        self._report(count, matched, int(flags.sum()), example, log)
        return flags

    def _keyed(self, table: Table, time: str | None, is_kept: pl.Expr | None) -> pl.LazyFrame:
        """Return ``:row``, ``:key`` and ``:time``; a row without one of the values has no key."""
        values = [without(text_of(name), self.missing.get(name, [""])) for name in self.on]
        times = [] if self.time is None or time is None else [read_times(table, time).alias(":time")]
        rows = table.frame.with_row_index(":row")
        rows = rows if is_kept is None else rows.filter(is_kept)
        return rows.select(
            pl.col(":row").cast(pl.Int64), pl.concat_str(values, separator=_BETWEEN).alias(":key"), *times
        )

    def _with_one_unit(
        self, shown: pl.LazyFrame, found: pl.LazyFrame, log: Table, log_time: str
    ) -> tuple[pl.LazyFrame, pl.LazyFrame]:
        """Return both with times that can be compared: microseconds, or the numbers of the source."""
        assert self.time is not None
        units = unit_of(log, log_time), unit_of(self.table, self.time)
        if units[0] != units[1] and "number" in units:
            words = ["numbers" if unit == "number" else "dates with times" for unit in units]
            raise DataError(
                f"{self.table.paths[0]}: {self.time} holds {words[1]}, expected {words[0]}, as {log_time} of "
                f"{log.paths[0]}"
            )
        orders = order_of(log, log_time), order_of(self.table, self.time)
        if set(orders) == {"dmy", "mdy"}:  # one option tells the order of a later log, and of its positives
            raise DataError(
                f"{self.table.paths[0]}: {self.time} holds dates of the order {orders[1]}, expected {orders[0]}, as "
                f"{log_time} of {log.paths[0]}"
            )
        frames = []
        kinds = [frame.collect_schema()[":time"] for frame in (shown, found)]
        kind = pl.Float64 if pl.Float64 in kinds else pl.Int64
        for frame, unit in zip((shown, found), units, strict=True):
            times = pl.col(":time") // 1000 if unit == "ns" else pl.col(":time")
            frames.append(frame.with_columns(times.cast(kind)))
        return frames[0], frames[1]

    def _match(self, positives: pl.DataFrame, rows: pl.DataFrame, log: Table, log_time: str) -> pl.DataFrame:
        """Return ``:row`` of each positive and ``:shown``, its row of the log or null."""
        rows = rows.rename({":row": ":shown"})
        if self.time is None:
            again = rows.filter(rows[":key"].is_duplicated()).sort(":shown")
            if len(again):
                values = again[":key"][0].split(_BETWEEN)
                raise DataError(
                    f"{log.where(again[':shown'][1])}: {self._said(values)} is there again, so that a row of "
                    f"{self.table.paths[0]} belongs to several; name the column of its times, {self._file}:TIME, or "
                    "more columns: --match_on"
                )
            return positives.join(rows, on=":key", how="left", maintain_order="left").select(":row", ":shown")
        tolerance = None
        if self.within is not None:
            unit: Unit = "number" if unit_of(log, log_time) == "number" else "us"
            tolerance = parse_duration(self.within, unit, "--match_within")
        pairs = positives.sort(":time").join_asof(
            rows.sort(":time", ":shown"),
            on=":time",
            by=":key",
            strategy="backward",
            tolerance=tolerance,
            check_sortedness=False,
        )
        return pairs.select(":row", ":shown")

    def _said(self, values: Sequence[object]) -> str:
        return ", ".join(f"{name} {value!r}" for name, value in zip(self.on, values, strict=True))

    def _report(self, count: int, matched: int, rows: int, example: int | None, log: Table) -> None:
        what = "rows" if self.value is None else f"events {self.value.text}"
        found = f"{self.table.paths[0]}: {matched:,} of {count:,} {what} belong to "
        found += f"rows of {log.paths[0]}" if self.value is None else "impressions"
        found += f", of which {rows:,} have {self.label} 1"
        if example is None or count - matched < MANY * count:
            logger.info(found)
            return
        key = self.table.frame.with_row_index(":row").filter(pl.col(":row") == example).select(self.on)
        values = key.collect(engine="streaming").row(0)
        said = self._said(values)
        when = "" if self.time is None else " not later than it"
        when += "" if self.within is None else f" and at most {self.within} earlier (--match_within)"
        # Addresses of mails are often in upper case in one file and not in the other.
        same = [(text_of(n), str(value).strip()) for n, value in zip(self.on, values, strict=True)]
        is_same = pl.all_horizontal(text == value for text, value in same)
        in_lower = pl.all_horizontal(text.str.to_lowercase() == value.lower() for text, value in same)
        counts = log.frame.select(is_same.sum().alias("same"), in_lower.sum().alias("other"))
        has_same, has_other = map(bool, counts.collect(engine="streaming").row(0))
        case = ", but one in other upper and lower case: write ids alike in both files" if has_other > has_same else ""
        logger.warning(f"{found}; {self.table.where(example)}, for example, has no row{when} with {said}{case}")
