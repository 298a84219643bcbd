"""Rows of LongCTR's datasets are those of a plain reading of a miniature."""

import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.errors import DataError
from fuxictr_mm.yaml_files import load_yaml
from tests.errors import raises_naming


def test_longctr(longctr, prepare, read_split, values_of):
    folder, _, _ = prepare("longctr", longctr, max_len=4)
    sequences = pq.read_table(longctr / "user_info.parquet")["full_item_seq"].to_pylist()
    for split in ("train", "valid", "test"):
        expected = [
            (row["user_index"], row["item_index"], sequences[row["user_index"]][: row["seq_len"]][-4:], row["is_click"])
            for row in pq.read_table(longctr / f"{split}.parquet").to_pylist()
        ]
        rows = read_split(folder, split)
        assert [(r["user_id"], r["item_id"], r["item_seq"], r["is_click"]) for r in rows] == expected
    items = pq.read_table(folder / "items.parquet").to_pylist()
    info = pq.read_table(longctr / "item_info.parquet").to_pylist()[1:]
    code, topic = values_of(folder, "item_code"), values_of(folder, "topics")
    assert [code[item["item_code"]] for item in items] == [row["item_id"] for row in info]
    assert [[topic[t] for t in item["topics"]] for item in items] == [[t for t in row["topics"] if t] for row in info]
    entry = load_yaml(folder / "dataset_config.yaml")[folder.name]
    types = {feature["name"]: feature["type"] for feature in entry["feature_cols"]}
    assert types["item_id"] == "meta"
    assert types["image_emb_dim64"] == "embedding"
    # A value that training does not have is unknown.
    known = set(values_of(folder, "device_type").values())
    devices = pq.read_table(folder / "test")["device_type"].to_pylist()
    raw = pq.read_table(longctr / "test.parquet")["device_type"].to_pylist()
    assert [device == 0 for device in devices] == [value not in known for value in raw]


def test_longctr_names_embeddings_of_several_lengths(longctr, prepare):
    path = longctr / "item_info.parquet"
    table = pq.read_table(path)
    column = table.column_names.index("image_emb_dim64")
    values = table[column].to_pylist()
    values[4] = None
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array([values])[0].values), path)
    assert prepare("longctr", longctr)[1].coverage == {"image_emb_dim64": 18 / 19}
    values[5] = values[5][:2]
    pq.write_table(table.set_column(column, table.schema.field(column), pa.array([values])[0].values), path)
    with raises_naming(DataError, "item_info.parquet", "image_emb_dim64"):
        prepare("longctr", longctr, folder="other")
