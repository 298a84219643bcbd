"""Your own log: files of interactions, items and users, with columns and ids of any name.

``--interactions`` has a row per event: a user, an item, a time, one or several labels, and columns of context.
``--items`` and ``--users`` have a row each per item and user. The files are CSV (separated by commas, tabs, semicolons
or bars), Parquet or JSON lines. A history holds the items of the user's positive events, by one of the labels, at
strictly earlier times. The newest rows are test, those before them valid (``own.splits``). Columns become features by
what they hold (``own.columns``); numbers, of labels too, are standardised by training rows, and by the items and users
that these show.
Labels may be values of a column, and of a log of events those that follow a row (``own.events``).
Rows without any label are not written. Items of the log that ``--items`` does not have are written without features. A
log of only positive events gets negatives: items that the user has no event of in splits up to that of the row, drawn
as often as they occur in its split, or other items by ``--negatives_from`` (``negatives``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fuxictr_mm.datasets.histories import histories_before
from fuxictr_mm.datasets.own.amounts import Form
from fuxictr_mm.datasets.own.base import Notes
from fuxictr_mm.datasets.own.buckets import Buckets
from fuxictr_mm.datasets.own.catalog import continued_items, find_missing, item_rows, seen_items
from fuxictr_mm.datasets.own.columns import LogColumn, free_name, moments_of
from fuxictr_mm.datasets.own.dates import order_of
from fuxictr_mm.datasets.own.files import WRITTEN, find_files
from fuxictr_mm.datasets.own.instants import as_instants
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.roles import with_names
from fuxictr_mm.datasets.own.sampled import Sampler
from fuxictr_mm.datasets.own.source import Continued, LogSource
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.datasets.own.training import Training, read_training, why_unknown
from fuxictr_mm.datasets.own.vectors import read_array, read_vectors, vector_columns
from fuxictr_mm.datasets.reader import Embeddings, Kind, Reader, Rows
from fuxictr_mm.datasets.summary import Summary
from fuxictr_mm.encoding.text_files import Encoding
from fuxictr_mm_serving.prepared import ITEM_FILE, SOURCE_ROW, SOURCE_TIME, SOURCE_USER, SOURCE_WEIGHT

#: Rows whose histories are in memory at a time: one user may have most of a file.
PART_ROWS = 20_000

SEED = 2025


class Log(Reader):
    """Your own log: files of interactions, items and users, with columns and ids of any name."""

    asked = LogOptions()
    evaluates_known_users = True
    row_sources: tuple[str, ...] = (SOURCE_USER, SOURCE_TIME, SOURCE_ROW)
    #: The earlier log that this one continues; of ``fuxictr_mm.datasets.own.later``.
    continued: Continued | None = None
    #: The table of interactions, where its columns were read to find those with a role.
    _opened: Table | None = None

    def configure(self, given: Mapping[str, Any]) -> None:
        """Take the options of ``prepare log``."""
        self.asked = self._with_names(LogOptions.of(given), given.get("roles") or ())
        self.options = self.asked.changed()
        self._set_weight()
        self._set_labels()

    def _with_names(self, asked: LogOptions, roles: Sequence[str]) -> LogOptions:
        """Return the options with the columns that have a role by their names."""
        header, encoding = asked.header.get("interactions", ()), Encoding(asked.encoding, "--encoding")
        paths = find_files(self.source, "interactions", asked.interactions or "interactions.*")
        self._opened = Table(paths, self.scratch, "interactions", encoding=encoding, header=header)
        return with_names(asked, [word.partition("=")[0] for word in roles], self._opened)

    def _set_weight(self) -> None:
        if self.asked.weight is not None:
            self.sample_weight, self.row_sources = SOURCE_WEIGHT, (*self.row_sources, SOURCE_WEIGHT)

    def _set_labels(self) -> None:
        labels = self._source.labels
        self.label, *others = map(labels.written, labels.known)
        self.other_labels = tuple(others)
        self.numeric_labels = tuple(map(labels.written, labels.numeric))

    def written_label(self, name: str) -> str:
        """Return the name that a label is written with."""
        return self._source.labels.written(name)

    @cached_property
    def _source(self) -> LogSource:
        return LogSource(self.asked, self.source, self.scratch, self.continued, self._opened)

    def files(self) -> list[Path]:
        """Return the files of interactions, items, users and embeddings."""
        self._set_labels()
        of_vectors = [path for pair in self._source.files.vectors() for path in pair if path is not None]
        return list(dict.fromkeys([*self._source.paths, *of_vectors]))

    @property
    def context(self) -> Mapping[str, Kind]:
        """Columns of the log and of users with their kinds."""
        return {c.name: c.kind for c in [*self._log_columns, *self._source.written("users")]}

    @property
    def _unknown_columns(self) -> dict[str, float]:
        """Columns that are left out, with the fraction of the later rows whose value training shows."""
        return self._training.known if self.continued is None else {}  # which the earlier log has left out

    @property
    def _log_columns(self) -> list[LogColumn]:
        unknown = self._unknown_columns
        return [column for column in self._source.written("interactions") if column.source not in unknown]

    @property
    def item_columns(self) -> Mapping[str, Kind]:
        """Item columns with their kinds."""
        return {column.name: column.kind for column in self._source.written("items")}

    def _scan(self) -> pl.LazyFrame:
        return pl.scan_parquet(self._source.path)

    @cached_property
    def _buckets(self) -> Buckets:
        return Buckets(self._source)

    def chunks(self) -> list[str]:
        """Return the files of users that the log is divided into."""
        return [f"users {number}" for number in range(len(self._buckets))]

    def newest_histories(self, chunk: str) -> pl.DataFrame:
        """Return what the users of a file have clicked last."""
        clicks = self._buckets.events(int(chunk.split()[1])).filter(":positive").drop_nulls(":user")
        clicks = clicks.sort(":time", maintain_order=True)
        newest = clicks.group_by(":user", maintain_order=True).agg(pl.col(":item").tail(self.max_len))
        return newest.rename({":user": SOURCE_USER, ":item": "item_seq"})

    # Columns, with their values and statistics in training

    @cached_property
    def _training(self) -> Training:
        return read_training(self._source, self._buckets, self.max_len)

    @cached_property
    def _user_rows(self) -> pl.DataFrame:
        """Return the table of users; it is empty if there is no file of users."""
        table = self._source.users
        if table is None:
            return pl.DataFrame()
        rows = self._source.ids.rows(table, "user")
        find_missing(table, self.asked.user, rows, self._users(), "users")
        return rows

    @cached_property
    def _trained_users(self) -> pl.DataFrame:
        known = self._training.values[":user"]
        return self._user_rows.filter(pl.col(self.asked.user).is_in(known.implode()))

    def _users(self) -> pl.Series:
        users = self._scan().select(":user").drop_nulls().unique(maintain_order=True)
        return users.collect(engine="streaming")[":user"]

    def values(self, name: str) -> pl.Series:
        """Return all users, or the values of training."""
        if name == "user_id":
            return self._users()
        column = next((column for column in self._source.written("users") if column.name == name), None)
        if column is None:
            return self._training.values[name]
        return self._trained_users.select(column.values().unique().sort()).to_series()

    @cached_property
    def _context_columns(self) -> tuple[list[LogColumn], list[LogColumn]]:
        """Return the columns of the log and of users, numbers with their statistics in training."""
        log, users = self._log_columns, self._source.written("users")
        if self.continued is not None:  # those of the earlier log
            return log, users
        moments = self._training.moments
        log = [c.scaled(moments[c.source]) if c.kind == "numeric" else c for c in log]
        return log, [c.scaled(moments_of(self._trained_users[c.source])) if c.kind == "numeric" else c for c in users]

    @property
    def _scaled_labels(self) -> list[LogColumn]:
        """Return the labels that are numbers, with their statistics in training."""
        if self.continued is not None:
            return list(self.continued.base.numeric_labels.values())
        moments, forms = self._training.moments, self._source.log.forms
        names = {name: self._source.labels.written(name) for name in self._source.labels.numeric}
        columns = (LogColumn(name, written, "numeric", form=forms.get(name, Form())) for name, written in names.items())
        return [column.scaled(moments[column.source]) for column in columns]

    # Rows

    def rows(self, chunk: str) -> Iterator[Rows]:
        """Return the labelled rows of a file of users, with what each had clicked before, and their negatives."""
        number = int(chunk.split()[1])
        events = self._buckets.sorted(number)
        which = np.flatnonzero(events[":split"].is_not_null().to_numpy())
        columns = self._written_columns(events[which])
        if len(columns) and self._sampler is not None:  # a bucket may have no users
            days_before = [] if self.continued is None else [self.continued.base.depth]
            generator = np.random.default_rng([SEED, number, *days_before])
            columns, which = self._sampler.add(columns, which, events, self.max_len, generator)
        users, times = events[":code"].to_numpy(), events[":time"].to_numpy()
        items, positive = events[":item"].to_arrow(), events[":positive"].to_numpy()
        for at in range(0, len(columns), PART_ROWS):
            rows = which[at : at + PART_ROWS]
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            if self.asked.history is None:
                histories = histories_before(users, times, items, positive, self.max_len, part)
            else:
                histories = events[":history"][part].to_arrow()
            yield Rows(columns[at : at + PART_ROWS], histories, rows - rows[0])

    def _written_columns(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the columns of rows of the log as they are written."""
        of_log, of_users = self._context_columns
        names = {"split": "split", "user": "user_id", "item": "item_id", "source_row": SOURCE_ROW}
        named = [pl.col(f":{old}").alias(new) for old, new in names.items()]
        named.append(pl.col(":user").alias(SOURCE_USER))
        named.append(as_instants(pl.col(":time"), self._source.time_unit).alias(SOURCE_TIME))
        named += [] if self.asked.weight is None else [pl.col(":weight").alias(SOURCE_WEIGHT)]
        scaled = {column.source: column.values() for column in self._scaled_labels}
        labels = [scaled.get(name, pl.col(name)) for name in self._source.labels.found]
        columns = rows.select(*named, *labels, *(column.values() for column in of_log))
        if not of_users:
            return columns
        table = self._user_rows.select(pl.col(self.asked.user).alias("user_id"), *(c.values() for c in of_users))
        return columns.join(table, on="user_id", how="left", maintain_order="left")

    @cached_property
    def _sampler(self) -> Sampler | None:
        """Of negatives, where they are sampled."""
        if not self.asked.negatives:
            return None
        return Sampler(self.asked, self._source.log.paths[0], self._buckets)

    # Items

    @cached_property
    def _written_items(self) -> tuple[list[LogColumn], pl.DataFrame]:
        """Return the columns of items, with their statistics, and the items."""
        source, seen = self._source, seen_items(self._source)
        table, item, columns = source.items, self.asked.item, source.written("items")
        if source.base is not None:
            return columns, continued_items(source, source.base.items, seen)
        if table is None:
            return [], pl.DataFrame({"item_id": seen})
        rows = item_rows(source, table)
        missing = find_missing(table, item, rows, seen, "items")
        trained = rows.filter(pl.col(item).is_in(self._training.values[":item"].implode()))
        columns = [c.scaled(moments_of(trained[c.source])) if c.kind == "numeric" else c for c in columns]
        written = rows.select(pl.col(item).alias("item_id"), *(column.values() for column in columns))
        return columns, pl.concat([written, pl.DataFrame({"item_id": missing})], how="diagonal")

    def items(self) -> pl.DataFrame:
        """Return the items of their table in its order, then those that are only in the log."""
        return self._written_items[1]

    def embeddings(self) -> dict[str, Embeddings]:
        """Return the columns of lists of numbers of the files of embeddings."""
        found: dict[str, Embeddings] = {}
        item, ids = self.asked.item, self.items().schema["item_id"]
        for path, of_rows in self._source.files.vectors():
            taken = {*WRITTEN, Path(ITEM_FILE).stem, self.label, *self.other_labels, *self.context}
            taken |= {*self._source.labels.found, *self.item_columns, *found}
            if of_rows is not None:
                column = free_name(path.stem.replace(".", "_"), taken, "item_")
                read = partial(read_array, path, of_rows, item, self.scratch, ids, self._source.files.encoding)
                found[column] = Embeddings(read)
                continue
            for column in vector_columns(path, item, taken):
                found[column] = Embeddings(lambda path=path, column=column: read_vectors(path, item, column, ids))  # type: ignore[misc]
        return found

    # What is written beside the rows

    def facts(self) -> dict[str, Any]:
        """Return how the columns of each file were used."""
        log, users = self._context_columns
        written = {"interactions": log, "users": users, "items": self._written_items[0]}
        facts: dict[str, Any] = {
            option: {"written": {c.name: c.facts() for c in written[option]}, "left_out": dict(left_out)}
            for option, (_, left_out) in self._source.columns.items()
        }
        facts["interactions"]["left_out"] |= {n: why_unknown(known) for n, known in self._unknown_columns.items()}
        if self._scaled_labels:
            facts["interactions"]["labels"] = {column.name: column.facts() for column in self._scaled_labels}
        return facts

    def notes(self) -> dict[str, Any]:
        """Return what a later log is prepared with."""
        labels = list(self._source.labels.found)
        newest = self._scan().filter(self._source.is_labelled).select(pl.col(":time").max()).collect().item()
        # Of files of positives, the dates are of the same order.
        order = order_of(self._source.log, self.asked.time)
        order = self.asked.date_order or (None if order == "ymd" or order == "word" else order)
        options = replace(self.asked, date_order=order).changed()
        notes = Notes(options, labels, newest, self._source.time_unit, list(self.embeddings()))
        return {"log": notes.as_json()}

    def advice(self, summary: Summary) -> list[str]:
        """Return the units of labels, and what follows from how often users recur and how many targets are cold."""
        units = [
            f"{c.name} is ({c.source} - {c.mean:g}) / {c.std:g}: a prediction p of it is p * {c.std:g} + {c.mean:g}"
            for c in self._scaled_labels
        ]
        return units + super().advice(summary)
