import itertools
import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.data import parquet
from fuxictr_mm.data.groups import decode_group
from fuxictr_mm.data.vocabulary import Vocabulary
from fuxictr_mm.errors import DataError, MissingFileError
from tests.errors import raises_naming

needs_arrow_26 = pytest.mark.skipif(
    int(pa.__version__.split(".")[0]) < 26, reason="older ones cannot read a null among fixed-size lists"
)

ROWS = [[3, 1], None, [], [7], [5, 6, 2]]


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def as_rows(array, row=0):
    flat, offsets = parquet.lists(array, "f: c", row)
    return [flat[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.int16())])
def test_null_lists_are_empty_in_whole_and_sliced_arrays(kind):
    array = pa.array(ROWS, kind)
    expected = [row or [] for row in ROWS]
    assert as_rows(array) == expected
    for start in range(len(ROWS)):
        for stop in range(start, len(ROWS) + 1):
            assert as_rows(array.slice(start, stop - start)) == expected[start:stop]


@pytest.mark.parametrize("ids", [None, ["a", "b"], [5, 6]])
@pytest.mark.parametrize(
    "kind",
    [pa.null(), pa.float64(), pa.string(), pa.large_list(pa.string()), pa.list_(pa.float64()), pa.list_(pa.null()),
     pa.large_list(pa.null()), pa.list_(pa.null(), 0), pa.list_(pa.int64(), 0)],
)  # fmt: skip
def test_histories_that_are_all_empty_have_any_type(kind, ids):
    """As of new users: writers then choose the type."""
    vocabulary = None if ids is None else Vocabulary.build([pa.array(ids)])
    nothing: object = [] if parquet.is_list(kind) else {pa.float64(): np.nan, pa.string(): ""}.get(kind)
    for rows in ([None, None], [nothing, nothing], [nothing, None]):
        items, offsets = parquet.decode_history(pa.array(rows, kind), "f: c", 0, np.ones(3, bool), None, vocabulary)
        assert (items.tolist(), offsets.tolist()) == ([], [0, 0, 0])


def test_lists_of_size_0_in_a_file_say_how_to_write_them(tmp_path):
    path = write(tmp_path / "a.parquet", {"user": [1, 2], "seen": pa.array([[], []], pa.list_(pa.int64(), 0))})
    with raises_naming(DataError, "a.parquet", "seen", "pyarrow.list_"):
        list(parquet.read_chunks(path, ["user", "seen"]))


@pytest.mark.parametrize("rows", [[[1, 2], [3, 4], [5, 6], [7, 8]], [[1, 2], None, [5, 6], None, [0, 9]]])
def test_fixed_size_lists_in_whole_and_sliced_arrays(rows):
    array = pa.array(rows, pa.list_(pa.int64(), 2))
    for start in range(len(rows)):
        for stop in range(start, len(rows) + 1):
            assert as_rows(array.slice(start, stop - start)) == [row or [] for row in rows[start:stop]]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.list_(pa.string_view()), pa.large_list(pa.string_view())])
def test_texts_as_polars_hands_them_over_are_read_as_any(tmp_path, kind):
    """pyarrow has few functions for views: each of these failed on one."""
    rows = ["b", "a", None, "b"] if pa.types.is_string_view(kind) else [["b", "a"], None, [], ["b"]]
    path = write(tmp_path / "f.parquet", {"c": pa.array(rows, kind)})
    (_, batch), *_ = parquet.read_chunks(path, ["c"])
    assert batch.column(0).take(pa.array([3, 2, 1, 0])).to_pylist() == rows[::-1]
    if pa.types.is_string_view(kind):
        assert len(set(decode_group(batch.column(0), "c", 0))) == 3
        assert parquet.label_kinds(batch.column(0), binary=True) == {"null", "text"}


FIXED = pytest.param(pa.list_(pa.int64(), 3), marks=needs_arrow_26)


@pytest.mark.parametrize("kind", [FIXED, pa.list_(pa.int64()), pa.large_list(pa.float64())])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
def test_chunks_that_cross_row_groups_keep_every_row(tmp_path, monkeypatch, kind, chunk):
    rows = [[i, i + 1, i + 2] for i in range(11)]
    rows[4] = None
    path = write(tmp_path / "x.parquet", {"n": list(range(11)), "c": pa.array(rows, kind)}, row_group_size=4)
    monkeypatch.setattr(parquet, "CHUNK_ROWS", chunk)
    numbers, lists, first_rows = [], [], []
    for row, batch in parquet.read_chunks(path, ["c", "n"]):
        first_rows.append(row)
        numbers += parquet.scalars(batch.column("n"), "n", row).tolist()
        lists += as_rows(batch.column("c"))
    assert numbers == list(range(11))
    assert lists == [row or [] for row in rows]
    assert first_rows == list(range(0, 11, chunk))


