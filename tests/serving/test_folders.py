"""Folders of part files: training and serving read the same files, with the same columns of partitions."""

import pytest

from fuxictr_mm.data import parquet
from fuxictr_mm_serving import parquet as served
from fuxictr_mm_serving.folders import partition_values


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"PAR1")
    return folder


def test_both_read_the_same_files_of_a_folder(tmp_path):
    names = ["day=10/a.parquet", "day=9/b.pq", "part-10.parq", "part-2.PARQUET", "part-².parquet", "README.md"]
    hidden = ["~part-1.parquet", "_metadata.parquet", ".a.parquet", "_old/x.parquet", "other/c.parquet"]
    make(tmp_path, *names, *hidden)
    found = [file.relative_to(tmp_path).as_posix() for file in served.part_files(tmp_path)]
    assert found == ["day=9/b.pq", "day=10/a.parquet", "part-2.PARQUET", "part-10.parq", "part-².parquet"]
    assert parquet.part_files(tmp_path) == served.part_files(tmp_path)


@pytest.mark.parametrize(("other", "expected"), [("4", 3), ("x", "3")])
def test_the_type_of_a_partition_is_that_of_all_its_values(tmp_path, other, expected):
    make(tmp_path, "month=1/day=3/a.parquet", f"month=2/day={other}/a.parquet")
    file = tmp_path / "month=1" / "day=3" / "a.parquet"
    values = {name: value for name, (value, _) in partition_values(file).items()}
    assert values == {"month": 1, "day": expected}
    assert {name: value.as_py() for name, value in parquet.partition_columns(file).items()} == values
    assert partition_values(file, ["day", "month"]) == {"month": ("1", False), "day": ("3", False)}
