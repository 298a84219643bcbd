"""Encoded files are used again, made again when something changes, and never used half-written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.data import fingerprint
from fuxictr_mm.encoding import prepare
from fuxictr_mm.encoding.encode import Encoding
from fuxictr_mm.errors import UserError
from tests.configs import config_of
from tests.encoding.raw import params_of, rows_of, write_csv
from tests.paths import ROOT

NEEDS = {"train": True, "valid": True}


@pytest.fixture
def written(monkeypatch):
    """List the files that are encoded."""
    found = []
    write = Encoding.write

    def listing(self, split, path):
        found.append(Path(split.raw.path).stem)
        write(self, split, path)

    monkeypatch.setattr(Encoding, "write", listing)
    return found


def encode(params, needs=NEEDS, scratch=None, **paths):
    files = {split: paths.get(split, params[f"{split}_data"]) for split in needs}
    return prepare.encode(config_of(params), files, needs, Path(params["data_root"]) / "d", scratch)


def test_encoded_files_are_used_again(folder, written):
    params = params_of(folder)
    first, where = encode(params)
    assert written == ["train", "valid"]
    assert encode(params) == (first, where)
    assert encode({**params, "embedding_dim": 9}) == (first, where)  # decides nothing of the encoding
    assert written == ["train", "valid"]
    encode(params, {"test": False})
    assert written == ["train", "valid", "test"]
    assert where.parent == folder / "ours" / "d"
    names = sorted(path.name.split("-")[0] for path in where.iterdir())
    assert names == ["manifest.json", "test", "train", "valid", "vocabulary.parquet"]


def test_a_change_of_settings_or_files_is_encoded_again(folder, written, caplog):
    caplog.set_level("INFO")
    params = params_of(folder)
    encode(params)
    assert "delete them" not in caplog.text
    encode({**params, "min_categr_count": 2})
    assert written == ["train", "valid"] * 2
    assert f"{folder / 'ours' / 'd'}: 1 encodings" in caplog.text
    write_csv(folder / "train.csv", rows_of(80, 7))
    assert pq.read_metadata(encode(params)[0]["train_data"]).num_rows == 80
    assert written == ["train", "valid"] * 3


def test_contents_count_and_times_do_not(folder, written):
    params = params_of(folder)
    path = folder / "train.csv"
    first, _ = encode(params)
    status = path.stat()
    os.utime(path, (1, 1))
    assert encode(params)[0] == first
    assert written == ["train", "valid"]
    rows = path.read_bytes()
    path.write_bytes(rows[:-2] + (b"0" if rows[-2:-1] == b"1" else b"1") + rows[-1:])  # the last label
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # seen by this process
    assert path.stat().st_size == status.st_size
    assert encode(params)[0]["train_data"] != first["train_data"]
    fingerprint._hash_file.cache_clear()  # as in another process
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert encode(params)[0]["train_data"] != first["train_data"]
    path.write_bytes(rows)
    assert encode(params)[0] == first


def test_a_renamed_partition_is_encoded_again(folder, written):
    day = {"name": "day", "active": True, "dtype": "str", "type": "categorical"}
    params = params_of(folder, [day], train_data=str(folder / "rows"), valid_data=str(folder / "later" / "day=2"))
    for path in ("rows/day=1/a.csv", "later/day=2/a.csv"):
        write_csv(folder / path, rows_of(20))
    first, _ = encode(params)
    assert encode(params)[0] == first
    (folder / "rows" / "day=1").rename(folder / "rows" / "day=2")
    changed, _ = encode(params)
    assert written == ["rows", "day=2"] * 2
    valid = [pq.read_table(found["valid_data"])["day"].to_pylist() for found in (first, changed)]
    assert valid == [[2] * 20, [1] * 20]  # unknown, then known


def test_converted_arrays_are_those_of_the_files(tmp_path):
    path = tmp_path / "train.npz"
    found = []
    for value in (1, 2):
        np.savez(path, x=np.full(3, value))
        os.utime(path, ns=(5, 5))
        fingerprint._hash_file.cache_clear()  # as in another process
        found.append(pq.read_table(prepare.convert({"train": str(path)}, tmp_path)["train_data"])["x"].to_pylist())
    assert found == [[1] * 3, [2] * 3]


def test_a_change_of_validation_keeps_the_training_split(folder, written):
    params = params_of(folder, [{"name": "city", "dtype": "str", "type": "categorical"}])
    encode(params)
    write_csv(folder / "valid.csv", rows_of(30, 7))
    encode(params)
    assert written == ["train", "valid", "valid"]


def test_another_test_file_is_encoded_with_the_same_vocabulary_elsewhere(folder, tmp_path, written):
    params = params_of(folder)
    other = write_csv(tmp_path / "other.csv", rows_of(10, 3))
    kept, _ = encode(params, {"train": True, "test": False})
    changes, _ = encode(params, {"test": False}, tmp_path, test=other)
    assert written == ["train", "test", "other"]
    assert changes["test_data"] == str(tmp_path / "test.parquet")
    assert changes["feature_cols"] == kept["feature_cols"]


@pytest.mark.parametrize("broken", ["manifest.json", "vocabulary.parquet"])
def test_a_damaged_cache_is_made_again(folder, broken):
    params = params_of(folder)
    changes, where = encode(params)
    (where / broken).write_bytes((where / broken).read_bytes()[:20])
    assert encode(params)[0] == changes


KILLED = """
import json, os, signal, sys
from pathlib import Path
from fuxictr_mm.encoding import prepare
from fuxictr_mm.encoding.encode import Encoding
from tests.configs import config_of

params = json.loads(sys.argv[1])
if sys.argv[2] == "kill":
    def write(self, split, path):
        path.write_bytes(b"PAR1 half of a file")
        os.kill(os.getpid(), signal.SIGKILL)
    Encoding.write = write
prepare.encode(config_of(params), {"train": params["train_data"]}, {"train": True}, Path(params["data_root"]) / "d")
"""


def start(params, how):
    import json

    env = {**os.environ, "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", KILLED, json.dumps(params), how], env=env)


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_that_is_used(folder):
    params = params_of(folder)
    assert start(params, "kill").wait() == -9
    changes, where = encode(params)
    assert pq.read_metadata(changes["train_data"]).num_rows == 60
    assert not list(where.glob(".*"))


@pytest.mark.slow
def test_processes_at_once_leave_one_encoding(folder):
    params = params_of(folder)
    processes = [start(params, "live") for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    where = encode(params, {"train": True})[1]
    assert len(list(where.parent.glob("encoded-*"))) == len(list(where.glob("train-*.parquet"))) == 1


def test_a_folder_that_cannot_be_written_is_an_error(folder):
    (folder / "ours").write_text("a file")
    with pytest.raises(UserError, match="ours"):
        encode(params_of(folder))
