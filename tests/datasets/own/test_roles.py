"""Columns that have a role or are the label by the usual names of public logs."""

import polars as pl
import pytest

from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.datasets.own.roles import with_names
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.errors import ConfigError
from tests.errors import raises_naming


def names_in(columns, tmp_path, **given):
    pl.DataFrame({name: ["1"] for name in columns}).write_csv(tmp_path / "interactions.csv")
    table = Table([tmp_path / "interactions.csv"], tmp_path / "scratch", "interactions")
    asked = LogOptions.of(given)
    roles = [word.partition("=")[0] for word in given.get("roles", ())]
    asked = with_names(asked, roles, table)
    return asked.user, asked.item, asked.time, *asked.labels


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (["user_id", "item_id", "timestamp", "label"], ("user_id", "item_id", "timestamp")),
        (["user_id", "item_id", "time", "timestamp", "uid", "label"], ("user_id", "item_id", "time")),
        (["userId", "itemID", "Time", "Click"], ("userId", "itemID", "Time", "Click")),
        (["user_id", "userId", "video_id", "date", "ts", "is_click"], ("user_id", "video_id", "ts", "is_click")),
        (["visitor_id", "product_id", "event_time", "clicked"], ("visitor_id", "product_id", "event_time", "clicked")),
        (["user", "adgroup_id", "time_stamp", "clk"], ("user", "adgroup_id", "time_stamp", "clk")),
        (["customer_id", "sku", "date", "target"], ("customer_id", "sku", "date", "target")),
        (["user_id:token", "item_id:token", "timestamp:float", "label:float"],
         ("user_id:token", "item_id:token", "timestamp:float", "label:float")),
    ],
)  # fmt: skip
def test_usual_names(columns, found, tmp_path):
    assert names_in(columns, tmp_path) == found


@pytest.mark.parametrize(
    ("columns", "given", "named"),
    [
        (["user_id", "item_id", "when", "label"], {}, ["time=COLUMN", "when"]),
        (["user_id", "item_id", "ts", "created_at", "label"], {}, ["time=COLUMN", "ts", "created_at"]),
        (["session", "aid", "ts", "label"], {}, ["user=COLUMN", "target=COLUMN"]),
        (["user_id", "item_id", "ts", "clicked", "is_click"], {}, ["--labels clicked", "--labels is_click"]),
        (["userId", "movieId", "rating", "timestamp"], {}, ["--labels rating --positive_from"]),
        (["visitorid", "itemid", "timestamp", "event"], {}, ["--impressions event="]),
        (["user_id", "item_id", "ts", "is_click"], {"negatives": 1}, ["--negatives", "is_click=none"]),
        (["1", "12", "978300760", "0"], {}, ["--header interactions="]),
        (["user_id", "item_id", "label"], {}, ["time=COLUMN", 'frame["time"] = range(len(frame))']),
    ],
)
def test_what_no_name_tells_is_asked_for(columns, given, named, tmp_path):
    with raises_naming(ConfigError, *named):
        names_in(columns, tmp_path, **given)


def test_a_column_to_match_on_may_be_the_item(tmp_path):
    given = {"positives": ["click=clicks.csv"], "match_on": ["request", "asin"]}
    assert names_in(["userId", "asin", "request", "ts"], tmp_path, **given) == ("userId", "asin", "ts")


def test_a_default_label_that_is_left_out_is_none(tmp_path):
    columns = ["user_id", "item_id", "time", "click", "clicked"]
    assert names_in(columns, tmp_path, types=["click=none"])[3:] == ("clicked",)
    columns = ["user_id", "item_id", "time", "clicked", "rating"]  # a threshold is of ratings
    assert names_in(columns, tmp_path, positive_from=4.0)[3:] == ("rating",)
    assert names_in(columns, tmp_path)[3:] == ("clicked",)


def test_options_come_first(tmp_path):
    columns = ["userId", "uid", "movieId", "time", "timestamp", "rating"]
    given = {"roles": ["user=uid", "time=timestamp"], "positive_from": 4.0}
    assert names_in(columns, tmp_path, **given) == ("uid", "movieId", "timestamp", "rating")
    given["types"] = ["rating=numeric"]
    with raises_naming(ConfigError, "rating"):
        names_in(columns, tmp_path, **given)
    assert names_in(columns, tmp_path, roles=["user=uid"], labels=["rating"]) == ("uid", "movieId", "time", "rating")


def test_a_list_whose_entries_have_the_item_is_named(tmp_path):
    rows = [{"user_id": "a", "time": 1, "tags": [{"k": 1}], "items": [{"item_id": "x"}], "label": 1}]
    pl.DataFrame(rows).write_ndjson(tmp_path / "interactions.jsonl")
    table = Table([tmp_path / "interactions.jsonl"], tmp_path / "scratch", "interactions")
    for given, asked in (((), LogOptions()), (("target",), LogOptions(item="items.item_id"))):
        with raises_naming(ConfigError, "items is a list", "explode"):
            with_names(asked, given, table)


def test_all_roles_of_columns_that_do_not_exist_are_named(tmp_path):
    with raises_naming(ConfigError, "--roles user=usr", "'asn'", "--roles group=session"):
        names_in(["user", "asin", "time", "label"], tmp_path, roles=["user=usr", "target=asn", "group=session"])
