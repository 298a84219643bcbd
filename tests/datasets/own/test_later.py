"""``prepare log --like`` against preparing both logs at once."""

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

import fuxictr_mm as fm
from fuxictr_mm.cli import main
from fuxictr_mm.datasets import log as log_module
from fuxictr_mm.datasets import writer as writer_module
from fuxictr_mm.datasets.own.later import LaterLog
from fuxictr_mm.datasets.reader import SPLITS, load_reader
from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm_serving.prepared import NUMBERING
from tests.datasets.command import run
from tests.datasets.logs import START, make_log, write_source
from tests.datasets.shop import ROLES
from tests.errors import exits_naming, raises_naming


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Prepare a source by itself or like another folder, in several chunks."""
    monkeypatch.setattr(log_module, "CHUNK_ROWS", 120)
    monkeypatch.setattr(log_module, "PART_ROWS", 16)

    def write(source, name, like=None, max_len=5, overwrite=False, **options):
        out = tmp_path / "prepared" / name
        reader = (load_reader("log") if like is None else LaterLog)(source, out / ".scratch", max_len)
        own = {"roles": ROLES, "labels": ["click"]} if like is None else {"like": like}
        given = {"interactions": "interactions*", **own, **options}
        reader.configure({name: value for name, value in given.items() if value is not None})
        Writer(reader, "log", out, verbose=0).write(overwrite)
        return out

    return write


def values(folder, name, key="code", value="value"):
    path = folder / (f"vocabularies/{name}.parquet" if key == "code" else "items.parquet")
    table = pl.read_parquet(path)
    return {0: None, **dict(zip(table[key], table[value], strict=True))}


def read(folder, base, splits=("test",), since=None, labels=True):
    """Return the rows of splits with the owner's values, as the vocabularies and scales of ``base`` have them."""
    facts = json.loads((folder / "manifest.json").read_text())["columns"]
    known = {name: set(values(base, name).values()) for name in ("device", "category", "tags", "age")}
    items = {}
    written = pl.read_parquet(folder / "items.parquet")
    category, tags = values(folder, "category"), values(folder, "tags")
    price = facts["items"]["written"]["price_scaled"]
    for row in written.iter_rows(named=True):
        kept = [tags[tag] if tags[tag] in known["tags"] else None for tag in row["tags"]]
        items[row["item_id"]] = (
            row["source_id"],
            row["title"],
            category[row["category"]],
            kept,
            round(row["price_scaled"] * price["std"] + price["mean"], 1),
        )
    device, age = values(folder, "device"), values(folder, "age")
    basket = facts["interactions"]["written"]["basket_scaled"]
    rows = []
    for split in splits:
        for row in pq.read_table(folder / split).to_pylist():
            if since is not None and row["source_time"] <= since:
                continue
            found = {
                "user": row["source_user"],
                "item": items[row["item_id"]],
                "history": [items[item][0] for item in row["item_seq"]],
                "time": row["source_time"],
                "basket": round(row["basket_scaled"] * basket["std"] + basket["mean"], 1),
            }
            for name, words in (("device", device), ("age", age)):
                found[name] = words[row[name]] if words[row[name]] in known[name] else None
            if labels:
                found["click"] = row["click"]
            rows.append(found)
    return sorted(rows, key=lambda row: json.dumps(row))


@pytest.mark.parametrize(("seed", "repeated"), [(0, False), (1, True)])
def test_rows_are_those_of_both_logs_at_once(seed, repeated, prepare, tmp_path):
    log, items, users = make_log(seed)
    late = START + 110
    old, new = log.filter(pl.col("time") <= late), log.filter(pl.col("time") > late)
    base = prepare(write_source(tmp_path / "old", old, items[:24], users, parts=2), "shop")
    source = write_source(tmp_path / "new", log if repeated else new, None if repeated else items[24:], users, parts=3)
    if repeated:
        items[::-1].write_csv(source / "items.csv")
    later = prepare(source, "shop_new", base)
    both = prepare(write_source(tmp_path / "both", log, items, users, parts=1), "shop_both")
    newest = old["time"].max()
    expected = read(both, base, ("train", "valid", "test"), newest)
    assert len(expected) == len(new)
    assert read(later, base) == expected
    rows = pl.read_parquet(later / "test")
    given = pl.concat([pl.read_csv(path) for path in sorted(source.glob("interactions*"))])[
        rows["source_row"].to_list()
    ]
    assert given["user"].to_list() == rows["source_user"].to_list()
    assert given["time"].to_list() == rows["source_time"].to_list()
    assert given["click"].to_list() == rows["click"].to_list()


