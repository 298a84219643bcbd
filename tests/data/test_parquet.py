"""Which files a path means, and reading them in chunks."""

import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.data import decoding, parquet
from fuxictr_mm.errors import DataError, MissingFileError
from tests.arrow import skip_unreadable
from tests.errors import raises_naming


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_lists_of_size_0_in_a_file_say_how_to_write_them(tmp_path):
    path = write(tmp_path / "a.parquet", {"user": [1, 2], "seen": pa.array([[], []], pa.list_(pa.int64(), 0))})
    with raises_naming(DataError, "a.parquet", "seen", "pyarrow.list_"):
        list(parquet.read_chunks(path, ["user", "seen"]))


@pytest.mark.parametrize("kind", [pa.list_(pa.int64(), 3), pa.list_(pa.int64()), pa.large_list(pa.float64())])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
def test_chunks_that_cross_row_groups_keep_every_row(tmp_path, monkeypatch, kind, chunk):
    skip_unreadable(kind)
    rows = [[i, i + 1, i + 2] for i in range(11)]
    rows[4] = None
    path = write(tmp_path / "x.parquet", {"n": list(range(11)), "c": pa.array(rows, kind)}, row_group_size=4)
    monkeypatch.setattr(parquet, "CHUNK_ROWS", chunk)
    numbers, lists, first_rows = [], [], []
    for row, batch in parquet.read_chunks(path, ["c", "n"]):
        first_rows.append(row)
        numbers += decoding.scalars(batch.column("n"), "n", row).tolist()
        lists += [row or [] for row in batch.column("c").to_pylist()]
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


HARMLESS = [
    "_SUCCESS", "_metadata", "_common_metadata", "_committed_123", "_started_123", ".part-0.parquet.crc",
    "a.parquet.crc", ".DS_Store", "._a.parquet", "Thumbs.db", "desktop.ini", "~$a.xlsx", "README", "README.md",
    "README.txt", "LICENSE", "LICENSE-2.0", "manifest.json", "schema.yaml", "a.parquet.sha256", "stats.html",
    "a.parquet.gz", "a.csv", "raw.zip", "notes.txt", "Icon\r", "Makefile",
]  # fmt: skip


def test_files_that_hold_no_rows_are_ignored(tmp_path):
    wanted = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1]}), wanted)
    for name in HARMLESS:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("part-00001", "0", "b.csv", "c.parquet.gz"):  # such as markers of folders in an object store
        (tmp_path / name).touch()
    assert parquet.part_files(tmp_path) == [wanted]


@pytest.mark.parametrize(
    "name",
    [
        "b.parquet.gz", "b.csv", "b.csv.gz", "b.feather", "part-00001", "000001_0", "part-00001-1b2c-c000", "b",
        "part.1", "000001_0.gz", "b.parquet.crdownload", "dt=2024-01-01/b.csv",
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_alone", [True, False])
def test_rows_in_files_that_are_not_read_are_named(tmp_path, name, is_alone):
    other = tmp_path / name
    other.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"x": [1]}), other)
    if not is_alone:
        pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(MissingFileError if is_alone else DataError) as raised:
        parquet.part_files(tmp_path)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_compressed_csv_beside_csv_is_named(tmp_path):
    for name in ("a.csv", "a.csv.gz", "README.md"):  # as gunzip -k leaves them
        (tmp_path / name).write_bytes(b"x")
    assert parquet.part_files(tmp_path, ".csv") == [tmp_path / "a.csv"]
    (tmp_path / "b.csv.zst").write_bytes(b"x")
    with pytest.raises(DataError, match=r"b\.csv\.zst"):
        parquet.part_files(tmp_path, ".csv")


@pytest.mark.parametrize(
    ("content", "fix"),
    [
        (b'{"a": 1}\n{"a": 2}\n', "read_ndjson"),
        (b'[{"a": 1}]', "read_json"),
        (b'{\n"a": [1]}', "read_json"),
        (b"\xef\xbb\xbfuser,item\n1,2\n", "read_csv"),
        (b"PAR1 cut off, or of another kind \x00", "again"),
        (b"", "again"),
    ],
)
def test_what_is_no_parquet_says_how_to_read_it(tmp_path, content, fix):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with raises_naming(DataError, path, fix):
        parquet.open_parquet(path)
