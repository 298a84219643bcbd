"""Sizes by footers are those of the loaded dataset."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.errors import DataError, MissingFileError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.plan.footers import measure_data, read_columns
from fuxictr_mm.plan.model import measure_model
from fuxictr_mm.registry import load_model_class
from tests.arrow import write_partitions
from tests.configs import config_of, load_dataset
from tests.errors import raises_naming
from tests.paths import ROOT


@pytest.mark.parametrize("expid", ["DIN_MM_tiny", "DIN_tiny", "DIN_MM_VQ_tiny", "Transformer_DCN_tiny"])
def test_tiny(expid):
    params = Experiment.load(expid, ROOT).config.to_dict()
    found = measure_data(config_of(params))
    dataset = load_dataset(params, {"train": True, "valid": True})
    assert found.num_items == dataset.items.num_items
    assert sum(found.item_bytes.values()) == sum(b.numel() * b.element_size() for b in dataset.items.buffers())
    for split, table in dataset.splits.items():
        assert found.split_rows[split] == len(table)
        # The files pad every history to 20 ids; padding is not kept in memory.
        padding = 4 * (20 * len(table) - table.history_values.numel())
        assert found.split_bytes[split] == pytest.approx(table.num_bytes + padding, abs=100)
    assert found.history == 20
    sizes = {f.name: (f.vocab_size, f.max_len, f.pretrain_dim) for f in dataset.features}
    assert {f.name: (f.vocab_size, f.max_len, f.pretrain_dim) for f in found.features} == sizes


@pytest.fixture
def params(tmp_path):
    """A dataset of texts as ids, ragged histories, part files and 8-bit embeddings."""
    names = [f"item {i}" for i in range(40)]
    generator = np.random.default_rng(0)
    vectors = pa.array(generator.integers(-9, 9, (40, 6)).astype(np.int8).tolist(), pa.list_(pa.int8()))
    (tmp_path / "items").mkdir()
    for part in (0, 1):
        rows = slice(20 * part, 20 * part + 20)
        table = pa.table({"item_id": names[rows], "vector": vectors[rows], "size": [7] * 20})
        pq.write_table(table, tmp_path / "items" / f"part.{part}.parquet", row_group_size=8)
    for split in ("train", "valid"):
        history = [[names[i % 40] for i in range(row % 5)] for row in range(100)]
        rows = {"item_id": names * 2 + names[:20], "item_seq": history, "label": [0, 1] * 50, "price": [1.5] * 100}
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    return {
        "dataset_id": "texts",
        "train_data": str(tmp_path / "train.parquet"),
        "valid_data": str(tmp_path / "valid.parquet"),
        "item_info": str(tmp_path / "items"),
        "label_col": {"name": "label"},
        "feature_cols": [
            {"name": "price", "dtype": "float", "type": "numeric"},
            {"name": "item_id", "dtype": "str", "type": "categorical", "source": "item"},
            {"name": "vector", "dtype": "float", "type": "embedding", "source": "item"},
            {"name": "size", "dtype": "int", "type": "categorical", "source": "item"},
        ],
    }


def test_other_files(params):
    found = measure_data(config_of(params))
    dataset = load_dataset(params, {"train": True, "valid": True})
    assert (found.num_items, dataset.items.num_items) == (41, 41)
    assert found.item_bytes == {"vector": 41 * 6, "size": 41 * 4, "known": 41}
    assert dataset.items.stored("vector").dtype == torch.int8
    for split, table in dataset.splits.items():
        assert found.split_bytes[split] == pytest.approx(table.num_bytes, abs=100)
    assert {f.name: f.vocab_size for f in found.features} == {f.name: f.vocab_size for f in dataset.features}


def test_several_histories_and_labels(params, tmp_path):
    """With the model's batch of them, as the small copy takes it."""
    for split in ("train", "valid"):
        table = pq.read_table(tmp_path / f"{split}.parquet")
        seconds = [[1.5] * len(row) for row in table["item_seq"].to_pylist()]
        table = table.append_column("bought", table["item_seq"]).append_column("seconds", pa.array(seconds))
        pq.write_table(table.append_column("liked", table["label"]), tmp_path / f"{split}.parquet")
    along = {"name": "seconds", "dtype": "float", "type": "sequence", "history": "item_seq"}
    params = {
        **params,
        "model": "DIN",
        "label_col": [{"name": "label"}, {"name": "liked"}],
        "task": ["binary_classification"] * 2,
        "roles": {"histories": ["bought"]},
        "feature_cols": [*params["feature_cols"], along],
    }
    found = measure_data(config_of(params))
    dataset = load_dataset(params, {"train": True, "valid": True})
    for split, table in dataset.splits.items():
        assert found.split_bytes[split] == pytest.approx(table.num_bytes, abs=1000)
    experiment = Experiment(ExperimentConfig.from_dict(params), load_model_class("DIN", ROOT / "model_zoo"))
    assert measure_model(experiment, found.features, found.num_items, found.history).activations[1] > 0


def test_no_row_is_read(params, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a row was read")

    for name in ("read", "read_row_group", "iter_batches"):
        monkeypatch.setattr(pq.ParquetFile, name, refuse)
    assert measure_data(config_of(params)).split_rows == {"train": 100, "valid": 100}


def test_missing_files_and_columns(params, tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        measure_data(config_of({**params, "item_info": "nowhere"}))
    columns = [*params["feature_cols"], {"name": "colour", "dtype": "int", "type": "categorical", "source": "item"}]
    with pytest.raises(DataError, match="colour"):
        measure_data(config_of({**params, "feature_cols": columns}))
    for name in ("item_id", "item_seq", "price", "label"):
        other = pq.read_table(params["train_data"]).drop_columns(name)
        pq.write_table(other, tmp_path / "other.parquet")
        with raises_naming(DataError, "other.parquet", f"'{name}'"):
            measure_data(config_of({**params, "valid_data": str(tmp_path / "other.parquet")}))


def test_a_test_split_needs_no_label(params, tmp_path):
    pq.write_table(pq.read_table(params["valid_data"]).drop_columns("label"), tmp_path / "test.parquet")
    found = measure_data(config_of({**params, "test_data": str(tmp_path / "test.parquet")}))
    assert found.split_bytes["valid"] - found.split_bytes["test"] == 4 * 100


def test_columns_of_part_files(params):
    columns = read_columns(params["item_info"])
    assert (columns["size"].rows, columns["size"].largest) == (40, 7)
    assert columns["vector"].length == 6
    assert columns["item_id"].largest is None


def test_names_with_dots(tmp_path):
    pq.write_table(pa.table({"a": [1, 2], "a.b": [[1], [2, 3]], "c.d": [5, 6]}), tmp_path / "x.parquet")
    columns = read_columns(tmp_path / "x.parquet")
    assert {name: (column.entries, column.largest) for name, column in columns.items()} == {
        "a": (2, 2),
        "a.b": (3, 3),
        "c.d": (2, 6),
    }


def test_columns_of_hive_partitions(tmp_path):
    write_partitions(pa.table({"day": [3, 3, 11], "shop": ["a", "b", "c"], "label": [0, 1, 1]}), "day", tmp_path)
    day = read_columns(tmp_path)["day"]
    assert (day.rows, day.entries, day.smallest, day.largest) == (3, 3, 3, 11)
