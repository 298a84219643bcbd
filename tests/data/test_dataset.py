import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from tests.configs import load_dataset
from tests.errors import raises_naming

ROWS = {
    "user_id": [7, 7, 8],
    "item_id": [1, 2, 3],
    "item_seq": pa.array([[0, 0, 2], [1, 3, 2], [0, 0, 0]], pa.list_(pa.int64(), 3)),
    "likes_level": [3, 0, 5],
    "label": [0, 1, 1],
}
ITEMS = {
    "item_id": [0, 3, 1, 2],
    "item_tags": [[0, 0], [1, 2], [0, 6], [4, 5]],
    "item_emb": pa.array([[0.0] * 4, [3.0] * 4, [1.0] * 4, [2.0] * 4], pa.list_(pa.float32(), 4)),
}
#: As little as may be written: no vocab_size of items, no pretrain_dim, no max_len of tags.
COLUMNS = [
    {"name": "user_id", "type": "meta"},
    {"name": "item_seq", "type": "meta"},
    {"name": "likes_level", "type": "categorical", "vocab_size": 11},
    {"name": "item_id", "type": "categorical", "source": "item"},
    {"name": "item_tags", "type": "sequence", "source": "item"},
    {"name": "item_emb", "type": "embedding", "source": "item"},
]
BOTH = {"train": True, "test": False}


@pytest.fixture
def params(tmp_path):
    test = {n: c for n, c in ROWS.items() if n != "label"}
    for name, data in {"train": ROWS, "valid": ROWS, "test": test, "items": ITEMS}.items():
        pq.write_table(pa.table(data), tmp_path / f"{name}.parquet")
    paths = {f"{split}_data": str(tmp_path / f"{split}.parquet") for split in ("train", "valid", "test")}
    return {
        "dataset_id": "d",
        "model_id": "m",
        "item_info": str(tmp_path / "items.parquet"),
        "feature_cols": COLUMNS,
        "label_col": {"name": "label"},
        "group_id": "user_id",
        "embedding_dim": 8,
        "max_len": 2,
        **paths,
    }


def without(name):
    return [c for c in COLUMNS if c["name"] != name]


def test_everything_left_out_is_inferred(params, caplog):
    with caplog.at_level(logging.INFO):
        dataset = load_dataset(params, BOTH)
    specs = dataset.feature_map.features
    assert specs["item_id"]["vocab_size"] == dataset.items.num_items == 4
    assert (specs["item_tags"]["vocab_size"], specs["item_tags"]["max_len"]) == (7, 2)
    assert specs["item_emb"]["pretrain_dim"] == 4
    assert dataset.feature_map.num_fields == 4
    assert list(dataset.splits) == ["train", "test"]
    assert dataset.splits["train"].history_values.tolist() == [2, 3, 2]
    assert dataset.splits["train"].label.tolist() == [0, 1, 1]
    assert dataset.splits["test"].label is None
    assert any("train: 3 rows, 1.00 history items each" in r.message for r in caplog.records)


def test_only_the_splits_asked_for_are_read(params):
    params["train_data"] = params["valid_data"] = "nowhere"
    assert list(load_dataset(params, {"test": False}).splits) == ["test"]


def test_nothing_is_said_of_labels_that_are_not_read(params, caplog):
    """``predict --data`` reads them afterwards, for metrics."""
    with caplog.at_level("INFO"):
        load_dataset(params, {"test": None})
    assert not [record for record in caplog.records if "label is" in record.getMessage()]


def test_context_features_need_a_vocab_size_and_the_message_suggests_one(params):
    params["feature_cols"] = [*without("likes_level"), {"name": "likes_level", "type": "categorical"}]
    with raises_naming(ConfigError, "'likes_level'", "train, test", "vocab_size: 6"):
        load_dataset(params, BOTH)


def test_item_ids_are_checked_even_where_the_id_is_no_feature(params):
    params["feature_cols"] = without("item_id")
    dataset = load_dataset(params, BOTH)
    assert dataset.feature_map.features["item_id"]["type"] == "meta"
    assert dataset.feature_map.num_fields == 3
    bad = {**ROWS, "item_id": [1, 9, 2]}
    pq.write_table(pa.table(bad), params["train_data"])
    with raises_naming(DataError, "item_id: row 1", "9"):
        load_dataset(params, BOTH)


def test_an_item_id_that_is_not_said_to_be_the_items_is_refused(params):
    params["feature_cols"] = [*without("item_id"), {"name": "item_id", "type": "categorical", "vocab_size": 4}]
    with raises_naming(ConfigError, "item_id", "source: item"):
        load_dataset(params, BOTH)


def test_the_group_is_known_to_the_feature_map_even_if_no_column_lists_it(params):
    params["feature_cols"] = without("user_id")
    dataset = load_dataset(params, BOTH)
    assert dataset.feature_map.features["user_id"]["type"] == "meta"
    assert dataset.splits["train"].group.tolist() == [7, 7, 8]


