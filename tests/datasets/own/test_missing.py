"""Words that stand for a missing value are no users, no items and no categories."""

import polars as pl
import pytest

from fuxictr_mm.datasets.own.base import Base
from fuxictr_mm.datasets.own.columns import LogColumn, choose_columns, split_lists
from fuxictr_mm.datasets.own.files import LogFiles
from fuxictr_mm.datasets.own.ids import Ids
from fuxictr_mm.datasets.own.missing import words_of_no
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.positives import Positives
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import DataError
from tests.datasets.shop import rewrite
from tests.errors import raises_naming

ASKED = LogOptions(user="user", item="asin", time="time")


def table_of(folder, name="interactions", **columns):
    pl.DataFrame(columns).write_csv(folder / f"{name}.csv")
    return Table([folder / f"{name}.csv"], folder / f"scratch-{name}", name, ["user", "asin", "history"])


def ids_of(log):
    return Ids(ASKED, log, None, None, None)


def test_words_for_no_user_are_anonymous(shop, prepare_log, read_split, caplog):
    words = ["NULL", "nan", "None", "\\N", "NA", "N/A", " null ", "-", "?"]
    number = pl.int_range(pl.len())
    word = pl.lit(pl.Series(words)).gather(number % len(words))
    user = pl.when(number % 5 == 0).then(word).when(number % 5 == 1).then(pl.lit("na")).otherwise("user")
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(user=user))
    folder, summary, _ = prepare_log(shop)
    users = [row["user_id"] for split in summary.splits for row in read_split(folder, split)]
    assert users.count(None) == 60
    assert users.count("na") == 60  # which may be a name
    assert not set(words) & set(users)
    assert "60 of 300 rows" in caplog.text
    assert all(word.strip() in caplog.text for word in words)
    assert any("'na' in 60 rows" in record.message for record in caplog.records)


@pytest.mark.parametrize("word", ["NULL", "nan", "-", "", "none"])
def test_words_for_no_item_are_refused(word, tmp_path):
    log = table_of(tmp_path, user=["a", "b", "c"], asin=["x", word, word])
    with raises_naming(DataError, "interactions.csv: row 1", "asin", repr(word), "2 of this table"):
        ids_of(log).of(log, "target")


def test_short_words_may_be_items(tmp_path, caplog):
    log = table_of(tmp_path, user=["a", "b", "c"], asin=["Nan", "NA", "na"])
    assert log.frame.select(ids_of(log).of(log, "target")).collect()["asin"].to_list() == ["Nan", "NA", "na"]
    assert all(f"asin is {word!r} in 1 rows" in caplog.text for word in ("Nan", "NA", "na"))


def test_words_for_no_item_are_in_no_history(tmp_path):
    log = table_of(tmp_path, user=["a", "b"], asin=["x", "y"], history=["NULL", "x|nan|NA"])
    found = log.frame.select(ids_of(log).histories("history")).collect()["history"]
    assert found.to_list() == [[], ["x", "NA"]]


def test_anonymous_clicks_belong_to_no_row(tmp_path):
    columns = {"user": ["NULL", "NA", "b"], "asin": ["x", "x", "x"], "time": [1, 1, 1]}
    log, clicks = table_of(tmp_path, **columns), table_of(tmp_path, "clicks", **columns)
    missing = {"user": words_of_no("user")}
    found = Positives("click", clicks, ["user", "asin"], "time", missing=missing).find(log, "time")
    assert found.tolist() == [False, False, True]


def test_none_is_a_value_of_other_columns_that_tell_rows_apart(tmp_path):
    columns = {"user": ["a", "a", "b", "b"], "campaign": ["none", "x", "-", None], "time": [1, 1, 1, 1]}
    log, clicks = table_of(tmp_path, **columns), table_of(tmp_path, "clicks", **columns)
    found = Positives("click", clicks, ["user", "campaign"], "time", missing={"user": words_of_no("user")})
    assert found.find(log, "time").tolist() == [True, True, True, False]


def test_categories_have_no_spaces_around_them_and_no_words_for_none(shop, prepare_log, values_of):
    texts = ["ios", "ios ", "NULL", "N/A", "?", "none", "NA", "Nan", "nil"]
    device = pl.lit(pl.Series(texts)).gather(pl.int_range(pl.len()) % len(texts))
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(device=device))
    folder, _, _ = prepare_log(shop)
    assert sorted(values_of(folder, "device").values()) == ["NA", "Nan", "ios", "nil", "none"]


def test_lists_have_no_words_for_none(tmp_path):
    table = table_of(tmp_path, "items", asin=[1, 2, 3], tags=["red|blue ", "NULL", "red|N/A|none"])
    columns, _ = choose_columns(table, {"asin"}, {}, set(), "item_")
    assert split_lists(table.frame.collect(), columns)["tags"].to_list() == [["red", "blue"], [], ["red", "none"]]


def test_categories_of_an_earlier_version_are_read_as_it_wrote_them():
    frame = pl.DataFrame({"device": ["ios ", "NULL"]})
    column = LogColumn("device", "device", "categorical")
    assert frame.select(column.values())["device"].to_list() == ["ios", None]
    assert LogColumn.of_facts("device", column.facts()) == column
    facts = {key: value for key, value in column.facts().items() if key != "clean"}
    assert frame.select(LogColumn.of_facts("device", facts).values())["device"].to_list() == ["ios ", "NULL"]


def test_ids_of_an_earlier_version_stay_ids(tmp_path):
    """It read NULL as a user and none as an item."""
    (tmp_path / "vocabularies").mkdir()
    users, items = tmp_path / "vocabularies" / "user_id.parquet", tmp_path / "items.parquet"
    pl.DataFrame({"code": [1, 2], "value": ["NULL", "b"]}).write_parquet(users)
    pl.DataFrame({"item_id": [1, 2], "source_id": ["none", "x"]}).write_parquet(items)
    base = Base.__new__(Base)
    base.folder = tmp_path
    log = table_of(tmp_path, user=["NULL", "nan", "b"], asin=["none", "x", "x"], history=["none", "x", "nan"])
    ids = Ids(ASKED, log, None, None, base)
    found = log.frame.select(ids.of(log, "user"), ids.of(log, "target"), ids.histories("history")).collect()
    assert found["user"].to_list() == ["NULL", None, "b"]
    assert found["asin"].to_list() == ["none", "x", "x"]
    assert found["history"].to_list() == [["none"], ["x"], []]
    assert ids.missing_users() == ["nan"]
    assert "NULL" not in LogFiles(ASKED, tmp_path, tmp_path, base=base).missing["user"]
