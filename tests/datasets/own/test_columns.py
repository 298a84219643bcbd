"""Types, scales and names of the columns that are written, and which are left out."""

import json
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from fuxictr_mm.commands.prepare import format_summary
from fuxictr_mm.datasets.own.columns import choose_columns
from fuxictr_mm.datasets.own.tables import Table
from fuxictr_mm.datasets.summary import Summary
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.yaml_files import load_yaml
from tests.datasets.shop import rewrite, with_impressions, write_form
from tests.errors import raises_naming


def test_types_of_columns(shop, prepare_log, values_of):
    folder, summary, _ = prepare_log(shop)
    entry = load_yaml(folder / "dataset_config.yaml")[folder.name]
    types = {feature["name"]: feature["type"] for feature in entry["feature_cols"]}
    assert types == {
        "user_id": "categorical", "item_seq": "meta", "device": "categorical", "basket_scaled": "numeric",
        "age": "categorical", "country": "categorical", "item_id": "categorical", "category": "categorical",
        "tags": "sequence", "price_scaled": "numeric", "category_match": "similarity", "tags_match": "similarity",
    }  # fmt: skip
    items = pl.read_parquet(folder / "items.parquet")
    raw = pl.read_csv(shop / "items.csv")
    assert items["source_id"].to_list()[:-1] == raw["asin"].to_list()
    assert items["title"].to_list()[:-1] == raw["title"].to_list()
    tags = values_of(folder, "tags")
    assert [[tags[tag] for tag in row] for row in items["tags"]][:-1] == [row.split("|") for row in raw["tags"]]
    last = items.row(-1, named=True)  # of the log alone
    assert (last["title"], last["category"], last["tags"], last["price_scaled"]) == ("", 0, [], 0)
    assert summary.items == 30
    assert sum(split.left_out for split in summary.splits.values()) == 0


def test_numbers_are_standardised_by_training(shop, prepare_log, read_split):
    folder, _, _ = prepare_log(shop, types=["age=numeric"])
    log = pl.read_csv(shop / "interactions.csv").sort("time")
    items, users = pl.read_csv(shop / "items.csv"), pl.read_csv(shop / "users.csv")
    train = log.filter(pl.col("time") < log["time"][240])
    facts = json.loads((folder / "manifest.json").read_text())["columns"]
    for source, name, values in (
        ("interactions", "basket", train["basket"]),
        ("items", "price", items.filter(pl.col("asin").is_in(train["asin"].implode()))["price"]),
        ("users", "age", users.filter(pl.col("user").is_in(train["user"].implode()))["age"]),
    ):
        found = facts[source]["written"][f"{name}_scaled"]
        assert found["mean"] == pytest.approx(values.mean(), rel=1e-5)
        assert found["std"] == pytest.approx(values.std(ddof=0), rel=1e-5)
    ages = dict(users.select("user", "age").iter_rows())
    age = facts["users"]["written"]["age_scaled"]
    for row in read_split(folder, "test"):
        known = ages.get(row["user_id"])
        expected = 0 if known is None else (known - age["mean"]) / age["std"]
        assert row["age_scaled"] == pytest.approx(expected, abs=1e-5)


def test_names_that_two_files_have_are_told_apart(shop, prepare_log):
    log = pl.read_csv(shop / "interactions.csv").with_columns(
        price=pl.col("basket") * 2, category=pl.lit("a") + pl.col("device")
    )
    log.write_csv(shop / "interactions.csv")
    folder, _, _ = prepare_log(shop)
    assert {"price_scaled", "category"} <= set(pl.read_parquet_schema(folder / "train" / "part-00000.parquet"))
    assert {"item_price_scaled", "item_category"} <= set(pl.read_parquet_schema(folder / "items.parquet"))


def test_columns_without_a_use_are_left_out(shop, prepare_log):
    log = pl.read_csv(shop / "interactions.csv").with_row_index("event")
    log.with_columns(
        event_text=pl.lit("e") + pl.col("event").cast(pl.String), shop=pl.lit("here"), nothing=pl.lit(None)
    ).write_csv(shop / "interactions.csv")
    folder, _, _ = prepare_log(shop, types=["device=none"])
    facts = json.loads((folder / "manifest.json").read_text())["columns"]["interactions"]
    assert set(facts["left_out"]) == {"event", "event_text", "shop", "nothing", "device"}
    assert set(facts["written"]) == {"basket_scaled"}


