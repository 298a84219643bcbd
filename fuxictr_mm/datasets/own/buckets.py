"""The events of a log, divided by user into files that fit into memory, each with the splits of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from fuxictr_mm.datasets.histories import partition_by_user
from fuxictr_mm.datasets.own.source import LogSource
from fuxictr_mm.datasets.own.splits import bounds_of_all, bounds_of_users, split_of
from fuxictr_mm.errors import DataError

#: Rows of a file of users on average.
CHUNK_ROWS = 200_000

#: Rows of the log read at a time.
READ_ROWS = 100_000

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


class Buckets:
    """The events of the users of a log, of a bucket of users at a time."""

    def __init__(self, source: LogSource) -> None:
        self._source = source

    @cached_property
    def _paths(self) -> list[Path]:
        return partition_by_user(self._read(), ":hash", self._source.scratch / "users", len(self))

    def _read(self) -> Iterator[pl.DataFrame]:
        for batch in pq.ParquetFile(self._source.path).iter_batches(READ_ROWS):
            yield pl.DataFrame(batch).with_columns(HASH_OF_ROW)

    @cached_property
    def _number(self) -> int:
        """The number of buckets, by that of rows; of an earlier log, by that of rows or users."""
        new_rows = self._source.new_rows
        before = 0 if new_rows is None else new_rows.num_before
        size = pl.scan_parquet(self._source.path).select(pl.len()).collect().item() + before
        return max(1, round(size / CHUNK_ROWS))

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[pl.DataFrame]:
        return map(self.sorted, range(len(self)))

    def events(self, number: int) -> pl.DataFrame:
        """Return the events of a bucket, and which enter later histories; first those of an earlier log."""
        events = pl.read_parquet(self._paths[number]).with_columns(self._source.is_positive.alias(":positive"))
        new_rows = self._source.new_rows
        return events if new_rows is None else new_rows.with_earlier(events, HASH.mod(len(self)) == number)

    def sorted(self, number: int) -> pl.DataFrame:
        """Return the events of a bucket, sorted by user and time, with the splits of the rows that are written."""
        frame = self.events(number).with_columns(_code_of_user(":user", ":source_row").alias(":code"))
        frame = frame.sort(":code", ":time", maintain_order=True).with_row_index(":row")
        return frame.join(self._splits_of(frame), on=":row", how="left", maintain_order="left")

    def _splits_of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return ``:row`` and ``:split`` of the rows that are written."""
        source, new_rows = self._source, self._source.new_rows
        new = frame.filter(pl.col(":source_row").is_not_null())  # the others are clicks of the earlier log
        if new_rows is not None and not new_rows.is_trained:
            # Rows to score may have no label.
            new = new if source.labels.events is None else new.filter(source.is_labelled)
            return new.select(":row", pl.lit("test").alias(":split"))
        if source.asked.split_by == "time":
            first, second = (pl.lit(bound) for bound in self._bounds)
        else:
            first, second = bounds_of_users(":code", ":time", source.asked.split)
        return new.filter(source.is_labelled).select(":row", split_of(pl.col(":time"), first, second).alias(":split"))

    @cached_property
    def _bounds(self) -> tuple[float, float]:
        """Return the first time of valid and that of test, of a split of all rows."""
        source = self._source
        labelled = pl.scan_parquet(source.path).filter(source.is_labelled)
        times = labelled.select(":time").collect(engine="streaming")
        bounds = bounds_of_all(times[":time"].to_numpy(), source.asked.split)
        if bounds is None:
            raise DataError(
                f"{source.log.paths[0]}: {source.asked.time} has too few distinct values in {len(times)} rows for "
                "train, valid and test; change --split, or give --split_by user"
            )
        return bounds


def _code_of_user(user: str, row: str) -> pl.Expr:
    """Return a number for each user from 1, and one for each row without a user."""
    code = pl.col(user).rank("dense").cast(pl.Int64)
    return code.fill_null(code.max().fill_null(0) + 1 + pl.col(row))