def test_histories_go_on_from_day_to_day(prepare, tmp_path):
    log, items, users = make_log(4)
    bounds = [START - 1, START + 70, START + 110, START + 130, START + 150]
    days = [log.filter(pl.col("time") > first, pl.col("time") <= last) for first, last in pairwise(bounds)]
    both = prepare(write_source(tmp_path / "both", log, items, users), "both")
    folder = base = prepare(write_source(tmp_path / "day0", days[0], items[:24], users), "shop0")
    for number, day in enumerate(days[1:], 1):
        source = write_source(tmp_path / f"day{number}", day, items if number == 2 else None, users)
        folder = prepare(source, f"shop{number}", folder)
        newest = days[number - 1]["time"].max()
        expected = read(both, base, ("train", "valid", "test"), newest)
        expected = [row for row in expected if row["time"] <= bounds[number + 1]]
        found = read(folder, base)
        if number == 1:  # new items had no features yet
            for row in (*expected, *found):
                row["item"] = row["item"][0]
        assert found == expected


def test_the_command_to_score_names_the_folder_of_the_experiments(tmp_path, capsys):
    """Also the day after tomorrow, when ``--like`` has no experiments; the rate is of rows with a label."""
    log, items, users = make_log(4)
    bounds = [START - 1, START + 70, START + 110, START + 150]
    days = [log.filter(pl.col("time") > first, pl.col("time") <= last) for first, last in pairwise(bounds)]
    days[2] = days[2].with_columns(click=pl.when(pl.col("click") == 1).then(1))
    sources = [write_source(tmp_path / f"day{n}", day, items, users) for n, day in enumerate(days)]
    out = [tmp_path / f"shop{n}" for n in range(3)]
    assert run("log", "--source", sources[0], "--out", out[0], "--roles", *ROLES, "--interactions", "inter*") == 0
    for number in (1, 2):
        capsys.readouterr()
        assert run("log", "--source", sources[number], "--like", out[number - 1], "--out", out[number]) == 0
        printed = capsys.readouterr().out
        assert f"--config {out[0]} " in printed
        assert str(out[number] / "test") in printed
    assert "100.0%" in printed


def test_rows_without_labels_are_written(prepare, tmp_path):
    log, items, users = make_log(5)
    late = START + 110
    old, new = log.filter(pl.col("time") <= late), log.filter(pl.col("time") > late)
    base = prepare(write_source(tmp_path / "old", old, items, users), "shop")
    clicks = {}
    for user, asin, click in old.sort("time", maintain_order=True).select("user", "asin", "click").iter_rows():
        clicks.setdefault(user, []).extend([asin] * click)
    later = prepare(write_source(tmp_path / "new", new.drop("click"), users=users), "later", base)
    found = read(later, base, labels=False)
    assert len(found) == len(new)
    assert all(row["history"] == clicks.get(row["user"], [])[-5:] for row in found)
    assert "click" not in pl.read_parquet_schema(later / "test" / "part-00000.parquet")
    # Of a log of which some rows have a label, all are written, and the newest of these is where the next goes on.
    some = new.with_columns(click=pl.when(pl.col("time") <= START + 120).then("click"))
    partly = prepare(write_source(tmp_path / "some", some, users=users), "partly", base)
    rows = pl.read_parquet(partly / "test")
    assert len(rows) == len(new)
    assert rows["click"].is_nan().sum() == some["click"].null_count()
    after = prepare(write_source(tmp_path / "after", new, users=users), "after", partly)
    both = prepare(write_source(tmp_path / "both", log, items, users), "both")
    newest = some.filter(pl.col("click").is_not_null())["time"].max()
    assert read(after, base) == read(both, base, ("train", "valid", "test"), newest)


