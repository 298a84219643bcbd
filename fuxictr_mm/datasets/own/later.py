"""A log that continues a prepared one: ``fuxictr-mm prepare log --like``.

Rows later than the newest labelled row of the earlier folder are written, as ``test``, with or without a label.
Options, columns, vocabularies and scales are those of the folder, and histories begin with those of its users. So rows
are those that both logs together would have given; earlier rows, which a source may hold again, are left out.
``--all_rows`` writes them as well, each with the clicks of the folder before it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fuxictr_mm.datasets.log import HASH, Log
from fuxictr_mm.datasets.own.base import Base
from fuxictr_mm.datasets.own.columns import LogColumn, split_lists
from fuxictr_mm.datasets.own.events import text_of
from fuxictr_mm.datasets.own.instants import as_instants
from fuxictr_mm.datasets.own.options import LogOptions, Value, parse_positives
from fuxictr_mm.datasets.own.positives import Positives
from fuxictr_mm.datasets.own.source import LogSource, find_files
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.datasets.reader import Embeddings
from fuxictr_mm.encoding.text_files import CSV, form_of
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError

logger = logging.getLogger(__name__)

#: Options that a later log may have of its own: the names of its files, their encoding, and
#: the order of their dates.
FILES = ("interactions", "items", "users", "embeddings", "encoding", "positives", "date_order")

#: Rows with values that the earlier log does not have are warned of from this fraction on.
MANY_UNKNOWN = 0.5


class LaterSource(LogSource):
    """The tables of a later log, read with the columns and types of the earlier one.

    ``asked`` are the options of the earlier log, with the files of this one; those that are not ``given`` may be
    missing. ``all_rows`` keeps rows that are not later.
    """

    def __init__(
        self,
        asked: LogOptions,
        source: Path,
        scratch: Path,
        base: Base,
        given: Mapping[str, Any],
        all_rows: bool = False,
    ) -> None:
        self.base, self._given, self._all_rows = base, given, all_rows
        super().__init__(asked, source, scratch)
        if self.written("users") and self.users is None:
            columns = ", ".join(column.source for column in self.written("users"))
            raise MissingFileError(
                f"{source}: no file of users, but {base.folder} has the columns {columns} of users; add the file"
            )
        for table in self.tables:
            for column in self.written(table.option):
                table.check(column.source, f"--like {base.folder}")

    def _table(self, option: str, pattern: str | None, ids: dict[str, str]) -> Table | None:
        try:
            table = super()._table(option, pattern, ids)
        except MissingFileError:
            if option == "interactions" or option in self._given:
                raise
            return None
        if table is None:
            return None
        # A day without missing values may hold 12.0 where the earlier log had 12, or the reverse.
        columns = self.base.columns.get(option, [])
        codes = [column for column in columns if column.kind == "categorical"]
        as_integers = {column.source: not self.base.has_floats(column.name) for column in codes}
        types = {column.source: column.kind for column in columns if column.kind != "group"}
        numbers = [column for column in columns if column.kind == "numeric"]
        numbers += self.base.numeric_labels.values() if option == "interactions" else []
        forms = {column.source: column.form for column in numbers}
        return replace(table, types={**table.types, **types}, as_integers=as_integers, known_forms=forms)

    def _header_of(self, table: str, paths: Sequence[Path]) -> Sequence[str]:
        """Return the names of the earlier log, unless the files have names of their own, as those of Parquet do."""
        return super()._header_of(table, paths) if any(form_of(path) in CSV for path in paths) else ()

    def _find_values(self) -> dict[str, Value]:
        named = self.base.names.items()
        found = {name: value for word, name in named if word != name and (value := Value.of(word)) is not None}
        return {name: value for name, value in found.items() if value.column in self.log.schema}

    @property
    def _names(self) -> dict[str, str]:
        """The names of labels, also of those whose column the log does not have."""
        return self.base.names

    def _check_value(self, value: Value, option: str) -> None:
        """Take a value that no row has: a day may be without purchases."""

    def _find_labels(self) -> list[str]:
        """Return the labels that the log has; it may have none."""
        is_there = {*self.log.schema, *self.values, *self.positives}
        return [name for name in self.base.notes.labels if name in is_there]

    def _find_positives(self, label: str) -> Positives | None:
        """Return the file of positive rows of a label; there may be none, or the log may have the label."""
        file = self.asked.positives[label].partition(":")[0]
        if label not in self._given.get("positives", {}):
            try:
                find_files(self.source, "positives", file)
            except MissingFileError:
                return None
        return super()._find_positives(label)

    def _check_flags(self, label: str, flags: np.ndarray) -> None:
        """Take a label that is the same in all rows: nothing is learned of it."""

    def _find_numeric(self) -> list[str]:
        return list(self.base.numeric_labels)

    def _find_history_label(self, labels: Sequence[str]) -> str | None:
        return super()._find_history_label(self.base.notes.labels)

    @property
    def is_labelled(self) -> pl.Expr:
        """Whether a row has a label, or is a click of a log of only clicks."""
        if self.events is not None:
            return self.events.is_impression(pl.col(":kind"))
        if not self.base.notes.labels:
            return pl.lit(True)
        return pl.any_horizontal(pl.col(name).is_not_null() for name in self.labels) if self.labels else pl.lit(False)

    @property
    def is_positive(self) -> pl.Expr:
        """Whether a row enters histories; the earlier log may hold those that are not later."""
        is_later = pl.col(":time") > self.since
        if self.history_label is None:
            return self.is_labelled & is_later
        if self.history_label not in self.labels:
            return pl.lit(False)
        if self.events is not None and self.history_label in self.events.labels:
            return (pl.col(":kind") == self.events.labels[self.history_label]) & is_later
        return (pl.col(self.history_label) == 1).fill_null(False) & is_later

    @cached_property
    def columns(self) -> dict[str, tuple[list[LogColumn], dict[str, str]]]:
        """Columns of the earlier log; others are not read."""
        return {option: (columns, {}) for option, columns in self.base.columns.items()}

    def _check_both(self, column: str, number: pl.Expr) -> None:
        """Take a label that is the same in all rows: nothing is learned of it."""

    def _type_of_ids(self, role: str, column: str) -> pl.DataType:
        return self.base.types_of_ids[role]

    def ids(self, table: Table, role: str) -> pl.Expr:
        """Return the ids of users or of the target of a table, of the type that they have in the earlier log."""
        kind = self._type_of_ids(role, "")
        if kind != pl.String:
            column = self.asked.user if role == "user" else self.asked.item
            wrong = pl.col(column).is_not_null() & pl.col(column).cast(kind, strict=False).is_null()
            table.refuse(wrong, column, f"an integer, as in {self.base.folder}")
        return super().ids(table, role)

    @property
    def since(self) -> float:
        """The time after which rows are new."""
        newest, unit = self.base.notes.newest, self.base.notes.unit
        if unit == self.time_unit:
            return newest
        if "number" in (unit, self.time_unit):
            words = {True: "numbers", False: "dates with times"}
            raise DataError(
                f"{self.log.paths[0]}: {self.asked.time} holds {words[unit != 'number']}, expected "
                f"{words[unit == 'number']}, as in {self.base.folder}"
            )
        return newest * 1000 if unit == "us" else newest // 1000

    def _check_numbers(self, table: Table) -> None:
        """Refuse a column of numbers that holds something else in this log."""
        kinds = table.frame.collect_schema()
        for column in self.written(table.option):
            kind = kinds[column.source]
            if column.kind == "numeric" and not (kind.is_numeric() or kind == pl.Null):
                of = f" with the unit {column.form.unit!r}" if column.form.unit else ""
                raise DataError(
                    f"{table.paths[0]}: {column.source} holds {kind}, expected numbers{of}, as in {self.base.folder}"
                )
            unit = column.form.unit
            if column.kind == "numeric" and unit and column.source not in table.forms and kind != pl.Null:
                without = pl.col(column.source).is_not_null()
                table.refuse(without, column.source, f"numbers with the unit {unit!r}, as in {self.base.folder}")

    def _events(self) -> pl.LazyFrame:
        self._check_numbers(self.log)
        return super()._events().filter(self._all_rows | (pl.col(":time") > self.since))

    def _check_events(self, path: Path) -> None:
        log, events = self.log.frame, self.events
        read = log if events is None else log.filter(events.is_read(text_of(events.column)))
        rows, kept = (frame.select(pl.len()).collect().item() for frame in (read, pl.scan_parquet(path)))
        time = pl.select(as_instants(pl.lit(self.since), self.time_unit)).item()
        newest = f"the newest row of {self.base.folder} ({self.asked.time} {time})"
        if not kept:
            raise DataError(f"{self.log.paths[0]}: none of {rows} rows is later than {newest}{self._remedy}")
        if kept < rows:
            remedy = self._remedy and f"{self._remedy}, such as those of a test file of random rows"
            logger.warning(
                f"{self.log.paths[0]}: {rows - kept} of {rows} rows are not later than {newest}; they are dropped"
                f"{self._of_the_same_time()}{remedy}"
            )
        self._check_users(path)

    #: What to do with rows that are not later.
    _remedy = "; --all_rows keeps them"

    def _of_the_same_time(self) -> str:
        """Return the number of rows at the newest time, where there are more of them than in the earlier log.

        Which of these rows are new cannot be known: one user may have two equal ones.
        """
        same = super()._events().filter(pl.col(":time") == self.since).select(pl.len()).collect().item()
        if same <= (before := self.base.rows_at(self.base.notes.newest)):
            return ""
        return (
            f"; {same} of them have exactly this time, of which the earlier log has {before} rows: if times are days, "
            "end each log with a whole day, or give times with the time of day"
        )

    def rows_by_id(self, table: Table, role: str) -> pl.DataFrame:
        """Return a table of items or users, a row each."""
        self._check_numbers(table)
        return super().rows_by_id(table, role)


class LaterLog(Log):
    """A log that continues a prepared one."""

    def configure(self, given: Mapping[str, Any]) -> None:
        """Take the folder of the earlier log and the names of files."""
        self.base = Base(Path(given["like"]))
        for name in given:
            if name not in ("like", "all_rows", *FILES):
                raise ConfigError(f"--{name}: with --like it is that of {self.base.folder}; leave it out")
        self._all_rows = bool(given.get("all_rows"))
        if self._all_rows and (first := self.base.notes.trained or self.base.notes.extends) is not None:
            raise ConfigError(
                f"--all_rows: {self.base.folder} is itself of a later log and has not all clicks; give --like {first}"
            )
        if self._all_rows and self.base.asked.impressions:
            raise ConfigError(f"--all_rows: {self.base.folder} is of a log of events (--impressions); leave it out")
        files = {name: given[name] for name in FILES if name in given}
        if "positives" in files:
            files["positives"] = self._positives_of(parse_positives(files["positives"]))
        if "embeddings" in files:
            files["embeddings"] = tuple(files["embeddings"])
        self._given = files
        positives = {**self.base.asked.positives, **files.get("positives", {})}
        self.asked = replace(self.base.asked, negatives=0, weight=None, **{**files, "positives": positives})
        self.max_len = self.base.max_len
        self.known_items, self.earlier_items = self.base.known_items, self.base.earlier_items
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in files.items()}
        self.options = {"like": self.base.digest, **listed, **({"all_rows": True} if self._all_rows else {})}
        self._set_labels()

    def _positives_of(self, files: dict[str, str]) -> dict[str, str]:
        """Return files of positive rows, which are of labels that have such files in the earlier log."""
        known = self.base.asked.positives
        other = next((label for label in files if label not in known), None)
        if other is not None:
            raise ConfigError(
                f"--positives {other}={files[other]}: {self.base.folder} has no label of a file with this name (it "
                f"has: {', '.join(known) or 'none'}); leave it out"
            )
        return files

    def _set_labels(self) -> None:
        numbers = self.base.numeric_labels
        names = {name: column.name for name, column in numbers.items()}
        labels = [names.get(name, name) for name in self.base.notes.labels] or ["label"]
        self.label, self.other_labels = labels[0], tuple(labels[1:])
        self.numeric_labels = tuple(names.values())

    @cached_property
    def _source(self) -> LaterSource:
        return LaterSource(self.asked, self.source, self.scratch, self.base, self._given, self._all_rows)

    @property
    def _vector_files(self) -> list[tuple[Path, Path | None]]:
        try:
            return super()._vector_files
        except MissingFileError:
            if "embeddings" in self._given:
                raise
            return []

    # Events

    @cached_property
    def _size(self) -> int:
        """New rows and users of the earlier log, by which users are divided."""
        before = self.base.num_rows if self._all_rows else self.base.num_users
        return self._scan().select(pl.len()).collect().item() + before

    def _unsorted(self, number: int) -> pl.DataFrame:
        """Return the events of a file of users after their newest clicks in the earlier log."""
        new = super()._unsorted(number)
        kind, is_here = new.schema[":time"], HASH.mod(len(self.chunks())) == number
        if self._all_rows:
            before = self.base.events(is_here, self._source.time_unit).with_columns(pl.col(":time").cast(kind))
        else:
            time = pl.lit(self._source.since).cast(kind).alias(":time")
            before = self.base.clicks(is_here).with_columns(time)
        before = before.with_columns(pl.lit(True).alias(":positive"))
        return pl.concat([before, new], how="diagonal").select(new.columns)

    def _splits_of(self, frame: pl.DataFrame) -> pl.DataFrame:
        new = frame.filter(pl.col(":source_row").is_not_null())
        if self._source.events is not None:
            new = new.filter(self._source.events.is_impression(pl.col(":kind")))
        return new.select(":row", pl.lit("test").alias(":split"))

    # Numbers, of the earlier log

    @property
    def _scaled_labels(self) -> list[LogColumn]:
        return list(self.base.numeric_labels.values())

    def numbering(self, name: str) -> pl.Series:
        """Return the values of a column in the order of the numbers of the earlier log."""
        return self.base.vocabulary(name)

    @property
    def _unknown_columns(self) -> dict[str, float]:
        return {}  # the earlier log has left them out

    @cached_property
    def _context_columns(self) -> tuple[list[LogColumn], list[LogColumn]]:
        log, users = (self._source.written(option) for option in ("interactions", "users"))
        self._warn_of_unknown(log)
        return log, users

    def values(self, name: str) -> pl.Series:
        """Return the users of the log; all else is numbered."""
        users = self._scan().select(":user").drop_nulls().unique(maintain_order=True)
        return users.collect(engine="streaming")[":user"]

    def _warn_of_unknown(self, columns: list[LogColumn]) -> None:
        for column in columns:
            if column.kind != "categorical":
                continue
            counts = self._scan().select(column.values().alias("value")).drop_nulls().collect(engine="streaming")
            unknown = counts.filter(~pl.col("value").is_in(self.numbering(column.name).cast(pl.String).implode()))
            if len(unknown) > MANY_UNKNOWN * len(counts):
                logger.warning(
                    f"{self._source.log.paths[0]}: {len(unknown)} of {len(counts)} rows hold a {column.source} that "
                    f"{self.base.folder} does not have, such as {unknown['value'][0]!r}; it becomes 0"
                )

    # Items

    @cached_property
    def _written_items(self) -> tuple[list[LogColumn], pl.DataFrame]:
        """Return the columns of items, and the items: earlier ones, new ones of their table, new ones of the log."""
        columns, table, before = self._source.written("items"), self._source.items, self.base.items
        seen = self._seen_items.to_frame("item_id")
        parts = [before]
        if table is not None:
            rows = split_lists(self._source.rows_by_id(table, "target"), columns)
            rows = rows.select(pl.col(self.asked.item).alias("item_id"), *(column.values() for column in columns))
            parts = [rows, before.join(rows, on="item_id", how="anti")]  # features of the new table count
        features = pl.concat(parts)
        missing = seen.join(features, on="item_id", how="anti")
        if len(missing) and columns:
            logger.warning(
                f"{self._source.log.paths[0]}: {len(missing)} new items are in no item file, such as "
                f"{missing['item_id'][0]!r}; they are written without features"
            )
        ids = pl.concat([before.select("item_id"), *(part.select("item_id") for part in parts), missing])
        order = ids.unique(maintain_order=True)
        return columns, order.join(features, on="item_id", how="left", maintain_order="left")

    def embeddings(self) -> dict[str, Embeddings]:
        """Return the embeddings of the new files, and of the earlier log for items that these do not have."""
        found = super().embeddings()
        for name in found:
            if name not in self.base.notes.embeddings:
                raise ConfigError(
                    f"--embeddings: {self.base.folder} has no '{name}' (it has: "
                    f"{', '.join(self.base.notes.embeddings) or 'none'}); leave the file out"
                )

        def both(name: str) -> Iterator[tuple[pl.Series, np.ndarray]]:
            new = found[name].chunks() if name in found else iter(())
            return chain(new, self.base.embeddings(name))

        return {name: Embeddings(partial(both, name)) for name in self.base.notes.embeddings}

    # What is written beside the rows

    def notes(self) -> dict[str, Any]:
        """Return what a log after this one is prepared with."""
        newest = self._scan().filter(self._source.is_labelled).select(pl.col(":time").max()).collect().item()
        notes = replace(
            self.base.notes,
            newest=max(self._source.since, self._source.since if newest is None else newest),
            unit=self._source.time_unit,
            trained=str(self.base.trained),
        )
        return {"log": asdict(notes)}
