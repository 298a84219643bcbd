import numpy as np
import pandas as pd
import pytest
import torch

from fuxictr_mm.data.batch import challenge_format, flat_format, make_formatter
from fuxictr_mm.data.loaders import InMemoryLoader
from tests.configs import load_dataset

NUM_ROWS, NUM_ITEMS, WIDTH = 23, 30, 12
COLUMNS = [
    {"name": "user_id", "type": "meta"},
    {"name": "item_seq", "type": "meta"},
    {"name": ["likes_level", "views_level"], "type": "categorical", "vocab_size": 11},
    {"name": "item_id", "type": "categorical", "source": "item", "vocab_size": NUM_ITEMS + 1},
    {"name": "item_tags", "type": "sequence", "source": "item", "max_len": 5, "vocab_size": 40},
    {"name": "item_emb_d4", "type": "embedding", "source": "item", "embedding_dim": 4},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files as the challenge gives them: left-padded histories and tags, items in the order of their ids from 0."""
    folder = tmp_path_factory.mktemp("views")
    random = np.random.default_rng(0)
    lengths = [0, 1, WIDTH, *random.integers(0, WIDTH + 1, NUM_ROWS - 3)]
    rows = pd.DataFrame(
        {
            "user_id": random.integers(1, 6, NUM_ROWS),
            "item_seq": [[0] * (WIDTH - n) + random.integers(1, NUM_ITEMS + 1, n).tolist() for n in lengths],
            "item_id": random.integers(1, NUM_ITEMS + 1, NUM_ROWS),
            "likes_level": random.integers(0, 11, NUM_ROWS),
            "views_level": random.integers(0, 11, NUM_ROWS),
            "unused": random.integers(0, 3, NUM_ROWS),
            "label": np.arange(NUM_ROWS) % 2,
        }
    )
    vectors = random.normal(size=(NUM_ITEMS + 1, 4)).astype(np.float32)
    tags = random.integers(1, 40, (NUM_ITEMS + 1, 5))
    tags[:, :2] = 0
    vectors[0] = tags[0] = 0
    items = pd.DataFrame(
        {"item_id": range(NUM_ITEMS + 1), "item_tags": tags.tolist(), "item_emb_d4": vectors.tolist(), "unused": 1}
    )
    rows.to_parquet(folder / "train.parquet")
    items.to_parquet(folder / "items.parquet")
    return folder


def load(folder, max_len=WIDTH, **change):
    params = {
        "dataset_id": "d",
        "feature_cols": COLUMNS,
        "label_col": {"name": "label"},
        "group_id": "user_id",
        "embedding_dim": 6,
        "max_len": max_len,
        "item_info": str(folder / "items.parquet"),
        "train_data": str(folder / "train.parquet"),
        **change,
    }
    return load_dataset(params, {"train": True})


def challenge_batch(folder, start, stop, max_len):
    """The baseline's batch by hand: slices of the columns, and the rows of the item frame by position."""
    rows = pd.read_parquet(folder / "train.parquet").iloc[start:stop]
    items = pd.read_parquet(folder / "items.parquet")
    histories = np.stack(rows["item_seq"].to_list())[:, -max_len:]
    asked = np.concatenate([histories, rows["item_id"].to_numpy()[:, None]], axis=1).reshape(-1)
    batch_dict = {name: rows[name].to_numpy() for name in ("user_id", "likes_level", "views_level", "label")}
    item_dict = {
        "item_id": asked,
        "item_tags": np.stack(items["item_tags"].to_list())[asked],
        "item_emb_d4": np.stack(items["item_emb_d4"].to_list())[asked],
    }
    return batch_dict, item_dict, (histories > 0).astype(np.float32)


def assert_columns_equal(ours, expected):
    assert set(ours) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(ours[name].numpy(), values, err_msg=name)


@pytest.mark.parametrize("max_len", [1, 5, WIDTH])
def test_the_challenge_view_equals_the_batch_of_the_baseline(folder, max_len):
    dataset = load(folder, max_len)
    view = make_formatter("challenge", dataset.feature_map, dataset.items, max_len)
    start = 0
    for batch_dict, item_dict, mask in InMemoryLoader(dataset.splits["train"], 7, view=view):
        stop = start + mask.shape[0]
        expected = challenge_batch(folder, start, stop, max_len)
        assert_columns_equal(batch_dict, expected[0])
        assert_columns_equal(item_dict, expected[1])
        np.testing.assert_array_equal(mask.numpy(), expected[2])
        assert mask.dtype == item_dict["item_emb_d4"].dtype == torch.float32
        torch.nn.Embedding(NUM_ITEMS + 1, 2)(item_dict["item_id"])
        torch.nn.Embedding(40, 2)(item_dict["item_tags"])
        torch.nn.Embedding(11, 2)(batch_dict["likes_level"])
        start = stop
    assert start == NUM_ROWS


def test_the_baselines_reshape_puts_the_target_last(folder):
    dataset = load(folder)
    batch = next(iter(InMemoryLoader(dataset.splits["train"], 7)))
    _, item_dict, mask = challenge_format(batch, dataset.feature_map, dataset.items, WIDTH)
    by_row = item_dict["item_id"].view(7, WIDTH + 1)
    assert torch.equal(by_row[:, -1], batch.target.long())
    assert torch.equal(by_row[:, :-1] > 0, mask.bool())


def test_the_jagged_view_is_the_batch_itself(folder):
    dataset = load(folder)
    assert make_formatter("jagged", dataset.feature_map, dataset.items, WIDTH) is None


def test_the_flat_view_is_one_column_per_feature(folder):
    dataset = load(folder)
    batch = next(iter(InMemoryLoader(dataset.splits["train"], 7)))
    rows = pd.read_parquet(folder / "train.parquet").iloc[:7]
    items = pd.read_parquet(folder / "items.parquet").iloc[rows["item_id"]]
    expected = {name: rows[name].to_numpy() for name in ("user_id", "likes_level", "views_level", "label", "item_id")}
    expected |= {name: np.stack(items[name].to_list()) for name in ("item_tags", "item_emb_d4")}
    assert_columns_equal(flat_format(batch, dataset.feature_map, dataset.items, WIDTH), expected)


HISTORY = {"name": "item_seq", "type": "sequence", "share_embedding": "item_id"}


def test_the_flat_view_has_the_history_where_it_is_a_feature(folder):
    dataset = load(folder, 5, feature_cols=[COLUMNS[0], *COLUMNS[2:], HISTORY])
    batch = next(iter(InMemoryLoader(dataset.splits["train"], 7)))
    view = flat_format(batch, dataset.feature_map, dataset.items, 5)
    stored = np.stack(pd.read_parquet(folder / "train.parquet")["item_seq"].to_list())
    np.testing.assert_array_equal(view["item_seq"].numpy(), stored[:7, -5:])


@pytest.mark.parametrize("name", ["challenge", "flat"])
def test_without_labels_and_groups_there_are_no_such_columns(folder, name):
    rows = pd.read_parquet(folder / "train.parquet").drop(columns="label")
    rows.to_parquet(folder / "unlabelled.parquet")
    params = {"feature_cols": COLUMNS, "label_col": {"name": "label"}, "dataset_id": "d", "max_len": WIDTH}
    params |= {"item_info": str(folder / "items.parquet"), "test_data": str(folder / "unlabelled.parquet")}
    dataset = load_dataset(params, {"test": False})
    view = make_formatter(name, dataset.feature_map, dataset.items, WIDTH)
    batch = next(iter(InMemoryLoader(dataset.splits["test"], 4, view=view)))
    columns = batch[0] if name == "challenge" else batch
    assert not {"label", "user_id", None} & set(columns)


@pytest.mark.parametrize("name", ["challenge", "flat"])
def test_features_that_a_model_adds_are_not_asked_of_the_item_files(folder, name):
    dataset = load(folder)
    view = make_formatter(name, dataset.feature_map, dataset.items, WIDTH)
    before = view(next(iter(InMemoryLoader(dataset.splits["train"], 4))))
    dataset.feature_map.features["made"] = {"type": "categorical", "source": "item", "vocab_size": 3}
    after = view(next(iter(InMemoryLoader(dataset.splits["train"], 4))))
    columns = [set(b[1] if name == "challenge" else b) for b in (before, after)]
    assert columns[0] == columns[1]
