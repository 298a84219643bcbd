"""Splits of a log by time, of all rows or of the rows of each user; rows of one time are in one split."""

from __future__ import annotations

import numpy as np
import polars as pl

#: Later than all times.
NEVER = 2**63 - 1


def bounds_of_all(times: np.ndarray, split: tuple[float, float, float]) -> tuple[float, float] | None:
    """Return the first time of valid and that of test; None where the times are too few for the splits.

    Examples
    --------
    >>> bounds_of_all(np.arange(100, 110), (0.8, 0.1, 0.1))
    (108, 109)
    """
    train, valid, test = split
    if not len(times):
        return None
    places = [int(train * len(times) + 1e-6), min(int((train + valid) * len(times) + 1e-6), len(times) - 1)]
    first, second = (part.item() for part in np.partition(times, places)[places])
    second = second if test else NEVER
    return (first, second) if times.min() < first < second else None


def bounds_of_users(user: str, time: str, split: tuple[float, float, float]) -> tuple[pl.Expr, pl.Expr]:
    """Return the first time of valid and that of test of each user, of rows sorted by time.

    Each of both gets its fraction of the user's rows, rounded, and at least one. A user whose rows have too few times
    for all splits is in train alone.
    """
    _, valid, test = split
    times, rows = pl.col(time), pl.len()
    in_valid, in_test = ((rows * part).round().clip(1).cast(pl.Int64) for part in (valid, test))
    second = times.get(rows - in_test) if test else pl.lit(NEVER)
    before = times.filter(times < second)
    first = before.reverse().slice(in_valid - 1, 1).first()
    has_all = (before.len() > in_valid) & (times.min() < first)
    first, second = (pl.when(has_all.fill_null(False)).then(bound).otherwise(NEVER) for bound in (first, second))
    return first.over(user), second.over(user)


def split_of(time: pl.Expr, first: pl.Expr, second: pl.Expr) -> pl.Expr:
    """Return the split of each row by its time and the first times of valid and test."""
    split = pl.when(time >= second).then(pl.lit("test")).when(time >= first).then(pl.lit("valid"))
    return split.otherwise(pl.lit("train"))
