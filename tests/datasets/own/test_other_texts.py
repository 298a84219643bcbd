"""Texts among numbers count as missing, keep the column as texts, or are refused; a line says which."""

import polars as pl
import pytest

from fuxictr_mm.datasets.own.amounts import Form
from fuxictr_mm.datasets.own.columns import choose_columns
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming

#: Enough of them are different for a quantity.
MANY = [str(number) for number in range(150)]
DECIMALS = [f"{number}.5" for number in range(30)]


def read(texts, folder, **options):
    pl.DataFrame({"price": texts, "x": 1}).write_csv(folder / "items.csv")
    table = Table([folder / "items.csv"], folder / "scratch", "items", **options)
    return table.frame.collect()["price"].to_list()


@pytest.mark.parametrize(
    ("texts", "others"),
    [
        (MANY, ["on request"]),
        (DECIMALS, ["a lot", "on request"]),
        (DECIMALS, ["inf"]),
        (DECIMALS, ["-Infinity"]),
        ([f"1.{n},50 €" for n in range(100, 130)], ["on request"]),
        ([f"€ {n}" for n in range(100, 130)], ["A price", "n/a €"]),
    ],
)
def test_words_among_many_numbers_are_missing(texts, others, tmp_path, caplog):
    found = read([*texts, *others], tmp_path)
    assert all(isinstance(value, int | float) for value in found[: len(texts)])
    assert found[len(texts) :] == [None] * len(others)
    count = sum("n/a" not in text for text in others)
    [message] = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert f"{count} of {len(texts) + count} values" in message
    assert repr(others[0]) in message
    assert "--types price=categorical" in message


@pytest.mark.parametrize(
    ("texts", "column"),
    [
        ([*DECIMALS[:8], "on request"], "price"),  # too few numbers
        ([*DECIMALS, "12X"], "price"),  # perhaps codes
        ([*MANY, *"ABCDEFGHIJK"], "price"),  # too many words for a missing value
        ([*MANY[:40], "XL"], "price"),  # sizes, of which each integer is a category
        ([*MANY, "unknown"], "shop_id"),
    ],
)
def test_other_columns_stay_texts_and_are_named(texts, column, tmp_path, caplog):
    caplog.set_level("INFO")
    pl.DataFrame({column: texts, "x": 1}).write_csv(tmp_path / "items.csv")
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items")
    assert table.frame.collect()[column].to_list() == texts
    [message] = [record.message for record in caplog.records]
    assert f"1 of {len(texts)} values" in message
    assert f"--types {column}=numeric" in message


def test_numbers_that_are_asked_for_leave_all_other_texts_missing(tmp_path, caplog):
    texts = [*DECIMALS[:6], "12X", "007", "a lot"]
    found = read(texts, tmp_path, types={"price": "numeric"}, numeric=["price"])
    assert found == [float(text) for text in texts[:6]] + [None] * 3
    assert "3 of 9 values" in caplog.text


@pytest.mark.parametrize(
    ("texts", "row"),
    [
        (["1.5", "a", "b"], "row 1: price is 'a'"),
        (["5 kg", "6 kg", "500 g"], "row 0"),
        (["1.5", "2.5", "5 kg"], "row 2"),
    ],
)
def test_numbers_that_are_asked_for_are_refused_where_most_are_none_or_of_another_unit(texts, row, tmp_path):
    pl.DataFrame({"price": texts, "x": 1}).write_csv(tmp_path / "items.csv")
    given = {"types": {"price": "numeric"}, "numeric": ["price"]}
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", **given)
    with raises_naming(DataError, f"items.csv: {row}", "--types price=numeric"):
        choose_columns(table, {"x"}, given["types"], set(), "item_")


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_numbers_that_are_asked_for_are_read_from_texts_of_other_files(form, tmp_path):
    frame = pl.DataFrame({"price": ["1.299,00 €", "5,50 €"], "size": ["1.5", "2"]})
    path = tmp_path / f"items.{form}"
    frame.write_parquet(path) if form == "parquet" else frame.write_ndjson(path)
    table = Table([path], tmp_path / "scratch", "items", types={"price": "numeric"}, numeric=["price"])
    assert table.frame.collect().to_dict(as_series=False) == {"price": [1299.0, 5.5], "size": ["1.5", "2"]}


def test_labels_and_times_may_have_no_other_texts(tmp_path):
    assert read([*MANY, "soon"], tmp_path, strict=["price"]) == [*MANY, "soon"]


@pytest.mark.parametrize(("texts", "found"), [(["3", "on request"], [3, None]), (["3", "12 kg"], ["3", "12 kg"])])
def test_words_are_missing_in_a_later_log(texts, found, tmp_path, caplog):
    known = {"types": {"price": "numeric"}, "known_forms": {"price": Form()}}
    assert read(texts, tmp_path, **known) == found
    assert "--types" not in caplog.text


def test_decimal_commas_in_quotes_are_numbers_if_a_row_has_both_marks(tmp_path):
    assert read(["1.299,00", "5,50"], tmp_path) == [1299.0, 5.5]


def test_the_row_with_both_marks_may_be_the_last(tmp_path):
    assert read([*["5,50"] * 2000, "1.299,00"], tmp_path)[-2:] == [5.5, 1299.0]
