"""Negatives of a log that holds only positive events: items that are sampled for each of its rows."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from fuxictr_mm.datasets.histories import history_ranges
from fuxictr_mm.datasets.negatives import sample_negatives, sample_repeats
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.reader import SPLITS
from fuxictr_mm.errors import DataError
from fuxictr_mm_serving.prepared import SOURCE_ROW


class Sampler:
    """Samples the negatives of rows, by the items that the events of each split have.

    Parameters
    ----------
    asked : LogOptions
        How many, and which.
    file : Path
        The log, for errors.
    chunks : iterable of DataFrame
        The events of all users, with ``:item`` and ``:split``.
    """

    def __init__(self, asked: LogOptions, file: Path, chunks: Iterable[pl.DataFrame]) -> None:
        self._asked, self._file = asked, file
        counts, rows = [], []
        for events in chunks:
            counts.append(events.group_by(":split", ":item").len())
            if asked.negatives_near is not None:
                rows.append(events.select(":split", ":time", ":item").drop_nulls(":split"))
        table = pl.concat(counts).pivot(":split", index=":item", values="len", aggregate_function="sum").sort(":item")
        splits = [split for split in SPLITS if split in table.columns]
        totals = table.select(splits).fill_null(0).to_numpy().cumsum(axis=0).T
        self._items = table[":item"]
        #: Of each split how many of its rows are of an item or one before.
        self._up_to = dict(zip(splits, totals, strict=True))
        #: Of each split its rows in the order of time, and how many before and after one are near; none by default.
        self._rows = _by_time(pl.concat(rows), self._items, splits) if rows else {}
        self._reach = max(1, round((asked.negatives_near or 0) * sum(len(times) for times, _ in self._rows.values())))

    def add(
        self,
        columns: pl.DataFrame,
        which: np.ndarray,
        events: pl.DataFrame,
        max_len: int,
        generator: np.random.Generator,
    ) -> tuple[pl.DataFrame, np.ndarray]:
        """Return each row followed by its negatives, and the event of both.

        Parameters
        ----------
        columns : DataFrame
            ``R`` rows as they are written; all are positive.
        which : ndarray
            ``(R,)`` the event of each.
        events : DataFrame
            All events of these users, sorted by ``:code`` of the user and ``:time``; those without a ``:split`` were
            before the log.
        """
        known, negatives_from = self._items, self._asked.negatives_from

        def sample(totals: np.ndarray, given: np.ndarray) -> np.ndarray:
            return np.searchsorted(totals, generator.integers(totals[-1], size=len(given)), side="right")

        def sample_near(of_times: np.ndarray, of_items: np.ndarray, given: np.ndarray) -> np.ndarray:
            first = np.searchsorted(of_times, times[given]) - self._reach
            end = np.searchsorted(of_times, times[given], side="right") + self._reach
            return of_items[generator.integers(first.clip(0), end.clip(max=len(of_times)))]

        users, times = events[":code"].to_numpy(), events[":time"].to_numpy()
        items = events[":item"].replace_strict(known, np.arange(len(known)), return_dtype=pl.Int64).to_numpy()
        begins, ends = history_ranges(users, times, max_len)
        # Rows of a user and a time have the same end, which rows of no other user have.
        without = ends if negatives_from == "any" else users
        splits = events[":split"].fill_null("").to_numpy()
        copies = self._asked.negatives + 1
        rows = np.repeat(np.arange(len(columns)), copies)
        is_positive = np.arange(len(rows)) % copies == 0
        wanted = which[rows[~is_positive]]
        samplers = {split: partial(sample, totals) for split, totals in self._up_to.items()}
        samplers |= {split: partial(sample_near, *ordered) for split, ordered in self._rows.items()}
        negatives, failed = sample_negatives(without, items, splits, len(known), wanted, samplers)
        if failed is not None:
            split = splits[failed]
            is_part = bool(self._rows) and self._reach < len(self._rows[split][0])  # a larger fraction samples others
            near, fix = (" near in time", "; increase --negatives_near") if is_part else ("", "")
            raise DataError(
                f"{self._file}: the user {events[':user'][failed]!r} has events of nearly every item of {split}{near}, "
                f"so no negative can be sampled{fix}"
            )
        if negatives_from == "matched":
            negatives = sample_repeats(users, items, begins, ends, wanted, negatives, generator)
        sampled = items[which[rows]]
        sampled[~is_positive] = negatives
        label = pl.Series("label", is_positive.astype(np.float32))
        of_source = pl.when(pl.Series(is_positive)).then(SOURCE_ROW).alias(SOURCE_ROW)
        return columns[rows].with_columns(known.gather(sampled).alias("item_id"), label, of_source), which[rows]


def _by_time(rows: pl.DataFrame, known: pl.Series, splits: Iterable[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return times and items, as their places in ``known``, of the rows of each split in the order of time."""
    index = pl.col(":item").replace_strict(known, np.arange(len(known)), return_dtype=pl.Int64)
    rows = rows.with_columns(index).sort(":time", ":item")
    parts = {split: rows.filter(pl.col(":split") == split) for split in splits}
    return {split: (part[":time"].to_numpy(), part[":item"].to_numpy()) for split, part in parts.items()}
