"""Later logs in other forms, and which of their rows are written."""

import numpy as np
import polars as pl
import pytest

from fuxictr_mm.datasets.reader import SPLITS
from fuxictr_mm.errors import ConfigError, DataError
from tests.datasets.logs import START, make_log, write_source
from tests.datasets.own.later_rows import read, values
from tests.datasets.shop import ROLES
from tests.errors import raises_naming


@pytest.mark.parametrize("unit", ["ms", "ns"])
def test_instants_are_compared_whatever_their_form(unit, prepare, tmp_path):
    log, items, users = make_log(8, rows=150)
    text = log.with_columns(time=pl.from_epoch("time").dt.strftime("%Y-%m-%dT%H:%M:%S+00:00"))
    is_old = log["time"] <= START + 110
    base = prepare(write_source(tmp_path / "old", text.filter(is_old), items, users), "shop")
    source = write_source(tmp_path / "new", text, items, users)
    (source / "interactions-0.csv").unlink()
    moments = log.with_columns(time=pl.from_epoch("time").cast(pl.Datetime(unit)))
    moments.write_parquet(source / "interactions-0.parquet")
    later = prepare(source, "later", base)
    rows = pl.read_parquet(later / "test")
    assert len(rows) == (~is_old).sum()
    assert sorted(rows["source_time"].dt.epoch("s")) == sorted(log.filter(~is_old)["time"])
    with raises_naming(DataError, "time", base):
        prepare(write_source(tmp_path / "numbers", log, items, users), "numbers_later", base)


@pytest.mark.parametrize("form", ["lists", "spaces", "python"])
def test_histories_of_the_rows_themselves(form, prepare, tmp_path):
    log, items, _ = make_log(7)
    random = np.random.default_rng(7)
    # An item that only a history has, padding, and more items than are kept.
    seen = [
        None if number % 9 == 0 else ["B-old", *random.choice(items["asin"].to_numpy(), number % 8).tolist()]
        for number in range(len(log))
    ]
    log = log.with_columns(user=pl.when(pl.col("user") != "u-3").then("user"), seen=pl.Series(seen))
    expected = [(row or [])[-5:] for row in seen]
    if form == "spaces":
        log = log.with_columns(pl.col("seen").list.join(" "))
    elif form == "python":
        log = log.with_columns(seen=pl.Series([None if row is None else str(row) for row in seen]))
    log = log.with_columns(row=pl.int_range(pl.len()))
    old, new = log.filter(pl.col("time") <= START + 110), log.filter(pl.col("time") > START + 110)
    source, later = tmp_path / "old", tmp_path / "new"
    for folder, part in ((source, old), (later, new)):
        folder.mkdir()
        if form == "lists":
            part.write_parquet(folder / "interactions.parquet")
        else:
            part.write_csv(folder / "interactions.csv")
    items.write_csv(source / "items.csv")
    base = prepare(source, "shop", roles=[*ROLES, "history=seen"], types=["row=none"])
    next_day = prepare(later, "next", like=base)
    for folder, part in ((base, old), (next_day, new)):
        ids = values(folder, "item_id", "item_id", "source_id")
        rows = pl.concat(
            [pl.read_parquet(folder / split) for split in SPLITS if (folder / split).exists()], how="diagonal"
        )
        assert len(rows) == len(part)
        for at, history in rows.select("source_row", "item_seq").iter_rows():
            assert [ids[item] for item in history] == expected[part["row"][at]]


def test_lists_of_later_items_are_separated_as_before(prepare, tmp_path):
    log, items, users = make_log(9)
    items = items.with_columns(tags=pl.lit("red, green"))
    base = prepare(write_source(tmp_path / "old", log, items, users), "shop", types=["tags=sequence"])
    items, log = items[:1].with_columns(tags=pl.lit("green|red, red")), log.with_columns(pl.col("time") + 10**6)
    later = prepare(write_source(tmp_path / "new", log, items, users), "later", base)
    tags = values(later, "tags")
    rows = pl.read_parquet(later / "items.parquet").filter(pl.col("source_id") == items["asin"][0])
    assert [tags[tag] for tag in rows["tags"][0]] == ["red"]  # training knows red; what it does not know is left out


def test_a_log_of_clicks_goes_on_without_negatives(prepare, tmp_path):
    log, items, users = make_log(9)
    clicks = log.filter(pl.col("click") == 1).drop("click")
    old, new = clicks.filter(pl.col("time") <= START + 110), clicks.filter(pl.col("time") > START + 110)
    base = prepare(write_source(tmp_path / "old", old, items, users), "shop", negatives=1, labels=None)
    assert pl.read_parquet(base / "train")["source_row"].null_count() == len(pl.read_parquet(base / "train")) / 2
    later = prepare(write_source(tmp_path / "new", new, items, users), "later", base)
    both = prepare(write_source(tmp_path / "both", clicks, items, users), "both", negatives=1, labels=None)
    expected = read(both, base, ("train", "valid", "test"), old["time"].max(), labels=False)
    assert len(pl.read_parquet(later / "test")) == len(new)
    assert all(row in expected for row in read(later, base, labels=False))


