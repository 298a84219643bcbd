"""The fingerprint of data: what counts as a change."""

import os
from pathlib import Path

from fuxictr_mm.data import fingerprint
from fuxictr_mm.data.fingerprint import changed_data, data_hashes, hash_files
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming


def test_a_hash_is_of_all_parts_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "BLOCKS", 3)
    monkeypatch.setattr(fingerprint, "BLOCK_BYTES", 10)
    found = set()
    for number, place in enumerate((None, 0, 499, 999)):  # in the first block, in one of the middle, in the last
        content = bytearray(1000)
        if place is not None:
            content[place] = 1
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(content)
        found.add(hash_files(path))
    assert len(found) == 4


def test_a_change_anywhere_in_a_csv_file_is_found(tmp_path):
    path = tmp_path / "a.csv"
    content = bytearray(b"0123456,x,0\n" * 400_000)  # 4.6 MiB
    path.write_bytes(content)
    found = {hash_files(path)}
    for place in (0, 300_000, 1_234_567, len(content) - 1):
        changed = content.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        found.add(hash_files(path))
    assert len(found) == 5


def test_many_part_files_share_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "BLOCK_BYTES", 10)
    monkeypatch.setattr(fingerprint, "FOLDER_BLOCKS", 100)

    def found(files):
        """Return whether a change between two of the fewest blocks of the last file is found."""
        folder = tmp_path / str(files)
        folder.mkdir()
        hashes = set()
        for value in (0, 1):
            content = bytearray(400)
            content[15] = value
            for number in range(files):
                (folder / f"{number}.parquet").write_bytes(content if number == files - 1 else bytes(400))
            hashes.add(hash_files(folder))
        return len(hashes) == 2

    assert found(1)
    assert found(2)
    assert not found(100)


def test_partitions_above_the_path_count(tmp_path):
    def written(name):
        path = tmp_path / name / "a.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"a")
        return path

    paths: list[Path] = [written(name) for name in ("x", "y", "one/day=1", "two/day=2", "three/day=1")]
    assert hash_files(paths[0]) == hash_files(paths[1])
    assert len({hash_files(path) for path in paths}) == 3
    assert len({hash_files(path.parent) for path in paths}) == 3


def test_names_and_times_of_files_do_not_count_and_those_of_part_files_do(tmp_path):
    folder = tmp_path / "train"
    for name in ("day=1/a.parquet", "day=2/a.parquet"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(name.encode())
    first = hash_files(folder)
    os.utime(folder / "day=1" / "a.parquet", (1, 1))
    assert hash_files(folder) == first
    (folder / "day=1").rename(folder / "day=3")
    assert hash_files(folder) != first
    (folder / "day=3").rename(folder / "day=1")
    (folder / "day=2" / "b.parquet").write_bytes(b"")
    assert hash_files(folder) != first
    (tmp_path / "copy.parquet").write_bytes((folder / "day=2" / "b.parquet").read_bytes())
    (tmp_path / "other.parquet").write_bytes(b"")
    assert hash_files(tmp_path / "copy.parquet") == hash_files(tmp_path / "other.parquet")
    assert hash_files(tmp_path / "copy.parquet") == hash_files(tmp_path / "copy")  # its suffix left out


def test_changed_data_names_the_setting_and_the_path(tmp_path):
    paths = {name: tmp_path / f"{name}.csv" for name in ("train", "valid", "items", "more", "emb")}
    for path in paths.values():
        path.write_text("a")
    params = {
        "data_format": "csv",
        "train_data": str(paths["train"]),
        "valid_data": str(paths["valid"]),
        "test_data": None,
        "item_info": [str(paths["items"]), str(paths["more"])],
        "feature_cols": [{"name": "ad", "pretrained_emb": str(paths["emb"])}],
    }
    before = data_hashes(params)
    assert len(before) == 5
    assert changed_data(before, params) is None
    for path in paths.values():
        path.write_text("b")
        assert str(path) in (changed_data(before, params) or "")
        path.unlink()
        assert changed_data(before, params) is None  # gone, and not another one
        path.write_text("a")
    assert changed_data({"train_data": "of an older version"}, {**params, "train_data": None}) is None
    assert changed_data(None, params) is None


def test_a_file_that_is_not_read_has_no_part_in_the_hash(tmp_path):
    """Training refuses such a folder, also where its encoding is kept; to compare runs of it needs its hash alone."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    before = data_hashes({"train_data": str(tmp_path)})
    (tmp_path / "stats.csv").write_text("rows\n1\n")
    assert data_hashes({"train_data": str(tmp_path)}) == before
    with raises_naming(DataError, "stats.csv"):
        hash_files(tmp_path)
