"""The types that writers choose are read as plain ones."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.data import arrow_types, decoding, parquet
from fuxictr_mm.data.groups import decode_group
from fuxictr_mm.data.labels import label_kinds
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("kind", [pa.string_view(), pa.list_(pa.string_view()), pa.large_list(pa.string_view())])
def test_texts_as_polars_hands_them_over_are_read_as_any(tmp_path, kind):
    """pyarrow has few functions for views: each of these failed on one."""
    rows = ["b", "a", None, "b"] if pa.types.is_string_view(kind) else [["b", "a"], None, [], ["b"]]
    path = write(tmp_path / "f.parquet", {"c": pa.array(rows, kind)})
    (_, batch), *_ = parquet.read_chunks(path, ["c"])
    assert batch.column(0).take(pa.array([3, 2, 1, 0])).to_pylist() == rows[::-1]
    if pa.types.is_string_view(kind):
        assert len(set(decode_group(batch.column(0), "c", 0))) == 3
        assert label_kinds(batch.column(0), binary=True) == {"null", "text"}


def test_types_that_writers_choose_are_read_as_plain_ones(tmp_path):
    table = pa.table(
        {
            "id": pa.array([3, 2**40], pa.int64()).cast(pa.decimal128(38, 0)),
            "price": pa.array([1.5, 2.25]).cast(pa.decimal128(10, 2)),
            "level": pa.array([7, 7]).dictionary_encode(),
            "seen": pa.array([[Decimal(3)], [Decimal(2**40), Decimal(1)]], pa.list_(pa.decimal128(38, 0))),
            "scores": pa.array([[Decimal("1.5")], []], pa.large_list(pa.decimal128(9, 1))),
            "view": pa.array([[3], [2**40, 1]], pa.list_view(pa.int64())),
            "large view": pa.array([[1.5], []], pa.large_list_view(pa.float32())),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    ((_, batch),) = parquet.read_chunks(tmp_path / "x.parquet", table.schema.names)
    ids, numbers = {"id": [3, 2**40], "level": [7, 7]}, {"price": [1.5, 2.25]}
    lists = {"seen": [[3], [2**40, 1]], "view": [[3], [2**40, 1]], "scores": [[1.5], []], "large view": [[1.5], []]}
    assert batch.to_pydict() == {**ids, **numbers, **lists}
    for name in ("seen", "scores", "view", "large view"):
        assert decoding.lists(batch[name], name, 0)[1].tolist() == [0, 1, len(lists[name][1]) + 1]


def test_a_decimal_beyond_int64_is_refused(tmp_path):
    pq.write_table(pa.table({"id": pa.array([2**62], pa.int64()).cast(pa.decimal128(38, 0))}), tmp_path / "x.parquet")
    ((_, batch),) = parquet.read_chunks(tmp_path / "x.parquet", ["id"])
    assert batch["id"].to_pylist() == [2**62]
    pq.write_table(pa.table({"id": pa.array([Decimal(10**30)], pa.decimal128(38, 0))}), tmp_path / "y.parquet")
    with raises_naming(DataError, "y.parquet: id"):
        list(parquet.read_chunks(tmp_path / "y.parquet", ["id"]))


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64(), pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("count", [0, 3])
def test_numbers_of_a_slice(kind, count):
    whole = pa.array(np.arange(5).astype(kind.to_pandas_dtype()), kind)
    found = arrow_types.numbers(whole.slice(1, count))
    assert found.dtype == kind.to_pandas_dtype()
    assert found.tolist() == [1, 2, 3][:count]
    assert arrow_types.from_numbers(found).equals(whole.slice(1, count))
    assert arrow_types.from_numbers(found[::-1]).to_pylist() == found.tolist()[::-1]


def test_numbers_of_truth_values():
    assert arrow_types.numbers(pa.array([True, False])).tolist() == [True, False]


@pytest.mark.parametrize("kind", [pa.decimal256(50, 0), pa.decimal32(5, 0), pa.decimal64(9, 2)])
def test_lists_of_decimals_of_every_size(tmp_path, kind):
    table = pa.table({"a": pa.array([[Decimal(3)], []], pa.list_(kind)), "b": pa.array([Decimal(3), None], kind)})
    pq.write_table(table, tmp_path / "x.parquet")
    ((_, batch),) = parquet.read_chunks(tmp_path / "x.parquet", ["a", "b"])
    assert batch.to_pydict() == {"a": [[3], []], "b": [3, None]}