def test_rows_without_a_user_have_no_history_and_are_in_none(prepare, tmp_path, caplog):
    log, items, users = make_log(12)
    is_anonymous = pl.int_range(pl.len()) % 7 == 3
    late = START + 110
    log = log.with_columns(user=pl.when(~is_anonymous).then("user"))
    old, new = log.filter(pl.col("time") <= late), log.filter(pl.col("time") > late)
    base = prepare(write_source(tmp_path / "old", old, items, users, parts=2), "shop")
    assert f"{old['user'].null_count()} of {len(old)} rows" in caplog.text
    later = prepare(write_source(tmp_path / "new", new, users=users), "later", base)
    clicks = {}
    ordered = log.sort("time", maintain_order=True).filter(pl.col("click") == 1).drop_nulls("user")
    for user, time, asin in ordered.select("user", "time", "asin").iter_rows():
        clicks.setdefault(user, []).append((time, asin))
    rows = [*read(base, base, ("train", "valid", "test")), *read(later, base)]
    assert len(rows) == len(log)
    for row in rows:
        assert row["history"] == [asin for time, asin in clicks.get(row["user"], []) if time < row["time"]][-5:]
    written = pl.read_parquet(later / "test")
    anonymous = written.filter(pl.col("source_user").is_null())
    assert len(anonymous) == new["user"].null_count() > 0
    assert anonymous["user_id"].unique().to_list() == [0]
    assert pl.read_parquet(later / "histories")["source_user"].null_count() == 0


def test_negatives_of_rows_without_a_user_and_a_log_of_no_user(prepare, tmp_path):
    log, items, _ = make_log(13)
    clicks = log.drop("click").with_columns(user=pl.when(pl.int_range(pl.len()) % 5 > 0).then("user"))
    base = prepare(write_source(tmp_path / "clicks", clicks, items), "clicks", labels=None, negatives=1)
    rows = pl.concat([pl.read_parquet(base / split) for split in ("train", "valid", "test")])
    assert rows["label"].mean() == 0.5
    anonymous = rows.filter(pl.col("source_user").is_null())
    assert len(anonymous) == 2 * clicks["user"].null_count()
    assert anonymous["item_seq"].list.len().max() == 0
    none = log.with_columns(user=pl.lit(None, pl.String))
    with raises_naming(DataError, "user", str(len(none))):
        prepare(write_source(tmp_path / "none", none, items), "none")


@pytest.mark.parametrize("first_has_missing", [True, False])
def test_categories_with_missing_values_on_one_day_only(tmp_path, prepare, first_has_missing):
    """A float column of pandas, where 7 is 7.0: the texts are those of the earlier log, with missing values or not."""
    types = None if first_has_missing else ["floor=categorical"]
    for name, has_missing in (("first", first_has_missing), ("later", not first_has_missing)):
        log, _, _ = make_log(1 if name == "first" else 2)
        floor = pl.Series([float(row % 9) for row in range(len(log))])
        if name == "later":
            log = log.with_columns(time=pl.col("time") + 10_000)
        log = log.with_columns(floor=floor)
        if has_missing:
            log = log.with_columns(floor=pl.when(pl.int_range(pl.len()) % 5 > 0).then("floor"))
        (tmp_path / name).mkdir()
        log.write_parquet(tmp_path / name / "interactions.parquet")
    base = prepare(tmp_path / "first", "base", types=types)
    later = prepare(tmp_path / "later", "day", like=base)
    codes = pl.read_parquet(later / "test")["floor"]
    is_known = codes != values(base, "floor").get(None, 0)
    assert is_known.mean() > 0.7
    assert codes.n_unique() > 8


@pytest.mark.parametrize("of_last", [4, 8])
def test_rows_of_a_day_that_the_earlier_log_does_not_end_are_counted(of_last, prepare, tmp_path, caplog):
    """Of times without a time of day: the source holds the last day again, with more rows if it was cut at noon."""
    days = [f"2024-05-{day:02}" for day in range(1, 31) for _ in range(8)]
    log = make_log(6, rows=len(days))[0].with_columns(time=pl.Series(days))
    old = log[: 28 * 8 + of_last]
    base = prepare(write_source(tmp_path / "old", old), "shop")
    with caplog.at_level("WARNING"):
        later = prepare(write_source(tmp_path / "new", log[28 * 8 :]), "later", base)
    assert len(pl.read_parquet(later / "test")) == 8
    (warning,) = [record.getMessage() for record in caplog.records if "not later" in record.getMessage()]
    assert ("8 of 16 rows" in warning, "has 4 rows" in warning) == (True, of_last == 4)


