"""Labels that are values of a column, and logs of events, against a plain reading of them."""

import numpy as np
import polars as pl
import pytest

from fuxictr_mm.datasets import log as log_module
from fuxictr_mm.datasets.own import buckets
from fuxictr_mm.datasets.own.instants import parse_duration
from fuxictr_mm.datasets.own.options import LogOptions
from fuxictr_mm.errors import ConfigError, DataError
from tests.datasets.logs import START
from tests.datasets.shop import ROLES
from tests.errors import raises_naming

OPTIONS = {"labels": ["event=purchase", "event=cart"], "impressions": ["event=view", "event=ad"]}


def make_events(seed, rows=900):
    """Return a log of events in any order, with ties in time and rows without a user."""
    random = np.random.default_rng(seed)
    users = [None if number > 11 else f"u-{number}" for number in random.integers(0, 13, rows)]
    kinds = random.choice(["view", "ad", "cart", "purchase", "search"], rows, p=[0.5, 0.1, 0.2, 0.1, 0.1])
    return pl.DataFrame(
        {
            "user": pl.Series(users, dtype=pl.String),
            "asin": [f"B{number}" for number in random.integers(0, 6, rows)],
            "time": START + random.integers(0, 200, rows),
            "event": kinds,
            "page": random.choice(["home", "list"], rows),
        }
    )


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "CHUNK_ROWS", 120)
    monkeypatch.setattr(log_module, "PART_ROWS", 16)

    def write(events, folder="events"):
        (tmp_path / folder).mkdir()
        events.write_csv(tmp_path / folder / "interactions.csv")
        return tmp_path / folder

    return write


def labels_of(events, within=None):
    """Return the labels of each impression by its row: an event labels the newest impression that is not later."""
    rows = list(events.with_row_index("row").iter_rows(named=True))
    shown = [row for row in rows if row["event"] in ("view", "ad")]
    found = {row["row"]: {"purchase": 0, "cart": 0} for row in shown}
    for event in rows:
        if event["event"] not in ("purchase", "cart") or event["user"] is None:
            continue
        before = [
            row
            for row in shown
            if (row["user"], row["asin"]) == (event["user"], event["asin"]) and row["time"] <= event["time"]
        ]
        newest = max(before, key=lambda row: (row["time"], row["row"]), default=None)
        if newest is not None and (within is None or event["time"] - newest["time"] <= within):
            found[newest["row"]][event["event"]] = 1
    return found


@pytest.mark.parametrize(("within", "history_from"), [(None, None), (9, "cart"), (9, "event=purchase")])
def test_rows_are_those_of_a_plain_reading(within, history_from, write, prepare_log, read_split):
    events = make_events(int(within or 0))
    options = {"match_within": None if within is None else str(within), "history_from": history_from}
    given = {**OPTIONS, **{name: value for name, value in options.items() if value is not None}}
    folder, summary, _ = prepare_log(write(events), **given)
    expected, rows = labels_of(events, within), events.rows(named=True)
    wanted = {None: ("view", "ad"), "cart": ("cart",), "event=purchase": ("purchase",)}[history_from]
    found = {row["source_row"]: row for split in summary.splits for row in read_split(folder, split)}
    assert found.keys() == expected.keys()
    for number, row in found.items():
        event = rows[number]
        assert {name: row[name] for name in ("purchase", "cart")} == expected[number]
        before = [e for e in rows if e["user"] is not None and e["user"] == event["user"] and e["time"] < event["time"]]
        history = [e["asin"] for e in sorted(before, key=lambda e: e["time"]) if e["event"] in wanted]
        assert row["item_seq"] == history[-100:]
        assert "event" not in row


def test_a_value_labels_each_row(write, prepare_log, read_split, caplog):
    events = make_events(1).filter(pl.col("event") != "ad")
    folder, summary, _ = prepare_log(write(events), labels=["event=cart"])
    found = {row["source_row"]: row["cart"] for split in summary.splits for row in read_split(folder, split)}
    assert found == {number: float(kind == "cart") for number, kind in enumerate(events["event"])}
    assert any("--impressions event=" in record.message for record in caplog.records)


def test_a_label_has_the_name_of_its_column_where_a_column_is_called_so(write, prepare_log):
    events = make_events(1).with_columns(cart=pl.int_range(pl.len()) % 3)
    folder, _, _ = prepare_log(write(events), labels=["event=cart"])
    assert {"event_cart", "cart"} <= set(pl.read_parquet_schema(folder / "train"))


