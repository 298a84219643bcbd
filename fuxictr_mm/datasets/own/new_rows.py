"""Which rows of a later log are new: those later than the newest labelled row of the earlier log."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from fuxictr_mm.datasets.own.base import Base
from fuxictr_mm.datasets.own.instants import Unit, as_instants, unit_of
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewRows:
    """The rows of a later log that are kept, and what its users have clicked before."""

    base: Base
    log: Table
    time: str  #: Column of times.
    all_rows: bool  #: Whether rows that are not later are kept as well.
    is_trained: bool  #: Whether they are trained on.

    @cached_property
    def unit(self) -> Unit:
        """Of what the times are numbers."""
        return unit_of(self.log, self.time)

    @cached_property
    def since(self) -> float:
        """The time after which rows are new."""
        newest, unit = self.base.notes.newest, self.base.notes.unit
        if unit == self.unit:
            return newest
        if "number" in (unit, self.unit):
            words = {True: "numbers", False: "dates with times"}
            raise DataError(
                f"{self.log.paths[0]}: {self.time} holds {words[unit != 'number']}, expected "
                f"{words[unit == 'number']}, as in {self.base.folder}"
            )
        return newest * 1000 if unit == "us" else newest // 1000

    @property
    def is_later(self) -> pl.Expr:
        """Whether a row is later than those of the earlier log."""
        return pl.col(":time") > self.since

    @property
    def is_kept(self) -> pl.Expr:
        """Whether a row is kept."""
        return pl.lit(True) if self.all_rows else self.is_later

    @property
    def needs_all_clicks(self) -> bool:
        """Whether the newest clicks of users are not enough: of rows in between, and of what negatives may be."""
        return self.all_rows or (self.is_trained and not self.base.notes.labels)

    @property
    def num_before(self) -> int:
        """Rows of the earlier log that ``with_earlier`` adds, or users with rows."""
        return self.base.num_rows if self.needs_all_clicks else self.base.num_users

    def with_earlier(self, events: pl.DataFrame, is_here: pl.Expr) -> pl.DataFrame:
        """Return the events of some users after their clicks in the earlier log: the newest ones, if these suffice."""
        kind = events.schema[":time"]
        if self.needs_all_clicks:
            before = self.base.events(is_here, self.unit).with_columns(pl.col(":time").cast(kind))
        else:
            before = self.base.clicks(is_here).with_columns(pl.lit(self.since).cast(kind).alias(":time"))
        before = before.with_columns(pl.lit(True).alias(":positive"))
        return pl.concat([before, events], how="diagonal").select(events.columns)

    def check(self, read: pl.LazyFrame, path: Path) -> None:
        """Warn of rows that are dropped, of those that were read and those that are written; refuse a log of these."""
        frames = (read, pl.scan_parquet(path))
        rows, kept = (frame.select(pl.len()).collect(engine="streaming").item() for frame in frames)
        time = pl.select(as_instants(pl.lit(self.since), self.unit)).item()
        newest = f"the newest row of {self.base.folder} ({self.time} {time})"
        remedy = "" if self.is_trained else "; --all_rows keeps them"
        if not kept:
            raise DataError(f"{self.log.paths[0]}: none of {rows} rows is later than {newest}{remedy}")
        if kept < rows:
            remedy = remedy and f"{remedy}, such as those of a test file of random rows"
            logger.warning(
                f"{self.log.paths[0]}: {rows - kept} of {rows} rows are not later than {newest}; they are dropped"
                f"{self._of_the_same_time(read)}{remedy}"
            )

    def _of_the_same_time(self, read: pl.LazyFrame) -> str:
        """Return the number of rows at the newest time, where there are more of them than in the earlier log.

        Which of these rows are new cannot be known: one user may have two equal ones.
        """
        same = read.filter(pl.col(":time") == self.since).select(pl.len()).collect(engine="streaming").item()
        if same <= (before := self.base.rows_at(self.base.notes.newest)):
            return ""
        return (
            f"; {same} of them have exactly this time, of which the earlier log has {before} rows: if times are days, "
            "end each log with a whole day, or give times with the time of day"
        )