@pytest.mark.parametrize("clicks_only", [False, True])
def test_all_rows_of_a_test_file_of_random_rows_are_written(clicks_only, prepare, tmp_path):
    """Each with the clicks of training before it; what the file holds is in no history."""
    log, items, users = make_log(14)
    log = log.filter(pl.col("click") == 1).drop("click") if clicks_only else log
    is_test = pl.Series(np.random.default_rng(0).random(len(log)) < 0.3)
    train, test = log.filter(~is_test), log.filter(is_test)
    options = {"labels": None, "negatives": 1} if clicks_only else {}
    base = prepare(write_source(tmp_path / "old", train, items, users), "shop", **options)
    given = test if clicks_only else test.drop("click")
    source = write_source(tmp_path / "new", given, items, users, parts=2)
    folder = prepare(source, "test", base, all_rows=True)
    rows = pl.read_parquet(folder / "test").sort("source_row")
    assert rows["source_row"].to_list() == list(range(len(test)))
    assert rows["source_user"].to_list() == test["user"].to_list()
    asins = values(folder, "item_id", "item_id", "source_id")
    clicks = (train if clicks_only else train.filter(pl.col("click") == 1)).sort("time", maintain_order=True)
    for row, (user, asin, time) in zip(
        rows.iter_rows(named=True), test.select("user", "asin", "time").iter_rows(), strict=True
    ):
        before = clicks.filter(pl.col("user") == user, pl.col("time") < time)["asin"].to_list()
        assert (asins[row["item_id"]], [asins[item] for item in row["item_seq"]]) == (asin, before[-5:])
    with raises_naming(ConfigError, "--all_rows", base):
        prepare(source, "after", folder, all_rows=True)
    with raises_naming(ConfigError, "--all_rows", "--like"):
        prepare(source, "first", all_rows=True)


@pytest.mark.slow
def test_files_with_names_may_follow_files_without_a_header(prepare, tmp_path):
    log = make_log(14)[0]
    log = log.sort("time")
    for folder, part in (("old", log[:200]), ("new", log[200:])):
        (tmp_path / folder).mkdir()
        part.write_csv(tmp_path / folder / "interactions.csv", include_header=False)
    log[200:].write_parquet(tmp_path / "new" / "parquet.parquet")
    base = prepare(tmp_path / "old", "shop", header=[f"interactions={','.join(log.columns)}"])
    rows = [
        pl.read_parquet(prepare(tmp_path / "new", name, base, interactions=name + "*") / "test").drop("source_row")
        for name in ("interactions", "parquet")
    ]
    assert rows[0].equals(rows[1])


@pytest.mark.slow
def test_all_rows_have_histories_of_a_label_that_is_a_value(prepare, tmp_path):
    log = make_log(14)[0].with_columns(out=pl.when(pl.col("click") == 1).then(pl.lit("buy")).otherwise(pl.lit("skip")))
    is_test = pl.int_range(len(log)) % 3 == 0
    sources = [
        write_source(tmp_path / name, log.filter(part).select(pl.exclude(without)))
        for name, part, without in (("old", ~is_test, ()), ("new", is_test, ("click", "out")))
    ]
    found = []
    for name, options in (("words", {"labels": ["out=buy"], "history_from": "out=buy"}), ("numbers", {})):
        base = prepare(sources[0], name, types=[f"{'click' if name == 'words' else 'out'}=none"], **options)
        found.append(pl.read_parquet(prepare(sources[1], f"{name}_test", base, all_rows=True) / "test")["item_seq"])
    assert found[0].equals(found[1])


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_all_rows_of_dates_with_times(unit, prepare, tmp_path):
    log, items, users = make_log(15)
    log = log.with_columns(pl.from_epoch("time"))
    base = prepare(write_source(tmp_path / "old", log[::2], items, users), "shop")
    source = write_source(tmp_path / "new", log[:0], items, users)
    for path in source.glob("interactions*"):
        path.unlink()
    test = log[1::2].drop("click").with_columns(pl.col("time").cast(pl.Datetime(unit)))
    test.write_parquet(source / "interactions.parquet")
    rows = pl.read_parquet(prepare(source, "test", base, all_rows=True) / "test").sort("source_row")
    before = log[::2].filter(pl.col("click") == 1)
    lengths = [len(before.filter(pl.col("user") == u, pl.col("time") < t)) for u, t in test[["user", "time"]].rows()]
    assert rows["item_seq"].list.len().to_list() == [min(length, 5) for length in lengths]


@pytest.mark.slow
def test_a_later_log_has_its_own_encoding(tmp_path, prepare):
    log, items, _ = make_log(3, rows=80)
    items = items.with_columns(pl.col("category").replace("tea", "thé"))
    whole = write_source(tmp_path / "whole", log, items)
    base = prepare(whole, "base")
    for name, codec in (("first", "cp1252"), ("later", "utf-16-le")):
        folder = write_source(tmp_path / name, log.with_columns(pl.col("time") + 1000 * (name == "later")), items)
        for path in folder.iterdir():
            path.write_bytes(path.read_text("utf-8").encode(codec))
    first = prepare(tmp_path / "first", "first", encoding="cp1252")
    assert pl.read_parquet(first / "items.parquet").equals(pl.read_parquet(base / "items.parquet"))
    later = prepare(tmp_path / "later", "later", like=first, encoding="utf-16-le")
    assert pl.read_parquet(later / "items.parquet").equals(pl.read_parquet(base / "items.parquet"))
    with raises_naming(DataError, "interactions", "--encoding"):
        prepare(tmp_path / "later", "wrong", like=first, encoding="utf-8")
