"""Item files of a later log, whose items go on after those of training."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.later_items import folder_of_later_log, item_files_of, of_another_base, of_unprepared, refuse_raw
from fuxictr_mm.data.numbering import check_numbering, known_items, to_later_metadata, to_metadata
from fuxictr_mm.data.schema import ITEM_ID, Feature
from fuxictr_mm.data.vocabulary import Vocabularies
from fuxictr_mm.errors import DataError
from fuxictr_mm_serving.prepared import NUMBERING
from tests.errors import raises_naming

FEATURES = [Feature(ITEM_ID, "categorical", "item", vocab_size=3), Feature("price", "numeric", "item")]


def write_items(path, count, metadata):
    path.parent.mkdir(exist_ok=True)
    ids = list(range(1, count + 1))
    table = pa.table({"item_id": ids, "price": [float(number) for number in ids]})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.fixture
def shop(tmp_path):
    return write_items(tmp_path / "shop" / "items.parquet", 2, to_metadata({ITEM_ID: "known"}))


@pytest.fixture
def later(tmp_path):
    (tmp_path / "later" / "test").mkdir(parents=True)
    return write_items(tmp_path / "later" / "items.parquet", 4, to_later_metadata({ITEM_ID: "known"}, 2, "all"))


def test_new_items_have_features_and_no_id(shop, later):
    assert ItemTable.from_parquet(str(shop), FEATURES).num_trained == 3
    items = ItemTable.from_parquet(str(later), FEATURES)
    assert (items.num_items, items.num_trained) == (5, 3)
    rows = items.rows(torch.tensor([2, 3, 4]), [ITEM_ID, "price"])
    assert rows[ITEM_ID].tolist() == [2, 0, 0]
    assert rows["price"].tolist() == [2, 3, 4]
    write_items(shop, 4, None)  # of any other program
    with raises_naming(DataError, shop, "3"):
        ItemTable.from_parquet(str(shop), FEATURES)


def test_rows_are_read_with_the_item_files_beside_them(shop, later):
    vectors = shop.with_name("vectors.parquet")
    files = [str(shop), str(vectors)]
    for rows in (later.parent / "test", later.parent / "test" / "part-00000.parquet"):
        assert folder_of_later_log(str(rows)) == later.parent
        assert item_files_of(str(rows), files) == [str(later), str(vectors)]
    assert item_files_of(str(shop.parent / "test"), files) == files
    assert item_files_of("s3://bucket/rows/test", str(shop)) == [str(shop)]
    assert known_items({}) is None


def test_rows_of_one_later_log_are_not_read_with_the_new_items_of_another(later):
    vocabularies = Vocabularies(path=later.with_name("vocabulary.parquet"))
    rows = later.parent / "test" / "part-00000.parquet"
    for digest, known in (("all", "known"), ("others", "known"), ("all", "others")):
        metadata = to_later_metadata({ITEM_ID: known}, 2, digest)
        if (digest, known) == ("all", "known"):
            check_numbering(str(later), [(rows, metadata)], FEATURES, vocabularies)
            continue
        with raises_naming(DataError, rows, ITEM_ID, later):
            check_numbering(str(later), [(rows, metadata)], FEATURES, vocabularies)


def test_rows_of_a_log_after_another_folder_are_told_which(shop, later):
    """A later log has new items, so its numbers are not those of the run, which is prepared again."""
    (later.parent / "manifest.json").write_text('{"log": {"trained": "data/market"}}')
    (shop.parent / "manifest.json").write_text('{"log": {}}')
    rows, vocabularies = later.parent / "test" / "part-00000.parquet", Vocabularies(path=shop.with_name("vocabulary"))
    vocabularies.settings[NUMBERING] = {ITEM_ID: "others"}
    with raises_naming(DataError, later, "data/market", vocabularies.path):
        check_numbering(str(later), [(rows, to_later_metadata({ITEM_ID: "known"}, 2, "all"))], FEATURES, vocabularies)
    assert of_another_base(str(rows), [str(shop)]) == ""  # of the same items
    write_items(shop, 2, to_metadata({ITEM_ID: "others"}))
    assert f"data/market, expected --like {shop.parent}" in of_another_base(str(rows), [str(shop)])
    assert of_another_base(str(shop), [str(shop)]) == of_another_base(str(rows), None) == ""


def test_rows_that_were_not_prepared_are_told_how(shop, later):
    rows = write_items(shop.with_name("rows.parquet"), 1, None)
    assert of_unprepared(str(rows), [str(shop)]) == ""  # not of a log
    (shop.parent / "manifest.json").write_text('{"log": {}}')
    assert f"--like {shop.parent}" in of_unprepared(str(rows), [str(shop)])
    assert of_unprepared(str(later), [str(shop)]) == ""  # prepared
    pq.write_table(pa.table({"source_row": [0], "user_id": [1]}), rows)  # by another program
    assert "metadata" in of_unprepared(str(rows), [str(shop)])
    assert of_unprepared(str(rows.with_name("none.parquet")), [str(shop)]) == ""
    for name in ("day.csv", "day.JSONL.gz"):
        rows.with_name(name).touch()
        with raises_naming(DataError, name, f"--like {shop.parent}"):
            refuse_raw(str(rows.with_name(name)), [str(shop)])
    for name, items in (("rows.parquet", [str(shop)]), ("day.csv", None), ("no.csv", [str(shop)])):
        refuse_raw(str(rows.with_name(name)), items)


def test_damaged_files_are_named_in_one_line(tmp_path):
    items, rows = tmp_path / "items.parquet", tmp_path / "rows.parquet"
    items.write_bytes(b"damaged")
    rows.write_bytes(b"damaged")
    with raises_naming(DataError, items):
        folder_of_later_log(str(rows))
    assert of_unprepared(str(rows), [str(items)]) == ""  # reading the rows says what is wrong
