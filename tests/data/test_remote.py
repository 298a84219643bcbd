"""Files in an object store are read as those on a disk."""

import fsspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from fuxictr_mm.data import parquet
from fuxictr_mm.data.fingerprint import FEWEST_BLOCKS, changed_data, data_hashes, hash_files
from fuxictr_mm.data.remote import RemotePath, path_of
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.experiment import Experiment
from tests.configs import load_any_dataset as load_dataset
from tests.errors import raises_naming
from tests.paths import ROOT, TINY

ITEMS = ("item_info.parquet", "item_emb.parquet", "item_feature.parquet")


@pytest.fixture
def store():
    """An empty store in memory."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    yield found
    found.store.clear()


def load(folder, **settings):
    """Return an experiment on tiny_mm, of which one split is a folder of part files."""
    paths = {"train_data": f"{folder}/train", "valid_data": f"{folder}/valid.parquet", "test_data": f"{folder}/test"}
    items = [*(f"{folder}/{name}" for name in ITEMS), str(ROOT / "data" / "tiny_mm_derived")]
    return Experiment.load("DIN_MM_tiny", ROOT, item_info=items, **paths, **settings)


@pytest.fixture
def folders(tmp_path, store):
    """tiny_mm on a disk and in a store."""
    for name in ("valid.parquet", "test.parquet", *ITEMS):
        (tmp_path / name).write_bytes((TINY / name).read_bytes())
    rows = pq.read_table(TINY / "train.parquet")
    (tmp_path / "train").mkdir()
    for part, start in enumerate(range(0, 16_000, 1600)):
        pq.write_table(rows.slice(start, 1600), tmp_path / "train" / f"part-{part}.parquet", row_group_size=500)
    for path in tmp_path.rglob("*.parquet"):
        store.pipe(f"/tiny/{path.relative_to(tmp_path)}", path.read_bytes())
    return tmp_path, "memory://tiny"


@pytest.mark.parametrize("resident", [True, False])
def test_training_reads_the_same_rows(folders, resident):
    found = []
    for folder in folders:
        experiment = load(folder, resident=resident, max_len=7, batch_size=700, buffer_rows=4000)
        dataset = experiment.load_dataset({"train": True, "valid": True})
        torch.manual_seed(1)
        model = experiment.build_model(dataset)
        loader = experiment.make_loader(dataset.splits["train"], model, shuffle=True, training=True)
        found.append(list(loader))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours.label, theirs.label)
        assert torch.equal(ours.target, theirs.target)
        assert torch.equal(ours.history.values, theirs.history.values)


@pytest.mark.parametrize("method", ["isdir", "open", "read"])
def test_what_a_store_refuses_is_named(folders, method, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("access denied")

    owner = MemoryFile if method == "read" else MemoryFileSystem
    monkeypatch.setattr(owner, method, refuse)
    with raises_naming(UserError, "memory://tiny/", "access denied"):
        load(folders[1]).load_dataset({"train": True})


@pytest.mark.slow
def test_predictions_are_the_same(folders, tmp_path):
    weights = tmp_path / "weights.model"
    model = load(folders[0])
    model.build_model(model.load_dataset({"valid": True})).save_weights(weights)
    scores = [load(folder).predict(f"{folder}/test.parquet", weights=weights) for folder in folders]
    assert len(scores[0]) > 0
    np.testing.assert_array_equal(*scores)


def test_folders_partitions_and_hashes(store):
    for day in (1, 2):
        with store.open(f"/data/day={day}/part.parquet", "wb") as file:
            pl.DataFrame({"x": [day, 10 * day]}).write_parquet(file)
    files = parquet.part_files("memory://data")
    assert list(map(str, files)) == [f"memory://data/day={day}/part.parquet" for day in (1, 2)]
    assert [batch["day"].to_pylist() for _, batch in parquet.read_rows("memory://data", ["x", "day"])] == [
        [1, 1],
        [2, 2],
    ]
    params = {"train_data": "memory://data"}
    hashes = data_hashes(params)
    assert changed_data(hashes, params) is None
    store.pipe("/data/day=2/part.parquet", b"x")
    assert changed_data(hashes, params) == "train_data: memory://data"
    with raises_naming(DataError, "memory://data/day=2/part.parquet"):
        parquet.count_rows("memory://data")


def test_few_requests_hash_a_file(store, monkeypatch):
    store.pipe("/data/small.parquet", b"x" * 1_000_000)
    store.pipe("/data/large.parquet", b"x" * 5_000_000)
    read = []
    opened = RemotePath.open

    def counting(path, mode="rb"):
        stream = opened(path, mode)
        monkeypatch.setattr(stream, "read", lambda size, read_=stream.read: read.append(size) or read_(size))
        return stream

    monkeypatch.setattr(RemotePath, "open", counting)
    hash_files("memory://data/small.parquet")
    assert len(read) == 2  # the last of them finds the end, which takes no request
    hash_files("memory://data/large.parquet")
    assert len(read) == 2 + FEWEST_BLOCKS


def test_what_is_not_there_is_named(store):
    store.pipe("/data/train.parquet", b"x")
    with raises_naming(MissingFileError, "memory://data/trian.parquet", "train.parquet"):
        parquet.part_files("memory://data/trian.parquet")
    with raises_naming(UserError, "no-such-scheme://x"):
        path_of("no-such-scheme://x/y").is_file()


def test_the_package_of_a_store_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with raises_naming(UserError, "s3://bucket/x", "pip install s3fs"):
        parquet.part_files("s3://bucket/x")


def test_files_that_are_encoded_first_must_be_on_a_disk():
    params = {"dataset_id": "x", "data_format": "csv", "train_data": "memory://tiny/train.csv"}
    with raises_naming(ConfigError, params["train_data"]):
        load_dataset(params, {"train": True}, flat=True)