def test_paths_of_one_file_with_and_without_suffix_and_of_a_folder(tmp_path):
    one = write(tmp_path / "one.parquet", {"n": [1]})
    folder = tmp_path / "many"
    folder.mkdir()
    second, first = (write(folder / f"part-{i}.parquet", {"n": [1, 2]}) for i in (1, 0))
    (folder / "_SUCCESS").write_text("")
    assert parquet.part_files(one) == parquet.part_files(tmp_path / "one") == [one]
    assert parquet.part_files(str(folder)) == [first, second]
    assert parquet.count_rows(folder) == 4
    (tmp_path / "many.parquet" / "nothing").mkdir(parents=True)
    assert parquet.part_files(folder) == [first, second]


def test_the_working_directory_is_a_folder_of_part_files(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", {"n": [1]})
    monkeypatch.chdir(tmp_path)
    assert [p.name for p in parquet.part_files(".")] == ["a.parquet"]


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path / "train.parquet", {"n": [1]})
    with raises_naming(MissingFileError, tmp_path / "trian.parquet", "'train.parquet'"):
        parquet.part_files(tmp_path / "trian.parquet")


def test_a_missing_file_in_a_missing_folder_and_an_empty_folder(tmp_path):
    with raises_naming(MissingFileError, "nowhere/x.parquet"):
        parquet.part_files(tmp_path / "nowhere" / "x.parquet")
    with raises_naming(MissingFileError, tmp_path):
        parquet.part_files(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"user_id,item_id\n1,2\n" * 10])
def test_a_file_that_is_no_parquet(tmp_path, content):
    path = tmp_path / "bad.parquet"
    path.write_bytes(content)
    with raises_naming(DataError, "bad.parquet"):
        parquet.open_parquet(path)


def test_a_file_damaged_in_the_middle(tmp_path):
    path = write(tmp_path / "x.parquet", {"n": np.arange(40_000)}, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[40 : len(content) // 2] = b"\xff" * (len(content) // 2 - 40)
    path.write_bytes(content)
    with raises_naming(DataError, "x.parquet", "row 0"):
        list(parquet.read_chunks(path, ["n"]))


def test_a_missing_column_names_the_nearest(tmp_path):
    path = write(tmp_path / "x.parquet", {"item_id": [1], "likes_level": [2]})
    with raises_naming(DataError, path, "'like_level'", "'likes_level'", "item_id, likes_level"):
        list(parquet.read_chunks(path, ["item_id", "like_level"]))


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (pa.array([0, 3], pa.uint8()), np.int64),
        (pa.array([0.0, 3.0], pa.float32()), np.int64),
        (pa.array([False, True]), np.int64),
    ],
)
def test_whole_numbers_of_any_type(array, dtype):
    values = parquet.scalars(array, "f: c", 0)
    assert values.dtype == dtype
    assert values.tolist() == array.cast(pa.int64()).to_pylist()


@pytest.mark.parametrize(
    ("array", "floating", "found"),
    [
        (pa.array([1, None, 2]), False, ["f: c", "row 11", "null"]),
        (pa.array([1.0, 2.5]), False, ["f: c", "row 11", "2.5"]),
        (pa.array([1.0, 2.0, float("nan")]), False, ["f: c", "row 12", "nan"]),
        (pa.array([1e30]), False, ["f: c", "row 10", "1e+30"]),
        (pa.array([1.0, float("-inf")]), True, ["f: c", "row 11", "-inf"]),
        (pa.array(["a"]), False, ["f: c", "string"]),
        (pa.array([[1]]), True, ["f: c", "list<item: int64>"]),
    ],
)
def test_numbers_that_are_none_say_row_and_value(array, floating, found):
    with raises_naming(DataError, *found):
        parquet.scalars(array, "f: c", 10, floating=floating)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (pa.array([1, 2]), ["f: c", "int64"]),
        (pa.array([["a"]]), ["f: c", "string"]),
        (pa.array([[], [1], None, [None, 2]]), ["f: c", "row 23", "null"]),
        (pa.array([[1, 2], [2, None]], pa.list_(pa.int8(), 2)), ["f: c", "row 21", "null"]),
    ],
)
def test_lists_that_are_none_say_row_and_value(array, found):
    with raises_naming(DataError, *found):
        parquet.lists(array, "f: c", 20)


@pytest.mark.parametrize(
    ("ids", "limit", "row_of", "found"),
    [
        ([0, 5], 5, 7, ["f: c", "row 8", "id 5", "0 to 4"]),
        ([4, 0, -1], 5, np.array([3, 3, 9]), ["f: c", "row 9", "id -1", "0 to 4"]),
        ([2**31], None, 0, ["f: c", "row 0", "id 2147483648", "0 to 2147483647"]),
    ],
)
def test_ids_out_of_range_say_row_value_and_range(ids, limit, row_of, found):
    with raises_naming(DataError, *found):
        parquet.check_ids(np.array(ids), limit, "f: c", row_of)


def test_the_largest_ids_in_range_pass():
    parquet.check_ids(np.array([0, 4]), 5, "f: c", 0)
    parquet.check_ids(np.array([2**31 - 1]), None, "f: c", 0)
    parquet.check_ids(np.array([], dtype=np.int64), 5, "f: c", 0)