@pytest.mark.parametrize("mark", [", ", " "])
def test_other_lists_are_read_where_they_are_asked_for(mark, shop, prepare_log, values_of, caplog):
    items = pl.read_csv(shop / "items.csv").with_columns(pl.col("tags").str.replace_all("|", mark, literal=True))
    items.write_csv(shop / "items.csv")
    with caplog.at_level("INFO"):
        prepare_log(shop, folder="category")
    assert ("--types tags=sequence" in caplog.text) == (mark == ", ")  # a space may be that of New York
    folder, _, _ = prepare_log(shop, types=["tags=sequence"])
    tags = values_of(folder, "tags")
    found = [[tags[tag] for tag in row] for row in pl.read_parquet(folder / "items.parquet")["tags"]]
    assert found[: len(items)] == [row.split(mark) for row in items["tags"]]


def test_spaces_do_not_separate_where_there_are_paths(shop, prepare_log, values_of):
    items = pl.read_csv(shop / "items.csv")
    number = pl.int_range(pl.len())
    path = pl.when(number % 3 == 0).then(pl.lit("Shoes > Big Boots")).otherwise(pl.lit("Garden Chairs"))
    items.with_columns(path=path).write_csv(shop / "items.csv")
    folder, _, _ = prepare_log(shop, types=["path=sequence"])
    assert set(values_of(folder, "path").values()) >= {"Shoes", "Big Boots", "Garden Chairs"}


def test_lists_without_a_mark_between_their_entries_are_refused(shop, prepare_log):
    pl.read_csv(shop / "items.csv").with_columns(colour=pl.lit("red")).write_csv(shop / "items.csv")
    with raises_naming(ConfigError, "--types colour=sequence", "items.csv"):
        prepare_log(shop, types=["colour=sequence"])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_dates_are_no_category_and_no_text(form, shop, prepare_log):
    items, log = pl.read_csv(shop / "items.csv"), pl.read_csv(shop / "interactions.csv")
    published = pl.datetime_range(datetime(2024, 1, 1), datetime(2024, 1, 2), "30m", eager=True)[: len(items)]
    items = items.with_columns(published=published, kept=published.dt.strftime("%Y-%m-%d"))
    day = pl.from_epoch("time").dt.date()
    log = log.with_columns(day=day, day_number=20240101 + pl.int_range(pl.len()) % 20)
    log = log.with_columns(day_text=pl.col("day_number").cast(pl.String))  # as of JSON lines
    for name, frame in (("items", items), ("interactions", log)):
        (shop / f"{name}.csv").unlink()
        write_form(frame, shop / name, form)
    folder, _, _ = prepare_log(shop, types=["kept=text"])
    columns = json.loads((folder / "manifest.json").read_text())["columns"]
    assert set(columns["items"]["left_out"]) == {"published"}
    assert set(columns["interactions"]["left_out"]) == {"day", "day_number", "day_text"}
    assert columns["items"]["written"]["kept"]["type"] == "text"


def test_a_category_that_training_does_not_show_is_left_out(shop, prepare_log, caplog):
    with_impressions(shop)
    folder, _, _ = prepare_log(shop)
    facts = json.loads((folder / "manifest.json").read_text())["columns"]["interactions"]
    assert set(facts["left_out"]) == {"impression"}
    assert set(facts["written"]) == {"device", "basket_scaled"}
    assert "impression" not in pl.read_parquet(folder / "train" / "*.parquet").columns
    assert "--roles group=impression" in caplog.text
    kept, _, _ = prepare_log(shop, "kept", types=["impression=categorical"])
    assert "impression" in pl.read_parquet(kept / "test" / "*.parquet").columns


def test_names_of_columns_that_something_else_has(shop, prepare_log, read_split):
    whole, _, _ = prepare_log(shop, folder="whole")
    kinds = pl.Series(["test", "train", "other"] * 100)
    names = {"split": kinds, "type": kinds, "geo.country": kinds}
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(**names))
    folder, summary, _ = prepare_log(shop)
    assert summary.splits["test"].rows == len(read_split(whole, "test"))
    features = load_yaml(folder / "dataset_config.yaml")[folder.name]["feature_cols"]
    assert {"context_split", "context_type", "geo_country"} <= {feature["name"] for feature in features}


