"""The tables of a log of one's own, and the log as Parquet."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import polars as pl

from fuxictr_mm.datasets.own.base import Base
from fuxictr_mm.datasets.own.columns import LogColumn, choose_columns, free_name
from fuxictr_mm.datasets.own.events import check_value, text_of
from fuxictr_mm.datasets.own.files import WRITTEN, LogFiles
from fuxictr_mm.datasets.own.ids import Ids
from fuxictr_mm.datasets.own.instants import Unit, read_times, unit_of
from fuxictr_mm.datasets.own.labelling import find_labels
from fuxictr_mm.datasets.own.labels import MatchedLabel
from fuxictr_mm.datasets.own.new_rows import NewRows
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, nearest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Continued:
    """The earlier log that a log continues, whose columns, types and labels it has."""

    base: Base
    given: Mapping[str, Any] = field(default_factory=dict)  #: Files that are named for this log; others may be missing.
    all_rows: bool = False  #: Whether rows that are not later are kept.
    is_trained: bool = False  #: Whether its rows are trained on.


class LogSource:
    """The tables of interactions, items and users, with their roles, labels and types."""

    def __init__(
        self,
        asked: LogOptions,
        source: Path,
        scratch: Path,
        continued: Continued | None = None,
        opened: Table | None = None,
    ) -> None:
        self.asked, self.scratch = asked, scratch
        self.base = None if continued is None else continued.base
        self.files = LogFiles(asked, source, scratch, self.base, {} if continued is None else continued.given, opened)
        log = self.files.table(
            "interactions", asked.interactions or "interactions.*", {"user": asked.user, "target": asked.item}
        )
        assert log is not None
        for role in ("time", "group", "history", "weight"):
            if (column := getattr(asked, role)) is not None:
                log.check(column, f"--roles {role}={column}")
        self.log = log
        for column in asked.match_on:
            log.check(column, f"--match_on {column}")
        self.items = self.files.table("items", asked.items, {"target": asked.item})
        self.users = self.files.table("users", asked.users, {"user": asked.user})
        self.labels = find_labels(asked, self.files, log, self.tables[1:])
        self.ids = Ids(asked, log, self.users, self.items, self.base)
        #: Which rows are new, of a later log.
        self.new_rows: NewRows | None = None
        if continued is not None:
            self.new_rows = NewRows(continued.base, log, asked.time, continued.all_rows, continued.is_trained)
            self._check_columns(continued.base)

    def _check_columns(self, base: Base) -> None:
        """Refuse tables that do not have the columns of the earlier log."""
        if self.written("users") and self.users is None:
            columns = ", ".join(column.source for column in self.written("users"))
            raise MissingFileError(
                f"{self.files.source}: no file of users, but {base.folder} has the columns {columns} of users; add the "
                "file"
            )
        for table in self.tables:
            for column in self.written(table.option):
                table.check(column.source, f"--like {base.folder}")

    @property
    def tables(self) -> list[Table]:
        """The tables that exist."""
        return [table for table in (self.log, self.items, self.users) if table is not None]

    @property
    def paths(self) -> list[Path]:
        """The files of all tables, and of the positive rows of labels."""
        labels = (self.labels.found.get(name) for name in self.asked.positives)
        tables = [*self.tables, *(label.positives.table for label in labels if isinstance(label, MatchedLabel))]
        return list(dict.fromkeys(path for table in tables for path in table.paths))

    @property
    def is_labelled(self) -> pl.Expr:
        """Whether a row of the log has a label."""
        return self.labels.is_labelled

    @property
    def is_positive(self) -> pl.Expr:
        """Whether a row of the log enters histories; the earlier log may hold those that are not later."""
        is_positive = self.labels.is_positive
        return is_positive if self.new_rows is None else is_positive & self.new_rows.is_later

    # Columns: names that two tables have go to the log, then to the users.

    @cached_property
    def columns(self) -> dict[str, tuple[list[LogColumn], dict[str, str]]]:
        """Columns of each table that are written, and why each of the others is not; those of an earlier log."""
        if self.base is not None:
            return {option: (columns, {}) for option, columns in self.base.columns.items()}
        self._check_types()
        asked, labels = self.asked, self.labels
        taken = {*WRITTEN, *labels.found, *map(labels.written, labels.found)}
        roles = {asked.user, asked.item, asked.time, *labels.known}
        roles |= {column for column in (asked.group, asked.history, asked.weight) if column}
        roles |= {value.column for value in labels.values.values()}
        roles |= {labels.events.column} if labels.events else set()
        types, found = asked.types, {}
        for table, without, prefix in (
            (self.log, roles, "context_"),
            (self.users, {asked.user}, "user_"),
            (self.items, {asked.item}, "item_"),
        ):
            if table is not None:
                found[table.option] = choose_columns(table, without, types, taken, prefix)
        if asked.group is not None:
            found["interactions"][0].append(self._group_column(asked.group, taken))
        return found

    def _check_types(self) -> None:
        """Refuse types of columns that no file has."""
        known = [name for table in self.tables for name in table.schema]
        unknown = [name for name in self.asked.types if name not in known]
        if unknown:
            given = " ".join(quote(f"{name}={self.asked.types[name]}") for name in unknown)
            names = ", ".join(f"'{name}'{nearest(name, known)}" for name in unknown)
            raise ConfigError(f"--types {given}: no file has the column {names}")

    def _group_column(self, source: str, taken: set[str]) -> LogColumn:
        kind = self.log.frame.collect_schema()[source]
        if not (kind == pl.String or kind.is_integer()) or source in self.labels.known:
            found = "is a label" if source in self.labels.known else f"holds {kind}"
            raise ConfigError(
                f"--roles group={source}: {self.log.paths[0]}: the column {found}, expected texts or integers"
            )
        return LogColumn(source, free_name(source.replace(".", "_"), taken, "context_"), "group")

    def written(self, option: str) -> list[LogColumn]:
        """Return the columns of a table that are written."""
        return self.columns[option][0] if option in self.columns else []

    # Rows

    @cached_property
    def path(self) -> Path:
        """The log as Parquet: ``:user``, ``:item``, ``:time``, labels, and columns of context as in the file.

        ``:history`` and ``:weight`` are there if the log has columns of histories and of weights.

        ``:source_row`` is the number of the row in all files of the log.
        """
        path = self.scratch / "log.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            events, partial = self._events(), path.with_suffix(".partial")
            kept = events if self.new_rows is None else events.filter(self.new_rows.is_kept)
            kept.sink_parquet(partial)
            if self.new_rows is not None:
                self.new_rows.check(events, partial)
            self._check_labelled(partial)
            self._check_users(partial)
            partial.rename(path)
        return path

    def _events(self) -> pl.LazyFrame:
        asked, log, events = self.asked, self.log, self.labels.events
        if self.base is not None:
            self.base.check_numbers(log)
        elif events is not None:
            for option, value in events.values:
                check_value(log, value, option)
        labels = [label.read() for label in self.labels.found.values()]
        if events is not None:
            kind = text_of(events.column)
            labels = [pl.when(events.is_impression(kind)).then(label) for label in labels] + [kind.alias(":kind")]
        rows = log.frame.with_row_index(":source_row").select(
            pl.col(":source_row").cast(pl.Int64),
            self.ids.of(log, "user").alias(":user"),
            self.ids.of(log, "target").alias(":item"),
            read_times(log, asked.time).alias(":time"),
            *([] if asked.history is None else [self.ids.histories(asked.history).alias(":history")]),
            *labels,
            *([] if asked.weight is None else [self._read_weight(asked.weight).alias(":weight")]),
            *(column.source for column in self.written("interactions")),
        )
        return rows if events is None else rows.filter(events.is_read(pl.col(":kind")))

    def _check_labelled(self, path: Path) -> None:
        """Warn of rows without a label, unless they are to be scored."""
        if self.labels.events is not None or (self.new_rows is not None and not self.new_rows.is_trained):
            return
        rows = pl.scan_parquet(path).select((~self.is_labelled).sum()).collect().item()
        if rows:
            is_first = self.base is None and len(self.log.paths) > 1
            later = " (to score a file of such rows, prepare it after the others, with --like)" if is_first else ""
            logger.warning(f"{self.log.paths[0]}: {rows} rows have no label; they are dropped{later}")

    def _check_users(self, path: Path) -> None:
        """Warn of rows without a user; refuse a log of which all are."""
        is_anonymous = pl.col(":user").is_null()
        first = pl.col(":source_row").filter(is_anonymous).first()
        counts = pl.scan_parquet(path).select(pl.len(), count=is_anonymous.sum(), first=first)
        rows, anonymous, row = counts.collect(engine="streaming").row(0)
        if not anonymous:
            return
        if anonymous == rows:
            raise DataError(f"{self.log.paths[0]}: {self.asked.user} has no value in all {rows} rows, expected users")
        words = ", ".join(self.ids.missing_users())
        logger.warning(
            f"{self.log.where(row)}: {self.asked.user} has no value{f' ({words} count as none)' if words else ''}, as "
            f"in {anonymous} of {rows} rows; these have the user 0 and no history, and are in no history"
        )

    @cached_property
    def time_unit(self) -> Unit:
        """Of what the times are numbers."""
        return unit_of(self.log, self.asked.time)

    def _read_weight(self, column: str) -> pl.Expr:
        table, weight = self.log, pl.col(column)
        kind = table.frame.collect_schema()[column]
        if kind == pl.String:
            weight = weight.str.strip_chars()
        elif not kind.is_numeric():
            raise ConfigError(f"--roles weight={column}: {table.paths[0]} holds {kind} there, expected numbers")
        number = weight.cast(pl.Float32, strict=False)
        is_weight = (number.is_finite() & (number >= 0)).fill_null(False)
        table.refuse(~is_weight, column, "a weight of 0 or more; correct or drop the row")
        return number
