"""Datasets of .npz files: arrays in part files that differ, and files that are damaged."""

import numpy as np
import polars as pl
import pytest

from fuxictr_mm.encoding.prepare import _keys, convert
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming


def converted(folder, *parts):
    """Convert arrays in part files, and return the columns."""
    (folder / "train").mkdir()
    for number, arrays in enumerate(parts):
        np.savez(folder / "train" / f"part.{number}.npz", **arrays)
    return pl.read_parquet(convert({"train": str(folder / "train")}, folder / "cache")["train_data"])


def test_part_files_of_arrays_may_differ_in_order_type_and_length_of_sequences(tmp_path):
    first = {"x": np.array([1, 2], dtype=">i8"), "seen": np.array([[1, 2], [3, 0]])}
    second = {"seen": np.array([[4, 5, 6]], dtype=np.int32), "x": np.array([3], dtype=np.int32)}
    found = converted(tmp_path, first, second)
    assert found.to_dict(as_series=False) == {"x": [1, 2, 3], "seen": [[1, 2], [3, 0], [4, 5, 6]]}


def test_an_array_that_only_some_part_files_have_is_named(tmp_path):
    with raises_naming(DataError, "part.1.npz", "clk"):
        converted(tmp_path, {"x": [1], "clk": [0]}, {"x": [1]})


@pytest.mark.parametrize("values", [np.array(3), np.array([1j])])
def test_an_array_that_is_no_column_is_an_error(tmp_path, values):
    with raises_naming(DataError, "part.0.npz"):
        converted(tmp_path, {"x": values})


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda whole: b"PK\3\4"])
def test_a_damaged_file_of_arrays_is_an_error(tmp_path, damage):
    path = tmp_path / "train.npz"
    np.savez(path, key=["a"], value=[[1.0]])
    path.write_bytes(damage(path.read_bytes()))
    with raises_naming(DataError, path):
        convert({"train": str(path)}, tmp_path / "cache")
    with raises_naming(DataError, path, "'x'"):
        _keys("x", path)
