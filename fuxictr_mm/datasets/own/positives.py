"""Labels of a second file, such as of clicks or purchases, whose rows belong to rows of the log (``--positives``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from fuxictr_mm.datasets.own.instants import Unit, read_times, unit_of
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError, DataError, nearest

logger = logging.getLogger(__name__)

#: Positive rows that are matched at a time; the log is read once for each part.
PART_ROWS = 5_000_000

#: A warning says from this fraction on how many match no row.
MANY = 0.1

#: Between the values of several columns; no text has it.
_BETWEEN = "\x1f"

#: Of a second, by what times are numbers of.
_PER_SECOND: dict[Unit, int] = {"number": 1, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Positives:
    """The file of one label.

    A row of it belongs to the row of the log that has the same values in the columns ``on``: with a time, to the latest
    of them that is not later, and at most ``within`` seconds earlier (of times that are integers, in their unit).
    """

    label: str
    table: Table
    on: Sequence[str]
    time: str | None = None  #: Column of the times of the table; None: rows of the log are told apart by ``on``.
    within: float | None = None

    @cached_property
    def _file(self) -> str:
        return f"--positives {self.label}={self.table.paths[0].name}"

    def check(self) -> None:
        """Raise a ConfigError if a column does not exist."""
        names = self.table.schema
        missing = next((name for name in [*self.on, self.time] if name is not None and name not in names), None)
        if missing is not None:
            fix = "name another" if missing == self.time else "rename one, or name others: --positives_on"
            raise ConfigError(
                f"{self._file}: the file has no column '{missing}'{nearest(missing, names)} (it has: "
                f"{', '.join(names)}); {fix}"
            )

    def find(self, log: Table, log_time: str) -> np.ndarray:
        """Return whether a row of this table belongs to each row of the log, ``(R,)`` bool; counts are logged."""
        flags = np.zeros(log.frame.select(pl.len()).collect(engine="streaming").item(), dtype=bool)
        shown, found = self._keyed(log, log_time), self._keyed(self.table, self.time)
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

    def _keyed(self, table: Table, time: str | None) -> pl.LazyFrame:
        """Return ``:row``, ``:key`` and ``:time``; a row without one of the values has no key."""
        values = [pl.col(name).cast(pl.String).str.strip_chars() for name in self.on]
        times = [] if self.time is None or time is None else [read_times(table, time).alias(":time")]
        return table.frame.with_row_index(":row").select(
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
                raise DataError(
                    f"{log.where(again[':shown'][1])}: {self._said(again[':key'][0])} is there again, so that a row of "
                    f"{self.table.paths[0]} belongs to several; name the column of its times, {self._file}:TIME, or "
                    "more columns: --positives_on"
                )
            return positives.join(rows, on=":key", how="left", maintain_order="left").select(":row", ":shown")
        tolerance: float | None = self.within
        if tolerance is not None and positives.schema[":time"] == pl.Int64:
            per_second = 1 if unit_of(log, log_time) == "number" else _PER_SECOND["us"]
            tolerance = int(tolerance * per_second)
        pairs = positives.sort(":time").join_asof(
            rows.sort(":time", ":shown"),
            on=":time",
            by=":key",
            strategy="backward",
            tolerance=tolerance,
            check_sortedness=False,
        )
        return pairs.select(":row", ":shown")

    def _said(self, key: str) -> str:
        return ", ".join(f"{name} {value!r}" for name, value in zip(self.on, key.split(_BETWEEN), strict=True))

    def _report(self, count: int, matched: int, rows: int, example: int | None, log: Table) -> None:
        path, of = self.table.paths[0], f"{log.paths[0]}"
        found = f"{path}: {matched:,} of {count:,} rows belong to rows of {of}, of which {rows:,} have {self.label} 1"
        if example is None or count - matched < MANY * count:
            logger.info(found)
            return
        key = self.table.frame.with_row_index(":row").filter(pl.col(":row") == example).select(self.on)
        values = key.collect(engine="streaming").row(0)
        said = ", ".join(f"{name} {value!r}" for name, value in zip(self.on, values, strict=True))
        when = "" if self.time is None else " not later than it"
        when += "" if self.within is None else f" and at most {self.within:g} earlier (--positives_within)"
        logger.warning(f"{found}; {self.table.where(example)}, for example, has no row{when} with {said}")
