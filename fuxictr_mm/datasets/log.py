"""A log of your own: files of interactions, items and users, with columns and ids of any name.

``--interactions`` has a row per event: a user, an item, a time, one or several labels, and columns of context.
``--items`` and ``--users`` have a row each per item and user. The files are CSV (separated by commas, tabs, semicolons or
bars), Parquet or JSON lines. A history holds the items of the user's positive events, by the first label, at strictly
earlier times. The newest rows are test, those before them valid: ``--split``. Rows of one time are in one split. Columns
become features by what they hold (``columns``); numbers are standardised by training rows, and by the items and users
that these show. Rows without any label are not written. Items of the log that ``--items`` does not have are written without
features. A log of positive events alone gets negatives, items that the user has no event of, drawn as often as they
occur in the log: ``--negatives``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from fuxictr_mm.datasets.columns import Column, choose_columns, join_moments, moments_of, split_lists
from fuxictr_mm.datasets.histories import histories_before, partition_by_user, sample_negatives
from fuxictr_mm.datasets.instants import read_times
from fuxictr_mm.datasets.log_experiments import log_experiments
from fuxictr_mm.datasets.log_options import LogOptions
from fuxictr_mm.datasets.reader import Embeddings, Kind, Reader, Rows
from fuxictr_mm.datasets.tables import PARQUET, Table, form_of
from fuxictr_mm.datasets.writer import Summary
from fuxictr_mm.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

#: Rows of a file of users on average.
CHUNK_ROWS = 200_000

#: Rows of the log read at a time.
READ_ROWS = 100_000

#: Labels that are looked for where none is named.
LABELS = ("label", "click")

#: Names that the written files have.
WRITTEN = ("user_id", "item_id", "item_seq", "source_id", "split", "label", "time")

SEED = 2025


class Log(Reader):
    """A log of your own: files of interactions, items and users, with columns and ids of any name."""

    asked = LogOptions()

    def configure(self, given: Mapping[str, Any]) -> None:
        """Take the options of ``prepare log``."""
        self.asked = LogOptions.of(given)
        self.options = self.asked.changed()
        labels = self._labels
        self.label, self.other_labels = labels[0], tuple(labels[1:])

    # Files

    def files(self) -> list[Path]:
        """Return the files of interactions, items, users and embeddings."""
        embeddings = [path for name in self.asked.embeddings for path in self.find(name)]
        tables = [self._log_table, self._item_table, self._user_table]
        self.label, self.other_labels = self._labels[0], tuple(self._labels[1:])
        return [*(path for table in tables if table is not None for path in table.paths), *embeddings]

    def _table(self, option: str, pattern: str | None, texts: tuple[str, ...]) -> Table | None:
        if pattern is None and not list(self.source.glob(f"{option}.*")):
            return None
        return Table(self.find(pattern or f"{option}.*"), self.scratch, option, texts)

    @cached_property
    def _log_table(self) -> Table:
        asked = self.asked
        table = self._table("interactions", asked.interactions, (asked.user, asked.item))
        assert table is not None
        for role, column in (("user", asked.user), ("target", asked.item), ("time", asked.time)):
            table.check(column, f"--roles {role}={column}")
        return table

    @cached_property
    def _item_table(self) -> Table | None:
        table = self._table("items", self.asked.items, (self.asked.item,))
        if table is not None:
            table.check(self.asked.item, f"--roles target={self.asked.item}")
        return table

    @cached_property
    def _user_table(self) -> Table | None:
        table = self._table("users", self.asked.users, (self.asked.user,))
        if table is not None:
            table.check(self.asked.user, f"--roles user={self.asked.user}")
        return table

    @cached_property
    def _labels(self) -> list[str]:
        """Return the labels' columns; without any, all rows are positive."""
        table = self._log_table
        for name in self.asked.labels:
            table.check(name, f"--labels {name}")
        labels = list(self.asked.labels) or [name for name in LABELS if name in table.schema][:1]
        if labels and self.asked.negatives:
            raise ConfigError(f"--negatives: {table.paths[0]} has the label '{labels[0]}'; leave out --negatives")
        if not labels and not self.asked.negatives:
            raise ConfigError(
                f"{table.paths[0]}: has no column {' or '.join(LABELS)}; name the label (1 for a click, 0 for none) with --labels, "
                "or add --negatives 1 if every row is a click, to sample an item without one for each"
            )
        return labels or ["label"]

    # The log, with the names that are written

    @cached_property
    def _log(self) -> Path:
        """Return the log as Parquet: ``user_id``, ``item_id``, ``time``, labels, and columns of context as in the file."""
        path = self.scratch / "log.parquet"
        if not path.exists():
            asked, table = self.asked, self._log_table
            labels = [] if asked.negatives else [self._read_label(table, name) for name in self._labels]
            frame = table.frame.select(
                self._ids(table, asked.user, "user").alias(":user"),
                self._ids(table, asked.item, "target").alias(":item"),
                read_times(table, asked.time).alias(":time"),
                *labels,
                *dict.fromkeys(column.source for column in self._context[0]),
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.sink_parquet(path.with_suffix(".partial"))
            path.with_suffix(".partial").rename(path)
        return path

    def _ids(self, table: Table, column: str, role: str) -> pl.Expr:
        kind = table.frame.collect_schema()[column]
        if not (kind == pl.String or kind.is_integer()):
            raise ConfigError(
                f"--roles {role}={column}: {table.paths[0]} holds {kind} there, expected texts or integers"
            )
        ids = pl.col(column)
        table.refuse(
            ids.is_null() | (ids == "") if kind == pl.String else ids.is_null(),
            column,
            "an id; correct or drop the row",
        )
        tables = [self._log_table, self._item_table if role == "target" else self._user_table]
        kinds = [other.frame.collect_schema()[column] for other in tables if other is not None]
        return ids.cast(pl.Int64 if all(kind.is_integer() for kind in kinds) else pl.String)

    def _read_label(self, table: Table, column: str) -> pl.Expr:
        label = pl.col(column)
        if table.frame.collect_schema()[column] == pl.String:
            label = label.str.strip_chars().str.to_lowercase().replace({"true": "1", "false": "0", "": None})
        number = label.cast(pl.Float32, strict=False)
        known = table.frame.select(least=number.min(), most=number.max()).collect(engine="streaming").row(0)
        table.refuse(label.is_not_null() & ~number.is_in([0, 1]).fill_null(False), column, "0 or 1, or nothing")
        if known != (0, 1):
            held = "no value" if known[0] is None else f"{known[0]:g} in all rows"
            hint = "; if every row is a click, leave the column out and add --negatives 1" if known[0] == 1 else ""
            raise DataError(f"{table.paths[0]}: {column} holds {held}, expected 0 in some rows and 1 in others{hint}")
        return number.alias(column)

    @cached_property
    def _taken(self) -> set[str]:
        return {*WRITTEN, *self._labels}

    @cached_property
    def _context(self) -> tuple[list[Column], dict[str, str]]:
        roles = {self.asked.user, self.asked.item, self.asked.time, *self._labels}
        return choose_columns(self._log_table, roles, self.asked.types, self._taken, "context_")

    @cached_property
    def _user_columns(self) -> tuple[list[Column], dict[str, str]]:
        self._context  # noqa: B018 (its names come first)
        if self._user_table is None:
            return [], {}
        return choose_columns(self._user_table, {self.asked.user}, self.asked.types, self._taken, "user_")

    @cached_property
    def _columns_of_items(self) -> tuple[list[Column], dict[str, str]]:
        self._user_columns  # noqa: B018
        if self._item_table is None:
            return [], {}
        return choose_columns(self._item_table, {self.asked.item}, self.asked.types, self._taken, "item_")

    @property
    def context(self) -> Mapping[str, Kind]:
        """Columns of the log and of users with their kinds."""
        return {column.name: column.kind for column in (*self._context[0], *self._user_columns[0])}

    @property
    def item_columns(self) -> Mapping[str, Kind]:
        """Item columns with their kinds."""
        return {column.name: column.kind for column in self._columns_of_items[0]}

    # Splits

    @cached_property
    def _bounds(self) -> tuple[float, float]:
        """Return the first time of valid and that of test, of a split by time."""
        log = pl.scan_parquet(self._log).filter(self._is_labelled)
        times = log.select(":time").collect(engine="streaming")[":time"].to_numpy()
        train, valid, test = self.asked.split
        places = [int(train * len(times)), min(int((train + valid) * len(times) + 1e-6), len(times) - 1)]
        first, second = np.partition(times, places)[places]
        second = second if test else np.inf
        if not times.min() < first < second:
            raise DataError(
                f"{self._log_table.paths[0]}: {self.asked.time} has too few distinct values for the splits "
                f"{' '.join(f'{part:g}' for part in self.asked.split)} of {len(times)} rows; change --split, or give --split_by user"
            )
        return first, second

    @property
    def _is_labelled(self) -> pl.Expr:
        if self.asked.negatives:
            return pl.lit(True)
        return pl.any_horizontal(pl.col(name).is_not_null() for name in self._labels)

    def _split(self, frame: pl.DataFrame) -> pl.Series:
        """Return the split of the rows of whole users, sorted by user and time."""
        time = pl.col(":time")
        if self.asked.split_by == "time":
            first, second = (pl.lit(bound) for bound in self._bounds)
        else:
            first, second = self._bounds_of_users()
        split = pl.when(time >= second).then(pl.lit("test")).when(time >= first).then(pl.lit("valid"))
        return frame.select(split.otherwise(pl.lit("train"))).to_series()

    def _bounds_of_users(self) -> tuple[pl.Expr, pl.Expr]:
        """Return the first time of valid and that of test of each user; a user without three times is in train."""
        _, valid, test = self.asked.split
        time, rows = pl.col(":time"), pl.len()
        in_test = (rows * test).round().clip(1 if test else 0).cast(pl.Int64)
        in_valid = (rows * valid).round().clip(1).cast(pl.Int64)
        last = time.len() - 1
        second = time.get((rows - in_test).clip(0, last)) if test else time.max() + 1
        before = time.filter(time < second)
        first = before.get((before.len() - in_valid).clip(0, (before.len() - 1).clip(0)), null_on_oob=True)
        has_all = (time.min() < first).fill_null(False)
        never = pl.lit(2**63 - 1 if self._times_are_integers else float("inf"))
        return tuple(pl.when(has_all).then(bound).otherwise(never).over(":code") for bound in (first, second))  # type: ignore[return-value]

    @property
    def _times_are_integers(self) -> bool:
        return pq.read_schema(self._log).field(":time").type == "int64"

    # Rows

    def chunks(self) -> list[str]:
        """Return the files of users that the log is divided into."""
        rows = pl.scan_parquet(self._log).select(pl.len()).collect().item()
        return [f"users {number}" for number in range(max(1, round(rows / CHUNK_ROWS)))]

    @cached_property
    def _buckets(self) -> list[Path]:
        return partition_by_user(self._events(), ":hash", self.scratch / "users", len(self.chunks()))

    def _events(self) -> Iterator[pl.DataFrame]:
        for batch in pq.ParquetFile(self._log).iter_batches(READ_ROWS):
            frame = pl.DataFrame(batch)
            yield frame.with_columns((pl.col(":user").hash(0) // 2).cast(pl.Int64).alias(":hash"))

    def _bucket(self, number: int) -> pl.DataFrame:
        """Return the events of a file of users, sorted by user and time, with their split."""
        frame = pl.read_parquet(self._buckets[number]).with_columns(pl.col(":user").rank("dense").alias(":code"))
        frame = frame.sort(":code", ":time", maintain_order=True)
        labelled = frame.with_row_index(":row").filter(self._is_labelled)
        labelled = labelled.select(":row", self._split(labelled).alias("split"))
        return frame.with_row_index(":row").join(labelled, on=":row", how="left", maintain_order="left").drop(":row")

    def values(self, name: str) -> pl.Series:
        """Return all users, or the values of training."""
        if name == "user_id":
            users = pl.scan_parquet(self._log).select(":user").unique(maintain_order=True)
            return users.collect(engine="streaming")[":user"]
        return self._training["values"][name]

    @cached_property
    def _training(self) -> dict[str, Any]:
        """Return of the training rows: items, users, values of categorical context, moments of numbers."""
        columns = self._context[0]
        kept: dict[str, pl.Series] = {}
        moments = {column.source: (0, 0.0, 0.0) for column in columns if column.kind == "numeric"}
        names = [":item", ":user", *(column.name for column in columns if column.kind == "categorical")]
        for number in range(len(self.chunks())):
            train = self._bucket(number).filter(pl.col("split") == "train")
            for name in moments:
                moments[name] = join_moments(moments[name], moments_of(train[name]))
            train = train.select(":item", ":user", *(column.values() for column in columns))
            for name in names:
                values = train[name].unique()
                kept[name] = pl.concat([kept[name], values]).unique() if name in kept else values
        users = self._users_of(kept[":user"])
        for column in self._user_columns[0]:
            if column.kind == "categorical":
                kept[column.name] = users.select(column.values()).to_series()
        return {
            "values": {name: values.unique().sort() for name, values in kept.items()},
            "moments": moments,
            "users": users,
        }

    def _users_of(self, users: pl.Series) -> pl.DataFrame:
        """Return the rows of the table of users for some of them."""
        if self._user_table is None:
            return pl.DataFrame()
        frame = self._user_frame
        return frame.filter(pl.col(self.asked.user).is_in(users.implode()))

    @cached_property
    def _user_frame(self) -> pl.DataFrame:
        table, user = self._user_table, self.asked.user
        assert table is not None
        frame = table.frame.with_columns(self._ids(table, user, "user")).collect(engine="streaming")
        twice = frame[user].is_duplicated()
        if twice.any():
            row = int(twice.arg_true()[1])
            raise DataError(
                f"{table.where(row)} (from 0): the user {frame[user][row]!r} occurs more than once, expected once"
            )
        return frame

    @cached_property
    def _written_context(self) -> tuple[list[Column], list[Column]]:
        """Return the columns of the log and of users, numbers with their statistics in training."""
        training = self._training
        log = [c.scaled(training["moments"][c.source]) if c.kind == "numeric" else c for c in self._context[0]]
        users = training["users"]
        return log, [c.scaled(moments_of(users[c.source])) if c.kind == "numeric" else c for c in self._user_columns[0]]

    def rows(self, chunk: str) -> Iterator[Rows]:
        """Return the labelled rows of a file of users, with what each had clicked before, and their negatives."""
        number = int(chunk.split()[1])
        frame = self._bucket(number)
        positive = (
            np.ones(len(frame), dtype=bool)
            if self.asked.negatives
            else (frame[self.label] == 1).fill_null(False).to_numpy()
        )
        histories = histories_before(
            frame[":code"].to_numpy(), frame[":time"].to_numpy(), frame[":item"].to_arrow(), positive, self.max_len
        )
        which = np.flatnonzero(frame["split"].is_not_null().to_numpy())
        log, users = self._written_context
        if self._user_table is not None and users:
            table = self._user_frame.select(pl.col(self.asked.user).alias(":user"), *(c.values() for c in users))
        else:
            table = None
        labels = [] if self.asked.negatives else self._labels
        columns = frame[which].select(
            "split",
            pl.col(":user").alias("user_id"),
            pl.col(":item").alias("item_id"),
            *labels,
            *(c.values() for c in log),
        )
        if table is not None:
            columns = columns.join(table.rename({":user": "user_id"}), on="user_id", how="left", maintain_order="left")
        if self.asked.negatives:
            columns, which = self._with_negatives(columns, which, np.random.default_rng([SEED, number]))
        yield Rows(columns, histories, which)

    def _with_negatives(
        self, columns: pl.DataFrame, which: np.ndarray, generator: np.random.Generator
    ) -> tuple[pl.DataFrame, np.ndarray]:
        """Return each row followed by its negatives."""
        times = self.asked.negatives
        known = pl.scan_parquet(self._log).group_by(":item").len().sort(":item").collect(engine="streaming")
        counts = np.cumsum(known["len"].to_numpy())
        items = (
            columns["item_id"].replace_strict(known[":item"], np.arange(len(known)), return_dtype=pl.Int64).to_numpy()
        )
        users = columns["user_id"].rank("dense").to_numpy().astype(np.int64)

        def draw(size: int) -> np.ndarray:
            return np.searchsorted(counts, generator.integers(counts[-1], size=size), side="right")

        rows = np.repeat(np.arange(len(columns)), times + 1)
        is_positive = np.arange(len(rows)) % (times + 1) == 0
        sampled = items[rows]
        open_rows = rows[~is_positive]
        negatives, failed = sample_negatives(users, items, len(known), users[open_rows], draw)
        if failed is not None:
            user = columns["user_id"][int(open_rows[failed])]
            raise DataError(
                f"{self._log_table.paths[0]}: the user {user!r} has events of nearly every item; no negatives can be sampled"
            )
        sampled[~is_positive] = negatives
        columns = columns[rows].with_columns(
            known[":item"].gather(sampled).alias("item_id"), pl.Series("label", is_positive.astype(np.float32))
        )
        return columns, which[rows]

    # Items

    @cached_property
    def _written_items(self) -> tuple[list[Column], pl.DataFrame]:
        """Return the columns of items, with their statistics, and the rows of the items."""
        seen = (
            pl.scan_parquet(self._log).select(":item").unique(maintain_order=True).collect(engine="streaming")[":item"]
        )
        table, item = self._item_table, self.asked.item
        if table is None:
            return [], pl.DataFrame({"item_id": seen})
        columns = self._columns_of_items[0]
        frame = split_lists(table.frame.with_columns(self._ids(table, item, "target")), columns).collect(
            engine="streaming"
        )
        twice = frame[item].is_duplicated()
        if twice.any():
            row = int(twice.arg_true()[1])
            raise DataError(
                f"{table.where(row)} (from 0): the item {frame[item][row]!r} occurs more than once, expected once"
            )
        missing = seen.filter(~seen.is_in(frame[item].implode()))
        if len(missing) == len(seen):
            raise DataError(
                f"{table.paths[0]}: has none of the items of {self._log_table.paths[0]}, such as {seen[0]!r}; check {item}"
            )
        if len(missing):
            logger.warning(
                f"{table.paths[0]}: {len(missing)} of {len(seen)} items of the log are not there, such as {missing[0]!r}; "
                "they are written without features"
            )
        trained = frame.filter(pl.col(item).is_in(self._training["values"][":item"].implode()))
        columns = [c.scaled(moments_of(trained[c.source])) if c.kind == "numeric" else c for c in columns]
        written = frame.select(pl.col(item).alias("item_id"), *(column.values() for column in columns))
        return columns, pl.concat([written, pl.DataFrame({"item_id": missing})], how="diagonal")

    def items(self) -> pl.DataFrame:
        """Return the items of their table in its order, then those of the log alone."""
        return self._written_items[1]

    def embeddings(self) -> dict[str, Embeddings]:
        """Return the columns of lists of numbers of the files of embeddings."""
        found = {}
        for name in self.asked.embeddings:
            for path in self.find(name):
                for column in self._vector_columns(path):
                    found[column] = Embeddings(lambda path=path, column=column: self._read_vectors(path, column))  # type: ignore[misc]
        return found

    def _vector_columns(self, path: Path) -> list[str]:
        if form_of(path) not in PARQUET or path.suffix == ".gz":
            raise ConfigError(f"--embeddings {path}: expected a Parquet file")
        table = Table([path], self.scratch, "embeddings", (self.asked.item,))
        table.check(self.asked.item, f"--embeddings {path}")
        vectors = [
            n for n, kind in table.schema.items() if isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric()
        ]  # type: ignore[union-attr]
        if not vectors:
            raise ConfigError(
                f"--embeddings {path}: no column is a list of numbers (it has: {', '.join(table.schema)})"
            )
        for name in vectors:
            if name in self._taken | set(self.context) | set(self.item_columns):
                raise ConfigError(f"--embeddings {path}: the name of the column '{name}' is taken; rename it")
        return vectors

    def _read_vectors(self, path: Path, column: str) -> Iterator[tuple[pl.Series, np.ndarray]]:
        kind = self.items().schema["item_id"]
        width = 0
        for batch in pq.ParquetFile(path).iter_batches(READ_ROWS // 10, columns=[self.asked.item, column]):
            frame = pl.DataFrame(batch).drop_nulls()
            if not len(frame):
                continue
            lists = frame[column].cast(pl.List(pl.Float32))
            lengths = lists.list.len()
            width = width or int(lengths[0])
            if lengths.n_unique() > 1 or lengths[0] != width or lists.explode().null_count():
                raise DataError(
                    f"{path}: {column} has embeddings of several lengths, or with nulls, expected {width} numbers in each"
                )
            yield frame[self.asked.item].cast(kind), lists.explode().to_numpy().reshape(-1, width)

    def facts(self) -> dict[str, Any]:
        """Return what became of the columns of each file."""
        log, users = self._written_context
        facts: dict[str, Any] = {}
        parts = (
            (self._log_table, log, self._context[1]),
            (self._user_table, users, self._user_columns[1]),
            (self._item_table, self._written_items[0], self._columns_of_items[1]),
        )
        for table, columns, left_out in parts:
            if table is not None:
                written = {
                    c.name: {
                        "column": c.source,
                        "type": c.kind,
                        **({"mean": c.mean, "std": c.std} if c.kind == "numeric" else {}),
                    }
                    for c in columns
                }
                facts[table.option] = {"written": written, "left_out": left_out}
        return facts

    def experiments(self, summary: Summary) -> dict[str, dict[str, Any]]:
        """Return experiments by the number of rows and of users."""
        return log_experiments(summary, self.max_len)
