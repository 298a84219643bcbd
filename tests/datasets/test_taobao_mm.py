"""Rows of Taobao-MM are those of a plain reading of its miniature, in one file or in shards."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.errors import ConfigError, DataError
from tests.errors import raises_naming


def test_taobao_mm(taobao_mm, prepare, read_split):
    folder, summary, _ = prepare("taobao-mm", taobao_mm, max_len=5)
    items = set(pq.read_table(folder / "items.parquet")["source_id"].to_pylist())
    found = {split: read_split(folder, split) for split in summary.splits}
    for split in ("train", "test"):
        users = {row["129_1"]: row for row in pq.read_table(taobao_mm / f"{split}_user_features.parquet").to_pylist()}
        samples = pq.read_table(taobao_mm / f"{split}_samples.parquet").to_pylist()
        expected = {"train": [], "valid": [], "test": []}
        for row in samples:
            history = [item for item in users[row["129_1"]]["150_2_180"] if item in items][-5:]
            part = "valid" if split == "train" and row["129_1"] % 100 == 0 else split
            expected[part].append((row["129_1"], row["205"], history, row["label_0"][1]))
        for part, wanted in expected.items():
            if part == split or (split == "train" and part == "valid"):
                rows = [(row["user_id"], row["item_id"], row["item_seq"], row["label"]) for row in found[part]]
                assert sorted(rows, key=str) == sorted(wanted, key=str)
    stored = pq.read_table(folder / "scl_emb.parquet")
    original = pq.read_table(taobao_mm / "scl_embedding_int8_p90.parquet")["205_c"].to_pylist()
    assert stored["scl_emb"].to_pylist() == original
    assert str(stored.schema.field("scl_emb").type.value_type) == "int8"
    assert summary.coverage == {"scl_emb": 20 / 30}
    assert sum(split.unknown_items for split in summary.splits.values()) > 0


@pytest.mark.parametrize("form", ["{name}-{part:05d}-of-00012.parquet", "{name}/part-{part}.parquet"])
def test_taobao_shards_are_read_as_one_file(taobao_mm, prepare, read_split, form):
    folder, summary, _ = prepare("taobao-mm", taobao_mm, max_len=5)
    expected = {split: read_split(folder, split) for split in summary.splits}
    vectors = pq.read_table(folder / "scl_emb.parquet")
    for path in list(taobao_mm.glob("*.parquet")):
        table = pq.read_table(path)
        for part in range(12):
            file = taobao_mm / form.format(name=path.stem, part=part)
            file.parent.mkdir(exist_ok=True)
            start, stop = (len(table) * n // 12 for n in (part, part + 1))
            pq.write_table(table.slice(start, stop - start), file)
        path.unlink()
    other, summary, _ = prepare("taobao-mm", taobao_mm, folder="other", max_len=5)
    assert {split: read_split(other, split) for split in summary.splits} == expected
    assert pq.read_table(other / "scl_emb.parquet").equals(vectors)
    pq.write_table(table, taobao_mm / f"{path.stem}.parquet")
    with raises_naming(ConfigError, f"{path.stem}.parquet"):
        prepare("taobao-mm", taobao_mm, folder="again")


def test_taobao_users_without_features_are_said_and_twice_refused(taobao_mm, prepare, caplog):
    path = taobao_mm / "test_user_features.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with caplog.at_level("WARNING"):
        _, summary, _ = prepare("taobao-mm", taobao_mm)
    assert summary.splits["test"].rows + summary.splits["test"].left_out == 3
    assert "3 samples" in caplog.text
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)
    with raises_naming(DataError, "test_user_features.parquet", "-20"):
        prepare("taobao-mm", taobao_mm, folder="other")
