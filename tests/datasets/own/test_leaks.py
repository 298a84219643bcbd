"""Columns that leak the label are warned of."""

import re

import numpy as np
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


def test_repeated_orders_are_warned_of_where_no_negative_is_one(shop, prepare_log, caplog):
    log = pl.read_csv(shop / "interactions.csv").drop("click").unique(["user", "asin"]).sort("time")
    log.write_csv(shop / "interactions.csv")
    with caplog.at_level("WARNING"):
        prepare_log(shop, "once", negatives=1)
    assert "AUC" not in caplog.text
    again = log.with_columns(pl.col("time") + 1)
    pl.concat([log, again]).write_csv(shop / "interactions.csv")
    with caplog.at_level("WARNING"):
        prepare_log(shop, "again", negatives=1)
    assert "--negatives_from matched" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        prepare_log(shop, "matched", negatives=1, negatives_from="matched")
    assert "AUC" not in caplog.text


def test_what_is_known_after_the_click_is_warned_of(shop, prepare_log, caplog):
    log = pl.read_csv(shop / "interactions.csv")
    seconds = pl.when(pl.col("click") == 1).then(pl.int_range(pl.len()) * 0.1)
    bought = pl.col("click") * (pl.int_range(pl.len()) % 3 == 0)
    log.with_columns(seconds=seconds, bought=bought, **{"at all": bought}).write_csv(shop / "interactions.csv")
    with caplog.at_level("WARNING"):
        prepare_log(shop)
    assert all(f"--types {name}=none" in caplog.text for name in ("seconds", "bought", "'at all'"))
    assert not any(f"--types {name}=none" in caplog.text for name in ("device", "basket"))
    assert re.search(r"seconds from [\d.]+ to [\d.]+ have", caplog.text)
    assert "bought '1' have" in caplog.text


def test_a_value_with_label_0_only_is_warned_of_where_few_clicks_do_not_explain_it(tmp_path, prepare_log, caplog):
    random = np.random.default_rng(0)
    rows = 4000
    click = random.integers(0, 2, rows)
    reason = np.where((click == 0) & (random.random(rows) < 0.5), "hidden", "none")
    # 200 rows at the end of a page, of which none is clicked.
    place = np.where((click == 0) & (np.cumsum(click == 0) <= 200), "last", "first")
    pl.DataFrame(
        {
            "user": random.integers(0, 40, rows),
            "asin": random.integers(0, 30, rows),
            "time": random.permutation(rows),
            "click": click,
            "reason": reason,
            "place": place,
            "seconds": np.where(reason == "hidden", 0.5, 1) * random.lognormal(3, 0.1, rows),
        }
    ).write_csv(tmp_path / "interactions.csv")
    with caplog.at_level("WARNING"):
        prepare_log(tmp_path)
    assert "reason 'hidden' have click 0" in caplog.text
    assert "--types reason=none" in caplog.text
    assert re.search(r"seconds from [\d.]+ to [\d.]+ have click 0", caplog.text)
    assert "--types place=none" not in caplog.text


def test_a_number_that_alone_ranks_the_rows_is_warned_of(tmp_path, prepare_log, caplog):
    """Seconds of watching overlap between labels, so no range of them has one label alone."""
    random = np.random.default_rng(0)
    rows = 3000
    click, like = random.integers(0, 2, rows), random.integers(0, 2, rows)
    pl.DataFrame(
        {
            "user": random.integers(0, 40, rows),
            "asin": random.integers(0, 30, rows),
            "time": random.permutation(rows),
            "click": click,
            "like": like,
            "seconds": random.normal(1.5 * click, 1),
            "left": random.normal(-1.5 * like, 1),
            "place": random.normal(0.8 * click, 1),
        }
    ).write_csv(tmp_path / "interactions.csv")
    with caplog.at_level("WARNING"):
        prepare_log(tmp_path, labels=["click", "like"])
    warned = {name for name in ("seconds", "left", "place") if f"--types {name}=none" in caplog.text}
    assert warned == {"seconds", "left"}


def test_a_value_of_one_label_is_warned_of_whichever_label_it_is(shop, prepare_log, caplog):
    log = pl.read_csv(shop / "interactions.csv").sort("time").with_row_index("n")
    late = (pl.col("n") * 7) % 3 == 0
    log = log.with_columns(
        buy=late.cast(pl.Int8), receipt=pl.when(late).then(pl.lit("paper")).otherwise(pl.lit("none"))
    )
    log.drop("n").write_csv(shop / "interactions.csv")
    with caplog.at_level("WARNING"):
        prepare_log(shop, labels=["click", "buy"])
    assert [record.message for record in caplog.records if "receipt" in record.message and "buy" in record.message]
    assert sum("--types receipt=none" in record.message for record in caplog.records) == 1
