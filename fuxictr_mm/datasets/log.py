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

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.data.numbers import Moments
from fuxictr_mm.datasets.histories import histories_before, history_ranges, partition_by_user
from fuxictr_mm.datasets.negatives import sample_negatives, sample_repeats
from fuxictr_mm.datasets.own.amounts import Form
from fuxictr_mm.datasets.own.base import Notes
from fuxictr_mm.datasets.own.columns import LogColumn, free_name, moments_of, split_lists
from fuxictr_mm.datasets.own.dates import order_of
from fuxictr_mm.datasets.own.instants import as_instants
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.roles import with_names
from fuxictr_mm.datasets.own.source import WRITTEN, LogSource, find_files
from fuxictr_mm.datasets.own.splits import bounds_of_all, bounds_of_users, split_of
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.datasets.own.vectors import read_array, read_vectors, vector_columns
from fuxictr_mm.datasets.own.warnings import (
    warn_of_duplicates,
    warn_of_events,
    warn_of_leaks,
    warn_of_repeats,
    warn_of_short_histories,
    warn_of_weights,
)
from fuxictr_mm.datasets.reader import SPLITS, Embeddings, Kind, Reader, Rows
from fuxictr_mm.datasets.writer import Summary
from fuxictr_mm.encoding.text_files import Encoding
from fuxictr_mm.errors import DataError
from fuxictr_mm_serving.prepared import ITEM_FILE, SOURCE_ROW, SOURCE_TIME, SOURCE_USER, SOURCE_WEIGHT

logger = logging.getLogger(__name__)

#: Rows of a file of users on average.
CHUNK_ROWS = 200_000

#: Rows of the log read at a time.
READ_ROWS = 100_000

#: A category is left out where training shows the values of a smaller fraction of the rows of valid and test: it names
#: an impression, a session or a day. Fewer rows than these tell nothing.
KNOWN, KNOWN_ROWS = 0.1, 20

#: Rows whose histories are in memory at a time: one user may have most of a file.
PART_ROWS = 20_000

SEED = 2025