@pytest.mark.parametrize(
    ("most_rows", "sizes"),
    [(1, [4, 4, 3]), (6, [4, 4, 3]), (7, [4, 7]), (8, [8, 3]), (10, [8, 3]), (11, [11]), (99, [11])],
)
def test_ranges_are_adjacent_row_groups(tmp_path, most_rows, sizes):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": list(range(11))}), path, row_group_size=4)
    sections = parquet.split_row_groups(path, parquet.open_parquet(path).metadata, most_rows)
    assert [section.num_rows for section in sections] == sizes
    for section in sections:
        chunks = list(parquet.read_chunks(path, ["a"], section))
        assert [row for row, _ in chunks] == [section.row]
        assert chunks[0][1].column(0).to_pylist() == list(range(section.row, section.row + section.num_rows))


def test_part_files_are_in_natural_order_with_partitions_and_without_hidden_files(tmp_path):
    names = ["part.10.parquet", "part.2.parquet", "part.0.parquet", "dt=2024-01-02/part-0.parquet"]
    names += ["part.3.pq", "part.4.parq"]
    names += ["dt=2024-01-10/b.parquet", "dt=2024-01-10/a.PARQUET", "_metadata.parquet", "._part.1.parquet"]
    for name in [*names, "_temporary/dt=1/x.parquet", "old/part.3.parquet", "_SUCCESS"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in parquet.part_files(tmp_path)]
    partitions = ["dt=2024-01-02/part-0.parquet", "dt=2024-01-10/a.PARQUET", "dt=2024-01-10/b.parquet"]
    named = ["part.0.parquet", "part.2.parquet", "part.3.pq", "part.4.parq", "part.10.parquet"]
    assert found == [*partitions, *named]


@pytest.mark.parametrize("name", ["_delta_log", ".hoodie"])
def test_a_table_that_keeps_older_versions_is_refused(tmp_path, name):
    (tmp_path / "part-0.parquet").touch()
    (tmp_path / name).mkdir()
    with raises_naming(DataError, tmp_path):
        parquet.part_files(tmp_path)


def test_a_folder_of_other_subfolders_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.parquet").touch()
    with pytest.raises(MissingFileError, match=re.escape(str(tmp_path))):
        parquet.part_files(tmp_path)


def test_a_column_name_that_occurs_twice_is_refused(tmp_path):
    table = pa.table({"a": [1], "b": [2]}).append_column("a", pa.array([3]))
    pq.write_table(table, tmp_path / "x.parquet")
    assert [batch.column("b").to_pylist() for _, batch in parquet.read_chunks(tmp_path / "x.parquet", ["b"])] == [[2]]
    with raises_naming(DataError, "x.parquet", "'a'"):
        list(parquet.read_chunks(tmp_path / "x.parquet", ["a"]))


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
        assert parquet.lists(batch[name], name, 0)[1].tolist() == [0, 1, len(lists[name][1]) + 1]


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
    found = parquet.numbers(whole.slice(1, count))
    assert found.dtype == kind.to_pandas_dtype()
    assert found.tolist() == [1, 2, 3][:count]
    assert parquet.from_numbers(found).equals(whole.slice(1, count))
    assert parquet.from_numbers(found[::-1]).to_pylist() == found.tolist()[::-1]


def test_numbers_of_truth_values():
    assert parquet.numbers(pa.array([True, False])).tolist() == [True, False]


def test_long_lists_are_read_in_fewer_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 8)
    monkeypatch.setattr(parquet, "CHUNK_VALUES", 40)
    lists = [[0] * 9, [], [1] * 9, [2] * 18] * 3
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": range(12), "list": lists, "a.b": range(12)}), path, row_group_size=5)
    chunks = list(parquet.read_chunks(path, ["id", "list"]))
    assert [row for row, _ in chunks] == [0, 3, 6, 9]  # 10.25 values a row, an empty list counted as one
    assert [n for _, chunk in chunks for n in chunk.column("id").to_pylist()] == list(range(12))
    assert [row for row, _ in parquet.read_chunks(path, ["id"])] == [0, 8]
    assert [row for row, _ in parquet.read_chunks(path, ["list"], max_rows=8)] == [0, 8]


@pytest.mark.parametrize("error", [pa.ArrowNotImplementedError, pa.ArrowCapacityError])
def test_what_arrow_cannot_read_is_one_line(tmp_path, monkeypatch, error):
    """As of a list column of more than 2 GB in a row group: no subclass of its error for damaged files."""
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")

    def fail(*_, **__):
        raise error("Nested data conversions not implemented for chunked array outputs")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with raises_naming(DataError, "x.parquet", "a after row 0", "Nested data"):
        list(parquet.read_chunks(tmp_path / "x.parquet", ["a"]))


@pytest.mark.parametrize("kind", [pa.decimal256(50, 0), pa.decimal32(5, 0), pa.decimal64(9, 2)])
def test_lists_of_decimals_of_every_size(tmp_path, kind):
    table = pa.table({"a": pa.array([[Decimal(3)], []], pa.list_(kind)), "b": pa.array([Decimal(3), None], kind)})
    pq.write_table(table, tmp_path / "x.parquet")
    ((_, batch),) = parquet.read_chunks(tmp_path / "x.parquet", ["a", "b"])
    assert batch.to_pydict() == {"a": [[3], []], "b": [3, None]}
