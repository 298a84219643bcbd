"""Which ids of items become numbers by a vocabulary, and which are numbers."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.data.schema import Feature
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming


@pytest.mark.parametrize(
    ("ids", "setting", "numbered"),
    [
        ([1, 2, 3], "auto", False),
        ([0, 1, 2], "auto", True),
        ([-1, 1, 2], "auto", True),
        ([1, 2, 2**31], "auto", True),
        ([1, 2, 5_000_000], "auto", True),
        ([1, 2, 999_999], "auto", False),
        (["1", "2", "3"], "auto", True),
        ([1, 2, 3], "vocabulary", True),
    ],
)
def test_a_vocabulary_is_taken_where_ids_cannot_be_numbers(tmp_path, ids, setting, numbered):
    from fuxictr_mm.data.items import ItemTable

    pq.write_table(pa.table({"item_id": ids, "price": [1.5, 2.5, 3.5]}), tmp_path / "i.parquet")
    features = [Feature("item_id", "categorical", "item"), Feature("price", "numeric", "item")]
    vocabularies = Vocabularies()
    items = ItemTable.from_parquet(str(tmp_path / "i.parquet"), features, ids=setting, vocabularies=vocabularies)
    assert ("item_id" in vocabularies) == numbered
    assert items.num_items == (4 if numbered else max(ids) + 1)


def test_a_row_zero_without_features_is_padding(tmp_path):
    from fuxictr_mm.data.items import ItemTable

    table = {
        "item_id": [0, -7, 9],
        "price": [0.0, 2.5, 3.5],
        "v": pa.array([None, [1.0], [2.0]], pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(table), tmp_path / "i.parquet")
    features = [Feature("item_id", "categorical", "item"), Feature("price", "numeric", "item")]
    features.append(Feature("v", "embedding", "item"))
    vocabularies = Vocabularies()
    items = ItemTable.from_parquet(str(tmp_path / "i.parquet"), features, ids="auto", vocabularies=vocabularies)
    assert vocabularies["item_id"].values.to_pylist() == [-7, 9]
    assert items["price"].tolist() == [0, 2.5, 3.5]


@pytest.mark.parametrize(
    ("ids", "setting", "expected"),
    [
        (["a", "a", "b"], "auto", ["a occurs", "2"]),
        (["a", "", "b"], "auto", ["row 1"]),
        (["a", None, "b"], "auto", ["row 1"]),
        (["a", "c", "b"], "as_is", ["string"]),
        ([1, 2**63 + 1, 3], "as_is", ["9223372036854775809"]),
    ],
)
def test_bad_keys_are_named(tmp_path, ids, setting, expected):
    from fuxictr_mm.data.items import ItemTable

    kind = pa.uint64() if ids[0] == 1 else None
    pq.write_table(pa.table({"article": pa.array(ids, kind)}), tmp_path / "i.parquet")
    features = [Feature("item_id", "categorical", "item")]
    with raises_naming(DataError, "i.parquet: article", *expected):
        ItemTable.from_parquet(str(tmp_path / "i.parquet"), features, target="article", ids=setting)


def test_a_null_among_keys_of_text_is_named(tmp_path):
    from fuxictr_mm.data.items import ItemTable

    pq.write_table(pa.table({"item_id": ["a", None]}), tmp_path / "i.parquet")
    with raises_naming(DataError, "item_id", "row 1", "null") as caught:
        ItemTable.from_parquet(str(tmp_path / "i.parquet"), [Feature("item_id", "categorical", "item")], ids="auto")
    assert "number" not in str(caught.value)
