"""Columns that leak the label are warned of."""

import re

import polars as pl

from tests.datasets.shop import rewrite


def test_columns_of_items_are_warned_of_where_negatives_copy_them(shop, prepare_log, caplog):
    rewrite(
        shop / "interactions.csv",
        lambda log: log.with_columns(
            brand=pl.col("asin").str.slice(2),
            cost=pl.col("asin").hash() % 97,
            # As prices with discounts, and a brand that is missing in some rows.
            paid=(pl.col("asin").hash() % 97 + pl.col("basket") / 10).round(2),
            maker=pl.when(pl.col("basket") < 27).then(pl.col("asin").str.slice(2)),
            page=pl.col("basket").round(0) % 7 + 0.5,
        ).drop("click"),
    )
    with caplog.at_level("WARNING"):
        prepare_log(shop, negatives=1)
    assert all(f"--types {name}=none" in caplog.text for name in ("brand", "cost", "paid", "maker"))
    assert not any(f"--types {name}=none" in caplog.text for name in ("device", "basket", "page"))


def test_what_is_known_after_the_click_is_warned_of(shop, prepare_log, caplog):
    log = pl.read_csv(shop / "interactions.csv")
    seconds = pl.when(pl.col("click") == 1).then(pl.int_range(pl.len()) * 0.1)
    log.with_columns(seconds=seconds, bought=pl.col("click") * (pl.int_range(pl.len()) % 3 == 0)).write_csv(
        shop / "interactions.csv"
    )
    with caplog.at_level("WARNING"):
        prepare_log(shop)
    assert all(f"--types {name}=none" in caplog.text for name in ("seconds", "bought"))
    assert not any(f"--types {name}=none" in caplog.text for name in ("device", "basket"))
    assert re.search(r"seconds from [\d.]+ to [\d.]+ have", caplog.text)
    assert "bought '1' have" in caplog.text
