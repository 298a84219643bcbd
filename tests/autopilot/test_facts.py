"""What the autopilot measures of a dataset."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.autopilot.facts import look
from fuxictr_mm.data.numbering import to_metadata
from fuxictr_mm.errors import ConfigError, DataError
from tests.arrow import write_partitions
from tests.errors import raises_naming
from tests.paths import TINY


def test_the_facts_by_brute_force(dataset):
    facts = look(dataset)
    tables = {split: pq.read_table(TINY / f"{split}.parquet") for split in facts.rows}
    assert facts.rows == {split: table.num_rows for split, table in tables.items()}
    shown = {split: table["item_id"].to_pylist() for split, table in tables.items()}
    for split in ("valid", "test"):
        cold = np.mean(~np.isin(shown[split], shown["train"]))
        assert facts.cold[split] == pytest.approx(cold)
    lengths = [sum(item != 0 for item in row) for row in tables["train"]["item_seq"].to_pylist()]
    assert facts.history_mean == pytest.approx(np.mean(lengths))
    assert facts.embeddings == {"image": "img_emb_pca8", "text": "txt_emb_pca8"}
    assert "tiny" not in facts.sentence()
    assert f"{facts.cold['valid']:.1%} of valid" in facts.sentence()


def test_the_facts_of_hive_partitions(dataset, tmp_path):
    """Also where the user is the partition, and a part of the items has no rows."""
    paths = {}
    for split in ("train", "valid"):
        write_partitions(pq.read_table(getattr(dataset, f"{split}_data")), "likes_level", tmp_path / split)
        paths[f"{split}_data"] = str(tmp_path / split)
    (tmp_path / "items").mkdir()
    features = pq.read_table(TINY / "item_feature.parquet")
    for part in (0, 1):
        pq.write_table(features[: part * len(features)], tmp_path / "items" / f"{part}.parquet")
    expected = look(dataset)
    found = look(dataset.model_copy(update={**paths, "item_info": [str(tmp_path / "items")]}))
    assert (found.history_mean, found.cold["valid"]) == pytest.approx((expected.history_mean, expected.cold["valid"]))
    assert found.embeddings == {"image": "img_emb_CLIPRN50", "text": "txt_emb_BERT"}
    by_level = dataset.model_copy(update=paths | {"roles": dataset.roles.model_copy(update={"target": "likes_level"})})
    assert look(by_level).cold["valid"] == 0


def test_rows_that_continue_a_log_are_recognised(dataset, tmp_path):
    rows = pq.read_table(TINY / "train.parquet")
    assert not look(dataset).continues
    begun = to_metadata({"user_id": "new"}, {"user_id": {"old": 3}})
    pq.write_table(rows.replace_schema_metadata(begun), tmp_path / "train.parquet")
    assert look(dataset.model_copy(update={"train_data": str(tmp_path / "train.parquet")})).continues


@pytest.mark.parametrize(
    ("user", "label", "negatives"),
    [
        (lambda row: row // 4, lambda row: row % 2, 1),
        (lambda row: -row % 50, lambda row: row // 50 % 3 == 0, 2),
        (lambda row: -row % 20, lambda row: row // 20 % 3 == 0, 0),  # few users may have it by chance
        (lambda row: row // 4, lambda row: row % 2 or row % 40 == 0, 1),  # a tenth of the users lack a negative
        (lambda row: row // 4 if row < 540 else row, lambda row: row % 2, 0),  # 60 of 195 users have one row
        (lambda row: f"u{row // 4}", lambda row: row % 2, 1),
        (lambda row: row // 4 if row < 400 else None, lambda row: row % 2, 1),
        (lambda row: row // 4, lambda row: row // 2 % 3 == 0, 0),  # as often, but not of each user
        (lambda row: row, lambda row: row % 2, 0),
        (lambda row: row // 4, lambda row: 1, 0),
        (lambda row: row // 4, lambda row: row % 4 > 0, 0),
    ],
)
def test_sampled_negatives_are_those_of_which_each_user_has_as_many(dataset, tmp_path, user, label, negatives):
    rows, numbers = pq.read_table(TINY / "train.parquet")[:600], range(600)
    columns = {"user_id": pa.array(map(user, numbers)), "label": pa.array([float(label(n)) for n in numbers])}
    for name, column in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, column)
    pq.write_table(rows, tmp_path / "train.parquet")
    found = look(dataset.model_copy(update={"train_data": str(tmp_path / "train.parquet")}))
    assert found.negatives == negatives
    assert ("sampled" in found.sentence()) is (negatives > 0)


def test_a_valid_split_without_a_user_of_both_classes_has_no_gauc(dataset, tmp_path):
    assert look(dataset).has_gauc
    rows = pq.read_table(TINY / "valid.parquet")
    alone = rows.set_column(rows.column_names.index("user_id"), "user_id", pa.array(range(len(rows))))
    pq.write_table(alone, tmp_path / "valid.parquet")
    found = look(dataset.model_copy(update={"valid_data": str(tmp_path / "valid.parquet")}))
    assert (found.group, found.has_gauc) == ("user_id", False)


def test_a_missing_split_is_named(dataset):
    with pytest.raises(ConfigError, match="valid_data"):
        look(dataset.model_copy(update={"valid_data": None}))


def test_embeddings_of_any_name_count_where_none_tells_its_modality(dataset, tmp_path):
    features = pq.read_table(TINY / "item_feature.parquet")
    for number, name in enumerate(("img_emb_CLIPRN50", "txt_emb_BERT"), 1):
        features = features.rename_columns([f"item_emb_v{number}" if c == name else c for c in features.column_names])
    pq.write_table(features, tmp_path / "items.parquet")
    columns = [
        c if c.type != "embedding" else c.model_copy(update={"name": ["item_emb_v1", "item_emb_v2"]})
        for c in dataset.feature_cols
    ]
    found = look(dataset.model_copy(update={"item_info": [str(tmp_path / "items.parquet")], "feature_cols": columns}))
    assert found.embeddings == {"item_emb_v1": "item_emb_v1", "item_emb_v2": "item_emb_v2"}
    assert "embeddings: item_emb_v1, item_emb_v2." in found.sentence()


def test_the_dim_of_embeddings_that_the_first_items_have_not(dataset, tmp_path):
    features = pq.read_table(TINY / "item_feature.parquet")
    for number, name in enumerate(features.column_names):
        if name != "item_id":
            values = pa.array([None] * 9 + features[name].to_pylist()[9:])
            features = features.set_column(number, name, values)
    pq.write_table(features, tmp_path / "items.parquet")
    found = look(dataset.model_copy(update={"item_info": [str(tmp_path / "items.parquet")]}))
    assert found.embeddings == {"image": "img_emb_CLIPRN50", "text": "txt_emb_BERT"}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda table: table[:0], ["no rows"]),
        (lambda table: table.set_column(2, "item_seq", table["item_id"]), ["item_seq", "int64"]),
        (lambda table: table.set_column(2, "item_seq", table["item_id"].cast("string")), ["item_seq", "string"]),
    ],
)
def test_what_cannot_be_measured_is_named(dataset, tmp_path, change, names):
    table = pq.read_table(TINY / "train.parquet")
    assert table.column_names[2] == "item_seq"
    pq.write_table(change(table), tmp_path / "train.parquet")
    with raises_naming(DataError, "train.parquet", *names):
        look(dataset.model_copy(update={"train_data": str(tmp_path / "train.parquet")}))