def test_the_history_as_a_sequence_has_the_items_vocabulary(params):
    history = {"name": "item_seq", "type": "sequence", "share_embedding": "item_id", "feature_encoder": None}
    params["feature_cols"] = [*without("item_seq"), history]
    spec = load_dataset(params, BOTH).feature_map.features["item_seq"]
    assert (spec["vocab_size"], spec["max_len"]) == (4, 2)

    params["feature_cols"] = [*without("item_seq"), {"name": "item_seq", "type": "sequence", "vocab_size": 3}]
    with raises_naming(ConfigError, "'item_seq'", "vocab_size is 3", "4"):
        load_dataset(params, BOTH)


def test_a_missing_split_and_missing_files_are_named(params, tmp_path):
    with raises_naming(ConfigError, "dataset d", "valid_data"):
        load_dataset({**params, "valid_data": None}, {"valid": True})
    with raises_naming(MissingFileError, "tran", "'train.parquet'"):
        load_dataset({**params, "train_data": str(tmp_path / "tran")}, BOTH)
    with raises_naming(MissingFileError, "item.parquet", "'items.parquet'"):
        load_dataset({**params, "item_info": str(tmp_path / "item.parquet")}, BOTH)


def test_labels_of_a_regression_are_taken_as_they_are(params):
    pq.write_table(pa.table({**ROWS, "label": [1.5, 2.0, 3.5]}), params["train_data"])
    with raises_naming(DataError, "label: row 0 is 1.5"):
        load_dataset(params, BOTH)
    dataset = load_dataset({**params, "task": "regression"}, BOTH)
    assert dataset.splits["train"].label.tolist() == [1.5, 2.0, 3.5]


def test_the_committed_tiny_dataset_loads():
    folder = Path(__file__).parents[2] / "data" / "tiny_mm"
    columns = [
        *COLUMNS[:5],
        {"name": ["txt_emb_pca8", "img_emb_pca8"], "type": "embedding", "source": "item", "embedding_dim": 16},
        {"name": "txt_emb_BERT", "type": "embedding", "source": "item"},
    ]
    files = ["item_info", "item_emb", "item_feature"]
    given = {
        "dataset_id": "tiny_mm",
        "feature_cols": columns,
        "label_col": {"name": "label"},
        "group_id": "user_id",
        "max_len": 20,
        "item_info": [str(folder / f"{name}.parquet") for name in files],
        "train_data": str(folder / "train"),
        "test_data": str(folder / "test"),
    }
    dataset = load_dataset(given, BOTH)
    assert dataset.items.known.all()
    assert dataset.feature_map.features["txt_emb_pca8"]["pretrain_dim"] == 8
    assert dataset.splits["train"].history_values.min() > 0


@pytest.mark.parametrize(("histories", "numbered"), [([[0, 0, 2], [0, 1, 2]], False), ([[2], [1, 0]], True)])
def test_features_of_item_zero_where_histories_are_padded(tmp_path, caplog, histories, numbered):
    """Lists of one length with zeros at an end are padded: 0 is no item, whatever row 0 of the item file holds."""
    pq.write_table(pa.table({"item_id": [0, 1, 2], "level": [5, 6, 7]}), tmp_path / "items.parquet")
    rows = pa.table({"item_id": [1, 2], "item_seq": histories, "label": [0, 1]})
    pq.write_table(rows, tmp_path / "train.parquet")
    params = {
        "dataset_id": "x",
        "train_data": str(tmp_path / "train.parquet"),
        "item_info": str(tmp_path / "items.parquet"),
        "feature_cols": [{"name": "level", "dtype": "int", "type": "categorical", "source": "item", "vocab_size": 9}],
        "label_col": {"name": "label"},
    }
    with caplog.at_level("WARNING"):
        dataset = load_dataset(params, {"train": True})
    assert ("item_id" in dataset.vocabularies) == numbered
    assert dataset.items["level"].tolist() == ([0, 5, 6, 7] if numbered else [0, 6, 7])
    values = dataset.splits["train"].history_values.tolist()
    assert values == ([3, 2, 1] if numbered else [2, 1, 2])
    assert bool(caplog.records) != numbered


@pytest.mark.parametrize("name", ["train", "items"])
def test_a_column_that_occurs_twice_is_refused(tmp_path, name):
    tables = {
        "items": pa.table({"item_id": [1, 2], "level": [6, 7]}),
        "train": pa.table({"item_id": [1, 2], "item_seq": [[2], [1]], "level": [1, 2], "label": [0, 1]}),
    }
    tables[name] = tables[name].append_column("level", tables[name]["level"])
    for file, table in tables.items():
        pq.write_table(table, tmp_path / f"{file}.parquet")
    level = {"name": "level", "dtype": "int", "type": "categorical", "vocab_size": 9}
    params = {
        "dataset_id": "x",
        "train_data": str(tmp_path / "train.parquet"),
        "item_info": str(tmp_path / "items.parquet"),
        "feature_cols": [{**level, "source": "item"} if name == "items" else level],
        "label_col": {"name": "label"},
    }
    with raises_naming(DataError, f"{name}.parquet", "'level'"):
        load_dataset(params, {"train": True})