def test_what_looks_like_a_number(shop, prepare_log, values_of):
    codes = {
        "large": [2**60 + number % 3 for number in range(300)],
        "larger": [2**65 + number % 3 for number in range(300)],
        "code": [f"e{number % 3}" for number in range(300)],
        "flag": ["yes" if number % 3 else None for number in range(300)],
    }
    texts = {name: pl.Series([None if value is None else str(value) for value in v]) for name, v in codes.items()}
    dashes = pl.Series(["-" if number % 3 else f"{number}.5" for number in range(300)])
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(**texts, dashes=dashes))
    folder, _, _ = prepare_log(shop)
    for name, values in codes.items():
        assert set(values_of(folder, name).values()) == {str(value) for value in values if value is not None}
    facts = json.loads((folder / "manifest.json").read_text())["columns"]["interactions"]["written"]
    assert facts["dashes_scaled"]["mean"] > 0


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_fields_of_structs_are_columns(form, shop, prepare_log, read_split, tmp_path):
    source = tmp_path / "nested"
    source.mkdir()
    log = pl.read_csv(shop / "interactions.csv")
    app = pl.struct(device="device", basket="basket")
    log = log.select("user", "asin", "time", feedback=pl.struct("click"), ctx=pl.struct(app=app))
    write_form(log, source / "interactions", form)
    folder, _, _ = prepare_log(source, labels=["feedback.click"])
    names = set(pl.read_parquet_schema(folder / "train" / "part-00000.parquet"))
    assert {"feedback.click", "ctx_app_device", "ctx_app_basket_scaled"} <= names


@pytest.mark.parametrize("name", ["app.device", "app"])
def test_a_field_with_the_name_of_a_column_is_refused(name, shop, prepare_log):
    log = pl.read_csv(shop / "interactions.csv").with_columns(app=pl.struct(device="device"))
    if name == "app":
        log = log.with_columns(app=pl.struct("app", **{"app.device": "device"}))
    else:
        log = log.with_columns(pl.col("device").alias(name))
    (shop / "interactions.csv").unlink()
    log.write_parquet(shop / "interactions.parquet")
    with raises_naming(DataError, "interactions.parquet", "'device'" if name != "app" else "app.device", "rename"):
        prepare_log(shop)


@pytest.mark.parametrize(("texts", "is_named"), [("tags", True), ("titles", False)])
def test_texts_of_tags_are_named(texts, is_named, tmp_path, caplog):
    """Where nearly all combinations of tags are different, they are no category."""
    colors = ["red", "blue", "green", "black", "white", "grey", "pink"]
    lists = [", ".join(c for at, c in enumerate(colors) if number >> at & 1) for number in range(1, 128)]
    lists = lists if texts == "tags" else [f"part {number}, thing {number}" for number in range(127)]
    pl.DataFrame({"asin": range(127), "colors": lists}).write_csv(tmp_path / "items.csv")
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", ["asin"])
    with caplog.at_level("INFO"):
        [column], _ = choose_columns(table, {"asin"}, {}, set(), "item_")
    assert column.kind == "text"
    assert ("--types colors=sequence" in caplog.text) == is_named


def test_one_other_mark_does_not_change_what_separates_lists(tmp_path):
    pl.DataFrame({"asin": range(19), "tags": ["a, b", "c, a"] * 9 + ["a;b"]}).write_csv(tmp_path / "items.csv")
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", ["asin"])
    [column], _ = choose_columns(table, {"asin"}, {"tags": "sequence"}, set(), "item_")
    assert column.separator == ","


def test_a_comma_in_the_entries_of_lists_does_not_separate_them(tmp_path):
    names = ["Doe, Jane; Roe, Ann", "Doe, Jane", "Roe, Ann"] * 3
    pl.DataFrame({"asin": range(9), "authors": names}).write_csv(tmp_path / "items.csv")
    table = Table([tmp_path / "items.csv"], tmp_path / "scratch", "items", ["asin"])
    [column], _ = choose_columns(table, {"asin"}, {"authors": "sequence"}, set(), "item_")
    assert column.separator == ";"


def test_all_types_of_columns_that_do_not_exist_are_named(shop, prepare_log):
    with raises_naming(ConfigError, "--types", "'one'", "'two'"):
        prepare_log(shop, types=["one=numeric", "two=none", "device=none"])


def test_texts_are_said_to_be_read_by_no_model():
    facts = {"written": {"title": {"type": "text"}, "price": {"type": "numeric"}}, "left_out": {}}
    lines = format_summary(Summary(1, 1, {}, columns={"items": facts}), Path("out"), []).splitlines()
    assert "items: title (text, not read by models), price (numeric)" in lines
    assert any("fuxictr-mm embed encode" in line for line in lines)