def test_clicks_of_a_log_of_events_get_negatives(write, prepare_log, read_split):
    events = make_events(2, rows=300).filter(pl.col("user").is_not_null())
    events = events.with_columns(asin=pl.Series([f"B{number}" for number in np.arange(len(events)) * 7 % 60]))
    folder, summary, _ = prepare_log(write(events), impressions=["event=view"], negatives=1)
    rows = [row for split in summary.splits for row in read_split(folder, split)]
    views = {number for number, kind in enumerate(events["event"]) if kind == "view"}
    assert {row["source_row"] for row in rows if row["label"] == 1} == views
    assert sum(row["label"] == 0 for row in rows) == len(views)


def test_a_later_day_continues_a_log_of_events(write, prepare, caplog):
    events = make_events(3).sort("time", maintain_order=True)
    bound = START + 150
    # Of the last day, one that no earlier impression precedes.
    old, new = events.filter(pl.col("time") <= bound), events.filter(pl.col("time") > bound)
    base = prepare(write(old, "old"), "base", roles=ROLES, **OPTIONS)
    later = prepare(write(new, "new"), "later", base)
    assert "are not later than" not in caplog.text  # of searches, which are not read
    found = pl.read_parquet(later / "test").sort("source_row")
    expected = labels_of(new)
    assert found["source_row"].to_list() == sorted(expected)
    assert found.select("purchase", "cart").rows(named=True) == [expected[row] for row in sorted(expected)]
    ids = pl.read_parquet(later / "items.parquet").select("item_id", "source_id").rows()
    names = dict(ids)
    first = found.filter(pl.col("source_user").is_not_null()).row(0, named=True)
    shown = events.filter(pl.col("event").is_in(["view", "ad"]), pl.col("user") == first["source_user"])
    history = shown.filter(pl.col("time") < first["source_time"])["asin"].to_list()
    assert [names[item] for item in first["item_seq"]] == history[-5:]
    without = prepare(write(new.filter(pl.col("event") == "view"), "views"), "views only", base)
    assert pl.read_parquet(without / "test")["purchase"].sum() == 0
    with raises_naming(ConfigError, "--all_rows", base):
        prepare(write(new, "again"), "all", base, all_rows=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"labels": ["event=buy"]}, ["event=buy", "purchase"]),
        ({"impressions": ["event=view"]}, ["--labels", "event=purchase"]),
        ({"impressions": ["event=view"], "negatives": 1, "match_within": "9"}, ["--match_within", "--negatives"]),
        ({"labels": ["kind=buy"]}, ["kind=buy", "event"]),
        ({"labels": ["event=cart"], "impressions": ["event=show"]}, ["--impressions event=show", "view"]),
        ({"labels": ["event=cart"], "impressions": ["kind=show"]}, ["--impressions kind=show", "event"]),
        (
            {"labels": ["event=view"], "impressions": ["event=view"]},
            ["--labels event=view", "--impressions event=view"],
        ),
        ({"labels": ["page=home"], "impressions": ["event=view"]}, ["--labels", "home", "--impressions event=view"]),
        ({**OPTIONS, "match_within": "7d"}, ["--match_within 7d"]),
        ({**OPTIONS, "match_within": "soon"}, ["--match_within soon"]),
        ({"labels": ["event"]}, ["row 0", "event", "--labels event=view"]),
    ],
)
def test_values_that_do_not_fit_are_refused(options, named, write, prepare_log):
    with raises_naming((ConfigError, DataError), *named):
        prepare_log(write(make_events(4)), **options)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"impressions": ["view"]}, ["--impressions view"]),
        ({"impressions": ["event=view", "kind=ad"]}, ["--impressions", "event", "kind"]),
    ],
)
def test_options_that_do_not_fit_are_refused(given, named):
    with raises_naming(ConfigError, *named):
        LogOptions.of(given)


def test_events_that_follow_nothing_are_told(write, prepare_log, caplog):
    events = make_events(5)
    apart = events.with_columns(asin=pl.when(pl.col("event") == "cart").then(pl.lit("C") + "asin").otherwise("asin"))
    given = {"labels": ["event=cart"], "impressions": OPTIONS["impressions"]}
    with raises_naming(DataError, "cart"):
        prepare_log(write(apart, "apart"), "none", **given)
    is_apart = (pl.col("event") == "cart") & (pl.int_range(pl.len()) % 2 == 0)
    half = events.with_columns(asin=pl.when(is_apart).then(pl.lit("C")).otherwise("asin"))
    prepare_log(write(half, "half"), "half_out", **given)
    assert any("events cart belong to impressions" in record.message for record in caplog.records)


def test_a_duration_has_the_unit_of_times():
    assert parse_duration("2h", "us", "--x") == 7_200_000_000
    assert parse_duration("90", "ns", "--x") == 90_000_000_000
    assert parse_duration("90", "number", "--x") == 90
