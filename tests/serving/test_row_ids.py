"""Scores have the ids of their rows."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.numbering import for_file
from fuxictr_mm_serving.parquet import split
from fuxictr_mm_serving.prepared import ALL_ITEMS, NUMBERED, NUMBERING
from fuxictr_mm_serving.row_ids import RowIds, as_schema
from tests.errors import raises_naming


def read_ids(path, target="item_id", part_rows=3):
    """Return the ids of all rows, read in parts."""
    parts, first, tables = split(path, part_rows), 0, []
    ids = RowIds(parts, target)
    for part in parts:
        tables.append(ids.of(part, first))
        first += part.rows
    assert len(tables) > 1
    return pa.concat_tables(tables).to_pydict()


def test_other_rows_have_their_columns_and_an_index(tmp_path):
    rows = pa.table({"user_id": ["a", "b", "a", None, "c"], "asin": np.arange(5), "price": np.ones(5)})
    pq.write_table(rows[:2], tmp_path / "part-0.parquet")
    pq.write_table(rows[2:], tmp_path / "part-1.parquet")
    expected = {"user_id": ["a", "b", "a", None, "c"], "asin": [0, 1, 2, 3, 4], "row": [0, 1, 2, 3, 4]}
    assert read_ids(tmp_path, "asin", part_rows=1) == expected
    assert read_ids(tmp_path / "part-1.parquet", "asin", part_rows=1)["row"] == [0, 1, 2]


@pytest.mark.parametrize("has_log", [True, False])
def test_rows_of_prepare_have_the_ids_of_the_owner(has_log, tmp_path):
    for name in ("vocabularies", "test"):
        (tmp_path / name).mkdir()
    pq.write_table(pa.table({"item_id": [2, 1], "source_id": ["B2", "B1"]}), tmp_path / "items.parquet")
    pq.write_table(pa.table({"code": [2, 1], "value": ["v", "u"]}), tmp_path / "vocabularies/user_id.parquet")
    columns = {"user_id": [1, 0, 2, 1], "item_id": [2, 2, 1, 1]}
    log = {"source_user": ["u", "new", "v", "u"], "source_time": [5, 6, 7, 8], "source_row": [3, 1, 0, None]}
    rows = pa.table(columns | (log if has_log else {})).replace_schema_metadata(NUMBERED)
    pq.write_table(rows, tmp_path / "test/part-0.parquet", row_group_size=2)
    found = read_ids(tmp_path / "test", part_rows=1)
    assert found.pop("item_id") == ["B2", "B2", "B1", "B1"]
    assert found.pop("user_id") == (["u", "new", "v", "u"] if has_log else ["u", None, "v", "u"])
    expected = {name: log[name] for name in ("source_time", "source_row")} if has_log else {"row": [0, 1, 2, 3]}
    assert found == expected


def test_rows_that_lost_their_metadata_are_not_taken_for_those_of_the_owner(tmp_path):
    file, numbers = tmp_path / "rows.parquet", SimpleNamespace(columns=[])
    export = SimpleNamespace(is_prepared=True, of_numbers=numbers, manifest=SimpleNamespace(numbering={}))
    rows = pa.table({"user_id": [1], "item_id": [2], "source_row": [3]})
    pq.write_table(rows, file)
    with pytest.raises(ServingError, match=r"rows\.parquet.*metadata"):
        for_file(export, file)
    pq.write_table(rows.replace_schema_metadata(NUMBERED), file)
    assert for_file(export, file) is numbers
    pq.write_table(rows.drop_columns("source_row"), file)
    assert for_file(export, file) is export


def test_rows_of_a_log_after_another_folder_name_it(tmp_path):
    file = tmp_path / "test" / "rows.parquet"
    file.parent.mkdir()
    (tmp_path / "manifest.json").write_text('{"log": {"trained": "data/market"}}')
    manifest = SimpleNamespace(numbering={"item_id": "other"}, extends={}, earlier_items=[])
    export = SimpleNamespace(is_prepared=True, of_numbers=SimpleNamespace(columns=[]), manifest=manifest)
    digests = json.dumps({"item_id": "its", ALL_ITEMS: "all"}).encode()
    rows = pa.table({"item_id": [2]}).replace_schema_metadata({**NUMBERED, NUMBERING.encode(): digests})
    pq.write_table(rows, file)
    with raises_naming(ServingError, file, "data/market", "--like"):
        for_file(export, file)
    (tmp_path / "manifest.json").unlink()
    with raises_naming(ServingError, file, "another folder"):
        for_file(export, file)


def test_ids_of_several_types_are_refused(tmp_path):
    first, second = pa.table({"user_id": [1]}), pa.table({"user_id": ["a"]})
    assert as_schema(pa.table({"user_id": pa.array([1], pa.int32())}), first.schema, tmp_path).equals(first)
    with raises_naming(ServingError, tmp_path, "int64", "string"):
        as_schema(second, first.schema, tmp_path)