def test_it_continues_after_it_was_killed(prepare, tmp_path, monkeypatch):
    log, items, users = make_log(6, rows=500)
    old, new = log.filter(pl.col("time") <= START + 80), log.filter(pl.col("time") > START + 80)
    base = prepare(write_source(tmp_path / "old", old, items, users), "shop")
    source = write_source(tmp_path / "new", new, users=users)
    whole = prepare(source, "whole", base)
    write, finished = Writer._write_chunk, []

    def end_in_the_second(self, number, name):
        if finished:
            raise KeyboardInterrupt
        finished.append(write(self, number, name))
        return finished[-1]

    monkeypatch.setattr(Writer, "_write_chunk", end_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, "killed", base)
    monkeypatch.setattr(Writer, "_write_chunk", write)
    killed = tmp_path / "prepared" / "killed"
    with raises_naming(ConfigError, killed, "not complete"):
        prepare(source, "next", killed)
    assert prepare(source, "killed", base) == killed
    for name in ("test", "histories"):
        parts = sorted(path.name for path in (whole / name).iterdir())
        assert len(parts) > 1
        assert all(pl.read_parquet(killed / name / part).equals(pl.read_parquet(whole / name / part)) for part in parts)
    assert read(killed, base) == read(whole, base)
    assert prepare(source, "killed", base) == killed  # is complete already
    with raises_naming(ConfigError, killed, "files"):
        prepare(write_source(tmp_path / "other", new, users=users), "killed", base)


def test_weights_score_a_later_log_with_new_items(tmp_path, capsys, monkeypatch):
    log, items, users = make_log(7)
    old, new = log.filter(pl.col("time") <= START + 110), log.filter(pl.col("time") > START + 110)
    vectors = items.select("asin", vector=pl.Series(np.random.default_rng(0).normal(size=(30, 4)).tolist()))
    source = write_source(tmp_path / "old", old, items[:24], users)
    vectors[:24].write_parquet(source / "vectors.parquet")
    base, later = tmp_path / "shop", tmp_path / "later"
    options = ("--interactions", "interactions*", "--embeddings", "vectors.parquet", "--quiet")
    assert run("log", "--source", source, "--out", base, "--roles", *ROLES, "--labels", "click", *options) == 0
    settings = {"epochs": 1, "swa_start": None, "model_root": str(tmp_path / "runs"), "verbose": 0}
    trained = Experiment.load("DIN_MM_shop", base, **settings).fit()
    tomorrow = write_source(tmp_path / "tomorrow", new, items, users)
    vectors[24:].write_parquet(tomorrow / "vectors.parquet")
    assert run("log", "--source", tomorrow, "--like", base, "--out", later, "--quiet") == 0
    scores = fm.load_run(trained.path).predict(later / "test")
    rows = pl.read_parquet(later / "test")
    assert scores.shape == (len(rows),)
    # Known items are scored as they are with the item files of training, whatever the new ones are.
    known = pl.read_parquet(base / "items.parquet")
    assert pl.read_parquet(later / "items.parquet")[: len(known)].equals(known)
    is_known = (rows["item_id"] <= len(known)).to_numpy() & (
        rows["item_seq"].list.max().fill_null(0) <= len(known)
    ).to_numpy()
    assert is_known.sum() > 5
    assert not is_known.all()
    np.testing.assert_allclose(trained.predict(rows.filter(is_known)), scores[is_known], rtol=1e-5)
    # As a table that is joined to the log by the number of the row.
    monkeypatch.chdir(tmp_path)
    words = ["--expid", "DIN_MM_shop", "--config", str(base), "--weights", str(trained.weights)]
    with raises_naming(DataError, later, later / "test"):
        trained.predict(later)
    main(["predict", *words, "--data", str(later / "test"), "--out", "table.parquet"])
    table = pl.read_parquet("table.parquet")
    assert table["prediction"].to_list() == scores.tolist()
    joined = new.with_row_index("source_row").join(table, on=pl.col("source_row").cast(pl.Int64))
    assert len(joined) == len(new)
    assert joined["user"].to_list() == joined["user_id"].to_list()
    assert joined["asin"].to_list() == joined["item_id"].to_list()
    assert f"AUC {roc_auc_score(joined['click'], joined['prediction']):.6f}" in capsys.readouterr().out
    with exits_naming(capsys, "--data", "--expid"):
        main(["predict", "--runs", str(trained.path), "--data", str(later / "test")])
    # Rows of the owner's, not prepared.
    for column, value in (("user_id", pl.lit("u-3")), ("user_id", pl.lit(99)), ("item_id", pl.lit("B001"))):
        with raises_naming(UserError, "data frame", f"prepare log --like {base}"):
            trained.predict(rows.filter(is_known).with_columns(value.alias(column)))
    # The price and the embedding of a new item count, its id does not.
    written = pq.read_table(later / "items.parquet")
    prices = written["price_scaled"].to_numpy().copy()
    prices[len(known) :] += 5
    changed = written.set_column(written.schema.get_field_index("price_scaled"), "price_scaled", [prices])
    pq.write_table(changed.replace_schema_metadata(written.schema.metadata), later / "items.parquet")
    others = fm.load_run(trained.path).predict(later / "test")
    np.testing.assert_array_equal(others[is_known], scores[is_known])
    assert (
        others[(rows["item_id"] > len(known)).to_numpy()] != scores[(rows["item_id"] > len(known)).to_numpy()]
    ).all()
    assert pl.read_parquet(later / "vector.parquet")["item_id"].sort().to_list() == list(range(1, 31))
    # Rows go with their own item file, and items that were numbered again are refused.
    digests = json.loads(pq.read_metadata(later / "test" / "part-00000.parquet").metadata[NUMBERING.encode()])
    assert (
        digests["item_id"]
        == json.loads(pq.read_metadata(base / "items.parquet").metadata[NUMBERING.encode()])["item_id"]
    )
    again = tmp_path / "again"
    write_source(tmp_path / "shuffled", old[::-1], items[:24][::-1], users)
    assert (
        run(
            "log",
            "--source",
            tmp_path / "shuffled",
            "--out",
            again,
            "--roles",
            *ROLES,
            *options[:2],
            "--labels",
            "click",
            "--quiet",
        )
        == 0
    )
    assert (
        run(
            "log",
            "--source",
            tomorrow,
            "--like",
            again,
            "--out",
            tmp_path / "wrong",
            "--interactions",
            "interactions*",
            "--quiet",
        )
        == 0
    )
    with raises_naming(DataError, "item_id"):
        trained.predict(tmp_path / "wrong" / "test")


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
    assert [tags[tag] for tag in rows["tags"][0]] == [None, "red"]  # training knows red


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