#: By which the users are dealt to files.
HASH = (pl.col(":user").hash(0) // 2).cast(pl.Int64).alias(":hash")

#: Of anonymous rows that of the row, so that they are spread over all files.
HASH_OF_ROW = (
    pl.when(pl.col(":user").is_null())
    .then(pl.col(":source_row").hash(0) // 2)
    .otherwise(pl.col(":user").hash(0) // 2)
    .cast(pl.Int64)
    .alias(":hash")
)


@dataclass(frozen=True)
class Training:
    """What the training rows hold: distinct values by column, and moments of the numbers of the log.

    ``known`` is the fraction of the later rows whose value of a category training shows, where few are.
    """

    values: dict[str, pl.Series]
    moments: dict[str, Moments]
    known: dict[str, float]


class Log(Reader):
    """Your own log: files of interactions, items and users, with columns and ids of any name."""

    asked = LogOptions()
    evaluates_known_users = True
    row_sources: tuple[str, ...] = (SOURCE_USER, SOURCE_TIME, SOURCE_ROW)

    def configure(self, given: Mapping[str, Any]) -> None:
        """Take the options of ``prepare log``."""
        self.asked = self._with_names(LogOptions.of(given), given.get("roles") or ())
        self.options = self.asked.changed()
        if self.asked.weight is not None:
            self.sample_weight, self.row_sources = SOURCE_WEIGHT, (*self.row_sources, SOURCE_WEIGHT)
        self._set_labels()

    def _with_names(self, asked: LogOptions, roles: Sequence[str]) -> LogOptions:
        """Return the options with the columns that have a role by their names."""
        header, encoding = asked.header.get("interactions", ()), Encoding(asked.encoding, "--encoding")
        paths = find_files(self.source, "interactions", asked.interactions or "interactions.*")
        table = Table(paths, self.scratch, "interactions", encoding=encoding, header=header)
        return with_names(asked, [word.partition("=")[0] for word in roles], table)

    def _set_labels(self) -> None:
        source = self._source
        self.label, *others = map(source.written_label, source.labels)
        self.other_labels = tuple(others)
        self.numeric_labels = tuple(map(source.written_label, source.numeric_labels))

    def written_label(self, name: str) -> str:
        """Return the name that a label is written with."""
        return self._source.written_label(name)

    @cached_property
    def _source(self) -> LogSource:
        return LogSource(self.asked, self.source, self.scratch)

    def files(self) -> list[Path]:
        """Return the files of interactions, items, users and embeddings."""
        self._set_labels()
        of_vectors = [path for pair in self._vector_files for path in pair if path is not None]
        tables = [*self._source.tables, *(positives.table for positives in self._source.positives.values())]
        return list(dict.fromkeys([*(path for table in tables for path in table.paths), *of_vectors]))

    @property
    def _vector_files(self) -> list[tuple[Path, Path | None]]:
        """The files of embeddings, each of an array with the file of the ids of its rows (``text.npy:ids.csv``)."""
        find, pairs = partial(find_files, self.source, "embeddings"), list[tuple[Path, Path | None]]()
        for name in self.asked.embeddings:
            array, _, ids = name.partition(".npy:")
            pairs += [(path, find(ids)[0] if ids else None) for path in find(f"{array}.npy" if ids else name)]
        return pairs

    @property
    def context(self) -> Mapping[str, Kind]:
        """Columns of the log and of users with their kinds."""
        return {c.name: c.kind for c in [*self._log_columns, *self._source.written("users")]}

    @property
    def _unknown_columns(self) -> dict[str, float]:
        """Columns that are left out, with the fraction of the later rows whose value training shows."""
        return self._training.known

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

    # Events by user

    def chunks(self) -> list[str]:
        """Return the files of users that the log is divided into."""
        return [f"users {number}" for number in range(max(1, round(self._size / CHUNK_ROWS)))]

    @cached_property
    def _size(self) -> int:
        """Rows, by which users are divided."""
        return self._scan().select(pl.len()).collect().item()

    @cached_property
    def _buckets(self) -> list[Path]:
        return partition_by_user(self._events(), ":hash", self.scratch / "users", len(self.chunks()))

    def _events(self) -> Iterator[pl.DataFrame]:
        for batch in pq.ParquetFile(self._source.path).iter_batches(READ_ROWS):
            yield pl.DataFrame(batch).with_columns(HASH_OF_ROW)

    def _unsorted(self, number: int) -> pl.DataFrame:
        """Return the events of a file of users, and which enter later histories."""
        return pl.read_parquet(self._buckets[number]).with_columns(self._source.is_positive.alias(":positive"))

    def _bucket(self, number: int) -> pl.DataFrame:
        """Return the events of a chunk of users, sorted by user and time; events without a label have no split."""
        frame = self._unsorted(number).with_columns(_code_of_user(":user", ":source_row").alias(":code"))
        frame = frame.sort(":code", ":time", maintain_order=True).with_row_index(":row")
        return frame.join(self._splits_of(frame), on=":row", how="left", maintain_order="left")

    def _splits_of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return ``:row`` and ``:split`` of the rows that are written, of those of a file of users."""
        if self.asked.split_by == "time":
            first, second = (pl.lit(bound) for bound in self._bounds)
        else:
            first, second = bounds_of_users(":code", ":time", self.asked.split)
        labelled = frame.filter(self._source.is_labelled)
        return labelled.select(":row", split_of(pl.col(":time"), first, second).alias(":split"))

    def newest_histories(self, chunk: str) -> pl.DataFrame:
        """Return what the users of a file have clicked last."""
        clicks = self._unsorted(int(chunk.split()[1])).filter(":positive").drop_nulls(":user")
        clicks = clicks.sort(":time", maintain_order=True)
        newest = clicks.group_by(":user", maintain_order=True).agg(pl.col(":item").tail(self.max_len))
        return newest.rename({":user": SOURCE_USER, ":item": "item_seq"})

    @cached_property
    def _bounds(self) -> tuple[float, float]:
        """Return the first time of valid and that of test, of a split of all rows."""
        times = self._scan().filter(self._source.is_labelled).select(":time").collect(engine="streaming")
        bounds = bounds_of_all(times[":time"].to_numpy(), self.asked.split)
        if bounds is None:
            raise DataError(
                f"{self._source.log.paths[0]}: {self.asked.time} has too few distinct values in {len(times)} rows for "
                "train, valid and test; change --split, or give --split_by user"
            )
        return bounds

    # Training

    @cached_property
    def _training(self) -> Training:
        columns = self._source.written("interactions")
        numbers = [column.source for column in columns if column.kind == "numeric"] + self._source.numeric_labels
        moments = {name: Moments() for name in numbers}
        kept: dict[str, list[pl.Series]] = {}
        later: dict[str, list[pl.DataFrame]] = {}
        for number in range(len(self.chunks())):
            rows = self._bucket(number)
            train = rows.filter(pl.col(":split") == "train")
            for name in numbers:
                moments[name].add(moments_of(train[name]))
            categories = [column.values() for column in columns if column.kind == "categorical"]
            for series in rows.filter(pl.col(":split") != "train").select(categories):
                later.setdefault(series.name, []).append(series.drop_nulls().value_counts(name=":rows"))
            if number == 0:
                features = [column for column in columns if column.kind != "group"]
                warn_of_leaks(self._source, train, features)
                warn_of_events(self._source, train)
                warn_of_weights(self._source, features)
                warn_of_repeats(self._source, train)
                warn_of_duplicates(self._source, train)
                warn_of_short_histories(self._source, rows, self.max_len)
            for series in train.select(":item", ":user", *categories):
                before = kept.get(series.name, [])
                kept[series.name] = [pl.concat([*before, series.unique()]).unique()]
        values = {name: parts[0].sort() for name, parts in kept.items()}
        return Training(values, moments, self._find_unknown(columns, later, values))

    def _find_unknown(
        self, columns: list[LogColumn], later: Mapping[str, list[pl.DataFrame]], values: Mapping[str, pl.Series]
    ) -> dict[str, float]:
        """Return the categories to leave out with the fraction of the later rows that training knows; warn of them."""
        found = {}
        for column in columns:
            if column.name not in later or column.source in self.asked.types:
                continue
            counts = pl.concat(later[column.name])
            is_known = counts[column.name].is_in(values[column.name].implode())
            total, known = counts[":rows"].sum(), counts.filter(is_known)[":rows"].sum()
            if total >= KNOWN_ROWS and known < KNOWN * total:
                found[column.source] = known / total
                logger.warning(
                    f"{self._source.log.paths[0]}: {column.source} is excluded, {_unknown(known / total)}; "
                    f"--roles group={column.source} makes it the group of gAUC, and "
                    f"--types {column.source}=categorical keeps it"
                )
        return found

    @cached_property
    def _user_rows(self) -> pl.DataFrame:
        """Return the table of users; it is empty if there is no file of users."""
        table = self._source.users
        if table is None:
            return pl.DataFrame()
        rows = self._source.rows_by_id(table, "user")
        self._find_missing(table, self.asked.user, rows, self.values("user_id"), "users")
        return rows

    def _find_missing(self, table: Table, column: str, rows: pl.DataFrame, seen: pl.Series, what: str) -> pl.Series:
        """Return the ids of the log that a table does not have; they are warned of."""
        missing = seen.filter(~seen.is_in(rows[column].implode()))
        if len(missing):
            count = f"{len(missing)} of {len(seen)} {what} of the log"
            found = f"{table.paths[0]}: {count} are missing, such as {missing[0]!r}"
            if len(missing) == len(seen):
                there = f", but it has {rows[column][0]!r}" if len(rows) else ", it has no rows"
                raise DataError(f"{found}{there}; {column} must hold the same ids in both")
            logger.warning(f"{found}; they are written without features")
        return missing

    @cached_property
    def _trained_users(self) -> pl.DataFrame:
        known = self._training.values[":user"]
        return self._user_rows.filter(pl.col(self.asked.user).is_in(known.implode()))

    def values(self, name: str) -> pl.Series:
        """Return all users, or the values of training."""
        if name == "user_id":
            users = self._scan().select(":user").drop_nulls().unique(maintain_order=True)
            return users.collect(engine="streaming")[":user"]
        column = next((column for column in self._source.written("users") if column.name == name), None)
        if column is None:
            return self._training.values[name]
        return self._trained_users.select(column.values().unique().sort()).to_series()

    @cached_property
    def _context_columns(self) -> tuple[list[LogColumn], list[LogColumn]]:
        """Return the columns of the log and of users, numbers with their statistics in training."""
        moments, users = self._training.moments, self._source.written("users")
        log = [c.scaled(moments[c.source]) if c.kind == "numeric" else c for c in self._log_columns]
        return log, [c.scaled(moments_of(self._trained_users[c.source])) if c.kind == "numeric" else c for c in users]

    @property
    def _scaled_labels(self) -> list[LogColumn]:
        """Return the labels that are numbers, with their statistics in training."""
        names, moments = self._source.numeric_labels, self._training.moments
        written, forms = self._source.written_label, self._source.log.forms
        columns = (LogColumn(name, written(name), "numeric", form=forms.get(name, Form())) for name in names)
        return [column.scaled(moments[column.source]) for column in columns]

    # Rows

    def rows(self, chunk: str) -> Iterator[Rows]:
        """Return the labelled rows of a file of users, with what each had clicked before, and their negatives."""
        number = int(chunk.split()[1])
        frame = self._bucket(number)
        positive = frame[":positive"].to_numpy()
        users, times = frame[":code"].to_numpy(), frame[":time"].to_numpy()
        items = frame[":item"].to_arrow()
        which = np.flatnonzero(frame[":split"].is_not_null().to_numpy())
        of_log, of_users = self._context_columns
        names = {"split": "split", "user": "user_id", "item": "item_id", "source_row": SOURCE_ROW}
        named = [pl.col(f":{old}").alias(new) for old, new in names.items()]
        named.append(pl.col(":user").alias(SOURCE_USER))
        named.append(as_instants(pl.col(":time"), self._source.time_unit).alias(SOURCE_TIME))
        named += [] if self.asked.weight is None else [pl.col(":weight").alias(SOURCE_WEIGHT)]
        scaled = {column.source: column.values() for column in self._scaled_labels}
        labels = [] if self.asked.negatives else [scaled.get(name, pl.col(name)) for name in self._source.labels]
        columns = frame[which].select(*named, *labels, *(column.values() for column in of_log))
        if of_users:
            table = self._user_rows.select(pl.col(self.asked.user).alias("user_id"), *(c.values() for c in of_users))
            columns = columns.join(table, on="user_id", how="left", maintain_order="left")
        if self.asked.negatives:
            columns, which = self._with_negatives(columns, which, users, times, np.random.default_rng([SEED, number]))
        for at in range(0, len(columns), PART_ROWS):
            rows = which[at : at + PART_ROWS]
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            if self.asked.history is None:
                histories = histories_before(users, times, items, positive, self.max_len, part)
            else:
                histories = frame[":history"][part].to_arrow()
            yield Rows(columns[at : at + PART_ROWS], histories, rows - rows[0])

    @cached_property
    def _popularity(self) -> tuple[pl.Series, dict[str, np.ndarray]]:
        """Return the items of the log, and of each split how many of its rows are of an item or one before."""
        parts = [self._bucket(number).group_by(":split", ":item").len() for number in range(len(self.chunks()))]
        table = pl.concat(parts).pivot(":split", index=":item", values="len", aggregate_function="sum").sort(":item")
        splits = [split for split in SPLITS if split in table.columns]
        counts = table.select(splits).fill_null(0).to_numpy()
        return table[":item"], dict(zip(splits, counts.cumsum(axis=0).T, strict=True))

    def _with_negatives(
        self,
        columns: pl.DataFrame,
        which: np.ndarray,
        users: np.ndarray,
        times: np.ndarray,
        generator: np.random.Generator,
    ) -> tuple[pl.DataFrame, np.ndarray]:
        """Return each row followed by its negatives, and the histories of both; all rows are positive."""
        known, up_to = self._popularity

        def sample(totals: np.ndarray, size: int) -> np.ndarray:
            return np.searchsorted(totals, generator.integers(totals[-1], size=size), side="right")

        codes = columns["item_id"].replace_strict(known, np.arange(len(known)), return_dtype=pl.Int64).to_numpy()
        begins, ends = history_ranges(users, times, self.max_len)
        # Rows of a user and a time have the same end, which rows of no other user have.
        without = ends if self.asked.negatives_from == "any" else users
        splits = columns["split"].to_numpy()
        copies = self.asked.negatives + 1
        rows = np.repeat(np.arange(len(columns)), copies)
        is_positive = np.arange(len(rows)) % copies == 0
        samplers = {split: partial(sample, totals) for split, totals in up_to.items()}
        items = codes[rows]
        items[~is_positive], failed = sample_negatives(without, codes, splits, len(known), rows[~is_positive], samplers)
        if failed is not None:
            raise DataError(
                f"{self._source.log.paths[0]}: the user {columns['user_id'][failed]!r} has events of nearly "
                f"every item of {splits[failed]}, so no negative can be sampled"
            )
        if self.asked.negatives_from == "matched":
            items[~is_positive] = sample_repeats(
                users, codes, begins, ends, rows[~is_positive], items[~is_positive], generator
            )
        label = pl.Series("label", is_positive.astype(np.float32))
        of_source = pl.when(pl.Series(is_positive)).then(SOURCE_ROW).alias(SOURCE_ROW)
        return columns[rows].with_columns(known.gather(items).alias("item_id"), label, of_source), which[rows]

    # Items

    @cached_property
    def _seen_items(self) -> pl.Series:
        """The items of the log: its targets, then those that are only in the histories that it has."""
        targets = self._scan().select(":item").unique(maintain_order=True).collect(engine="streaming")[":item"]
        if self.asked.history is None:
            return targets
        entries = self._scan().select(pl.col(":history").explode(**EMPTY_AS_NULL).alias(":item")).drop_nulls()
        others = entries.unique().sort(":item").collect(engine="streaming")[":item"]
        # 0 and an empty text pad histories, unless they are items.
        padding = pl.Series(["", "0"]) if others.dtype == pl.String else pl.Series([0], dtype=others.dtype)
        is_target = others.is_in(targets.implode())
        if len(others) and is_target.sum() < KNOWN * len(others):
            found = (
                f"{self._source.log.paths[0]}: {is_target.sum()} of {len(others)} items of {self.asked.history}, such "
                f"as {others[0]!r}, occur in {self.asked.item}; both must hold the same ids"
            )
            if not is_target.any():
                raise DataError(f"{found}, or leave out --roles history={self.asked.history}")
            logger.warning(found)
        return pl.concat([targets, others.filter(~is_target & ~others.is_in(padding.implode()))])

    @cached_property
    def _written_items(self) -> tuple[list[LogColumn], pl.DataFrame]:
        """Return the columns of items, with their statistics, and the items."""
        table, item = self._source.items, self.asked.item
        seen = self._seen_items
        if table is None:
            return [], pl.DataFrame({"item_id": seen})
        columns = self._source.written("items")
        rows = split_lists(self._source.rows_by_id(table, "target"), columns)
        missing = self._find_missing(table, item, rows, seen, "items")
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
        for path, of_rows in self._vector_files:
            taken = {*WRITTEN, Path(ITEM_FILE).stem, self.label, *self.other_labels, *self.context}
            taken |= {*self._source.labels, *self.item_columns, *found}
            if of_rows is not None:
                column = free_name(path.stem.replace(".", "_"), taken, "item_")
                read = partial(read_array, path, of_rows, item, self.scratch, ids, self._source.encoding)
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
        facts["interactions"]["left_out"] |= {n: _unknown(known) for n, known in self._unknown_columns.items()}
        if self._scaled_labels:
            facts["interactions"]["labels"] = {column.name: column.facts() for column in self._scaled_labels}
        return facts

    def notes(self) -> dict[str, Any]:
        """Return what a later log is prepared with."""
        labels = [] if self.asked.negatives else self._source.labels
        newest = self._scan().filter(self._source.is_labelled).select(pl.col(":time").max()).collect().item()
        # Of files of positives, the dates are of the same order.
        order = order_of(self._source.log, self.asked.time)
        order = self.asked.date_order or (None if order == "ymd" else order)
        options = replace(self.asked, date_order=order).changed()
        notes = Notes(options, labels, newest, self._source.time_unit, list(self.embeddings()))
        return {"log": asdict(notes)}

    def advice(self, summary: Summary) -> list[str]:
        """Return the units of labels, and what follows from how often users recur and how many targets are cold."""
        units = [
            f"{c.name} is ({c.source} - {c.mean:g}) / {c.std:g}: a prediction p of it is p * {c.std:g} + {c.mean:g}"
            for c in self._scaled_labels
        ]
        return units + super().advice(summary)


def _code_of_user(user: str, row: str) -> pl.Expr:
    """Return a number for each user from 1, and one for each row without a user."""
    code = pl.col(user).rank("dense").cast(pl.Int64)
    return code.fill_null(code.max().fill_null(0) + 1 + pl.col(row))


def _unknown(known: float) -> str:
    return f"only {known:.1%} of the rows of valid and test have a value that occurs in training"
