"""Amounts: numbers with one unit, read where the rows tell what points and commas mean, and later in the same way."""

import polars as pl
import pytest

from fuxictr_mm.datasets.own.amounts import Form
from fuxictr_mm.datasets.own.base import Base
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming


def table_of(texts, path, separator=",", **options):
    pl.DataFrame({"price": texts, "other": "x"}).write_csv(path / "items.csv", separator=separator)
    return Table([path / "items.csv"], path / "scratch", "items", **options)


@pytest.mark.parametrize(
    ("separator", "texts"),
    [
        (",", ["1.299 €", "899 €"]),
        (";", ["1.299 €", "899 €"]),
        (";", ["$1,299", "$5"]),
        (",", ["4,474 kg", "12,250 kg"]),
        (",", ["12 %", "0.5"]),
        (",", ["5 g", "5 kg"]),
        (";", ["007 kg", "5,5 kg"]),
        (",", ["3g", "4g", "5g"]),
    ],
)
def test_what_may_be_other_numbers_stays_texts(separator, texts, tmp_path):
    table = table_of(texts, tmp_path, separator)
    assert table.frame.collect()["price"].to_list() == texts
    assert not table.forms


@pytest.mark.parametrize(
    ("texts", "numbers", "form"),
    [
        (["$1,299", "$5.50"], [1299.0, 5.5], Form("$", ".")),
        (["4,474 kg", "0,500 kg"], [4.474, 0.5], Form("kg", ",")),
        (["12 %", "-5 %", None], [12.0, -5.0, None], Form("%")),
        (["CHF 5.00", "CHF 1'299.00", "n/a"], [5.0, 1299.0, None], Form("CHF", ".")),
        (["-$5.50", "($1,299.00)"], [-5.5, -1299.0], Form("$", ".")),
    ],
)
def test_the_rows_tell_the_decimal_mark(texts, numbers, form, tmp_path):
    table = table_of(texts, tmp_path, ";")
    found = table.frame.collect()["price"]
    assert (found.to_list(), found.dtype) == (numbers, pl.Float64)  # no integers, which could become categories
    assert table.forms == {"price": form}


@pytest.mark.parametrize(
    ("form", "texts", "numbers"),
    [
        (Form("€", ","), ["1.299 €"], [1299.0]),
        (Form("€", "."), ["1.299 €"], [1.299]),
        (Form("", ","), ["1.299"], [1299.0]),
        (Form("€", ","), ["1.5 €"], ["1.5 €"]),
        (Form(""), ["12 €"], ["12 €"]),
        (Form("g"), ["12 kg"], ["12 kg"]),
    ],
)
def test_a_later_log_is_read_as_the_earlier_one(form, texts, numbers, tmp_path):
    known = {"types": {"price": "numeric"}, "known_forms": {"price": form}}
    assert table_of(texts, tmp_path, ";", **known).frame.collect()["price"].to_list() == numbers


def with_amounts(source, folder, price, discount):
    """Write a copy of the shop with amounts in items and in the log."""
    folder.mkdir(exist_ok=True)
    for name in ("interactions", "items", "users"):
        frame = pl.read_csv(source / f"{name}.csv")
        if name == "items":
            frame = frame.with_columns(cost=pl.Series([price(n) for n in range(len(frame))]))
        if name == "interactions":
            frame = frame.with_columns(discount=pl.Series([discount(n) for n in range(len(frame))]))
        frame.write_csv(folder / f"{name}.csv", separator=";")
    return folder


@pytest.mark.slow
def test_amounts_of_a_later_log(shop, prepare, tmp_path):
    first = with_amounts(shop, tmp_path / "a", lambda n: f"1.{n + 100},50 €", lambda n: f"{n % 3 * 5} %")
    folder = prepare(first, "first")
    columns = {c.source: c for option in ("interactions", "items") for c in Base(folder).columns[option]}
    assert (columns["cost"].form, columns["discount"].form) == (Form("€", ","), Form("%"))
    assert (columns["cost"].kind, columns["discount"].kind) == ("numeric", "numeric")
    # Without decimals, a price may be two numbers; as in the first log, points separate thousands.
    later = prepare(with_amounts(shop, tmp_path / "b", lambda n: f"1.{n + 100} €", lambda n: f"{n % 3 * 5} %"), "later",
                    folder, all_rows=True)  # fmt: skip
    before, after = (pl.read_parquet(path / "items.parquet").sort("item_id") for path in (folder, later))
    found = (before["cost_scaled"] - after["cost_scaled"]).to_list()[:-1]  # the last is in no table of items
    assert found == pytest.approx([0.5 / columns["cost"].std] * len(found), abs=1e-5)
    for price, discount, named in (("1,50 $", "5 %", "cost"), ("1,50 €", "0.05", "discount")):
        other = with_amounts(shop, tmp_path / "c", lambda n, p=price: p, lambda n, d=discount: d)
        with raises_naming(DataError, named):
            prepare(other, "other", folder, all_rows=True, overwrite=True)


def test_paths_are_separated_where_most_texts_are_paths(tmp_path):
    from fuxictr_mm.datasets.own.columns import choose_columns

    for texts, separator in ((["a > b", "c > d, e"], ">"), (["a, b", "c, d > 5"], ",")):
        table = table_of(texts, tmp_path, ";", types={"price": "sequence"})
        columns, _ = choose_columns(table, {"other"}, {"price": "sequence"}, set(), "item_")
        assert columns[0].separator == separator
        (tmp_path / "scratch" / "items-0.parquet").unlink()
