"""Histories from logs of events: what a user had liked before each event.

Shape letters: E events, N history items of all events.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq


def ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the integers from each of ``begins`` on, as many as ``lengths`` says, one range after the other.

    Examples
    --------
    >>> ranges(np.array([7, 0, 3]), np.array([2, 0, 1])).tolist()
    [7, 8, 3]
    """
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(begins - (ends - lengths), lengths)


def histories_before(
    users: np.ndarray,
    times: np.ndarray,
    items: pa.Array,
    positive: np.ndarray,
    max_len: int,
    part: slice | None = None,
) -> pa.Array:
    """Return each event's history: the items of the user's positive events at strictly earlier times, oldest first.

    Parameters
    ----------
    users, times : ndarray
        ``(E,)``, sorted by user and then by time.
    items : pyarrow.Array
        ``(E,)`` item ids of any type.
    positive : ndarray
        ``(E,)`` bool, events that enter later histories.
    max_len : int
        The newest ``max_len`` items are kept.
    part : slice, optional
        The events whose histories are returned, by default all; together they may be longer than memory.
    """
    if not len(users):
        return pa.LargeListArray.from_arrays(np.zeros(1, np.int64), items)
    first, last = _positive_before(users, times, positive)
    if part is not None:
        first, last = first[part], last[part]
    lengths = np.minimum(last - first, max_len)
    offsets = np.r_[0, np.cumsum(lengths)]
    index = ranges(last - lengths, lengths)
    liked = items.take(pa.array(np.flatnonzero(positive)))
    return pa.LargeListArray.from_arrays(offsets, liked.take(pa.array(index)))


def lengths_before(users: np.ndarray, times: np.ndarray, positive: np.ndarray, max_len: int) -> np.ndarray:
    """Return the lengths ``(E,)`` of the histories of ``histories_before``."""
    if not len(users):
        return np.zeros(0, np.int64)
    first, last = _positive_before(users, times, positive)
    return np.minimum(last - first, max_len)


def history_ranges(users: np.ndarray, times: np.ndarray, max_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Return begins and ends ``(E,)`` of the events in the histories of ``histories_before``, if all are positive."""
    first, last = _positive_before(users, times, np.ones(len(users), dtype=bool))
    return np.maximum(first, last - max_len), last


def _positive_before(users: np.ndarray, times: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many positive events are before those of each event's user, and before those of its moment."""
    before = np.cumsum(positive) - positive
    new_user = np.r_[True, users[1:] != users[:-1]]
    new_time = new_user | np.r_[True, times[1:] != times[:-1]]
    # Events of one moment see the same history; none sees another user's.
    last = before[np.flatnonzero(new_time)][np.cumsum(new_time) - 1]
    first = before[np.flatnonzero(new_user)][np.cumsum(new_user) - 1]
    return first, last


def partition_by_user(frames: Iterable[pl.DataFrame], user: str, folder: Path, num_buckets: int) -> list[Path]:
    """Write events to files by their user, an integer, so that one file holds all events of its users; return these.

    All frames have the same columns, in any order of rows. A folder that is complete already is used again. The largest
    of the files has to fit into memory.
    """
    paths = [folder / f"bucket-{number:04d}.parquet" for number in range(num_buckets)]
    if folder.exists():
        return paths
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writers: list[pq.ParquetWriter] = []
    try:
        for frame in frames:
            table = frame.to_arrow()
            if not writers:
                writers = [pq.ParquetWriter(partial / path.name, table.schema, compression="zstd") for path in paths]
            bucket = frame[user].to_numpy() % num_buckets
            order = np.argsort(bucket, kind="stable")
            bounds = np.searchsorted(bucket[order], np.arange(num_buckets + 1))
            table = table.take(pa.array(order))
            for number, writer in enumerate(writers):
                if bounds[number] < bounds[number + 1]:
                    writer.write_table(table.slice(bounds[number], bounds[number + 1] - bounds[number]))
    finally:
        for writer in writers:
            writer.close()
    partial.rename(folder)
    return paths
