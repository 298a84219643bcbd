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
from fuxictr_mm.datasets import writer as writer_module
from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm_serving.prepared import NUMBERING
from tests.datasets.command import run
from tests.datasets.logs import START, make_log, write_source
from tests.datasets.own.later_rows import read
from tests.datasets.shop import ROLES
from tests.errors import exits_naming, raises_naming


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


@pytest.mark.slow
def test_features_of_earlier_items(prepare, tmp_path, caplog):
    """A new row of an item replaces the old one, and a warning names missing values; others keep their features."""
    log, items, users = make_log(4)
    old, new = (log.filter((pl.col("time") > START + 110) == is_new) for is_new in (False, True))
    source = write_source(tmp_path / "old", old, items, users)
    pl.DataFrame({"asin": items["asin"], "vector": [[1.0, 2.0]] * len(items)}).write_parquet(source / "vectors.parquet")
    pl.DataFrame({"asin": items["asin"], "image": [[1.0, 2.0]] * len(items)}).write_parquet(source / "images.parquet")
    base = prepare(source, "shop", embeddings=["images.parquet", "vectors.parquet"])
    some = items[:3].with_columns(price=pl.Series([None, 2.0, 3.0]), tags=pl.Series([None, "red", None]))
    source = write_source(tmp_path / "new", new, some, users)
    vectors = pl.DataFrame({"asin": items["asin"][:1], "vector": [[3.0, 4.0]]})
    vectors.write_parquet(source / "vectors.parquet")
    later = prepare(source, "shop_new", base, extend=True)
    known, written = (pl.read_parquet(folder / "items.parquet") for folder in (base, later))
    assert written[3:].equals(known[3 : len(written)])
    assert written["price_scaled"][0] == 0
    assert (written["price_scaled"][1:3] != known["price_scaled"][1:3]).all()
    assert written["tags"].list.len().to_list()[:3] == [0, 1, 0]
    lost = [message for message in caplog.messages if "lose it" in message]
    assert [message.split("items.csv: ")[1].split(" in ")[0] for message in lost] == [
        "2 items that have a tags",
        "1 items that have a price",
    ]
    # The files of the later log need not be all of those of the earlier one.
    assert pl.read_parquet(later / "vector.parquet")["vector"].to_list()[0] == [3.0, 4.0]
    assert pl.read_parquet(later / "image.parquet")["image"].to_list()[0] == [1.0, 2.0]


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
    with raises_naming(DataError, "item_id", again, f"expected --like {base}"):
        trained.predict(tmp_path / "wrong" / "test")


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
    with raises_naming(DataError, base, "later than", "--all_rows"):
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
