"""The first times of valid and test, by hand."""

import numpy as np
import polars as pl
import pytest

from fuxictr_mm.datasets.own.splits import NEVER, bounds_of_all, bounds_of_users, split_of


@pytest.mark.parametrize(
    ("rows", "split", "expected"),
    [
        (90, (0.7, 0.2, 0.1), (63, 81)),  # 0.7 * 90 and (0.7 + 0.2) * 90 are below 63 and 81
        (25, (0.8, 0.1, 0.1), (20, 22)),
        (10, (0.8, 0.2, 0.0), (8, NEVER)),
        (2, (0.8, 0.1, 0.1), None),
        (0, (0.8, 0.1, 0.1), None),
    ],
)
def test_bounds_of_all_rows(rows, split, expected):
    assert bounds_of_all(np.arange(rows), split) == expected


def test_bounds_of_each_user():
    """Of 16 rows 1.6 are in either of valid and test, rounded; of 3, one; a user of two times is in train alone."""
    users = ["a"] * 16 + ["b"] * 3 + ["c"] * 4
    frame = pl.DataFrame({"user": users, "time": [*range(16), *range(3), 0, 0, 1, 1]})
    first, second = bounds_of_users("user", "time", (0.8, 0.1, 0.1))
    found = frame.with_columns(split=split_of(pl.col("time"), first, second)).group_by("user", maintain_order=True)
    splits = {user: rows["split"].to_list() for (user,), rows in found}
    assert splits == {
        "a": ["train"] * 12 + ["valid"] * 2 + ["test"] * 2,
        "b": ["train", "valid", "test"],
        "c": ["train"] * 4,
    }