def test_what_does_not_go_on(prepare, tmp_path, capsys):
    log, items, users = make_log(10)
    old, new = log.filter(pl.col("time") <= START + 110), log.filter(pl.col("time") > START + 110)
    base = prepare(write_source(tmp_path / "old", old, items, users), "shop")
    new_source = write_source(tmp_path / "new", new, items, users)
    for option, value in (("split", [0.7, 0.2, 0.1]), ("labels", ["click"]), ("roles", ROLES)):
        with raises_naming(ConfigError, f"--{option}", base):
            prepare(new_source, "later", base, **{option: value})
    with raises_naming(ConfigError, "--like", tmp_path / "new"):
        prepare(new_source, "later", tmp_path / "new")
    with raises_naming(DataError, base, "later than"):
        prepare(write_source(tmp_path / "late", old, items, users), "later", base)
    with raises_naming(ConfigError, "device", base):
        prepare(write_source(tmp_path / "few", new.drop("device"), items, users), "later", base)
    with raises_naming(DataError, "basket", base):
        texts = new.with_columns(basket=pl.lit("much"))
        prepare(write_source(tmp_path / "texts", texts, items, users), "later", base)
    with raises_naming(MissingFileError, "age", base):
        prepare(write_source(tmp_path / "nobody", new, items), "later", base)
    for out in (base, base / "later", tmp_path):
        assert run("log", "--source", new_source, "--like", base, "--out", out, "--overwrite") == 2
    assert run("log", "--source", new_source, "--like", base, "--out", tmp_path / "x", "--max_len", "3") == 2
    assert run("mind", "--source", new_source, "--like", base, "--out", tmp_path / "x") == 2
    capsys.readouterr()
    manifest = json.loads((base / "manifest.json").read_text())
    del manifest["log"]
    (base / "manifest.json").write_text(json.dumps(manifest))
    with raises_naming(ConfigError, base, "--overwrite"):
        prepare(new_source, "later", base)


def test_a_folder_of_an_earlier_version_is_not_continued(prepare, tmp_path, monkeypatch):
    log, items, users = make_log(11, rows=120)
    source = write_source(tmp_path / "old", log, items, users)
    monkeypatch.setattr(writer_module, "VERSION", 2)
    base = prepare(source, "shop")
    monkeypatch.undo()
    with raises_naming(ConfigError, base, "layout 2", "--overwrite"):
        prepare(source, "shop")


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
