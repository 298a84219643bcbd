"""Groups of rows as integers, and rows without a group."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from fuxictr_mm.data.groups import NO_GROUP, decode_group, group_keys, number_groups, number_users
from fuxictr_mm.errors import DataError


def test_groups_of_text_are_the_same_numbers_in_every_chunk():
    first = decode_group(pa.array(["b", "a", "b"]), "f: user", 0)
    second = decode_group(pa.array(["a", "c"], pa.large_string()), "f: user", 3)
    assert first.dtype == np.int64
    assert first[0] == first[2] != first[1] == second[0]
    assert len({*first, *second}) == 3
    assert decode_group(pa.array([7, 8]), "f: user", 0).tolist() == [7, 8]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7, None, 0, 7]),
        pa.array([7.0, float("nan"), 0.0, 7.0]),
        pa.array([True, None, False, True]),
        pa.array(["x", None, "", "x"]),
        pa.array([b"x", None, b"", b"x"], pa.large_binary()),
        pa.array([b"xx", None, b"yy", b"xx"], pa.binary(2)),
    ],
    ids=lambda column: str(column.type),
)
def test_a_missing_group_is_none_and_an_empty_text_is_one(column):
    groups = decode_group(column, "f: user", 0)
    assert (groups == NO_GROUP).tolist() == [False, True, False, False]
    assert groups[0] == groups[3] != groups[2]


def test_a_column_of_nulls_has_no_groups():
    assert decode_group(pa.nulls(2), "f: user", 0).tolist() == [NO_GROUP] * 2


@pytest.mark.parametrize("column", [pa.array([1.5, 2.0]), pa.array([{"a": 1}, None]), pa.array([[1], None])])
def test_groups_of_other_types_are_refused(column):
    with pytest.raises(DataError, match="f: user"):
        decode_group(column, "f: user", 0)


@pytest.mark.parametrize(
    "groups",
    [
        ["b", None, "a", "b"],
        ["b", float("nan"), "a", "b"],
        [9, None, 7, 9],
        [9, float("nan"), 7, 9],
        np.array([9, NO_GROUP, 7, 9]),
        pd.Series([9, pd.NA, 7, 9], dtype="Int64"),
        pd.Series(["b", None, "a", "b"]),
        pd.Series(["b", None, "a", "b"], dtype="category"),
    ],
)
def test_groups_are_numbered_by_rising_id(groups):
    assert number_groups(groups).tolist() == [1, -1, 0, 1]


def test_users_of_rows_without_a_group_are_one_each():
    assert number_users(np.array([5, NO_GROUP, 5, NO_GROUP]), 4).tolist() == [0, 1, 0, 2]
    assert number_users(np.array([NO_GROUP] * 3), 3).tolist() == number_users(None, 3).tolist() == [0, 1, 2]


def test_texts_and_their_hashes_of_older_files_have_one_key():
    texts = np.array(["u1", None, "u2"], dtype=object)
    hashes = decode_group(pa.array(texts), "f: user", 0)
    assert group_keys(texts).tolist() == group_keys(hashes).tolist() == hashes.tolist()
