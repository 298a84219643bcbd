"""Labels of a log: numbers, the label of histories, and columns that are meant as weights."""

import json

import numpy as np
import polars as pl
import pytest

from fuxictr_mm.datasets import log as log_module
from fuxictr_mm.datasets.own import buckets
from fuxictr_mm.datasets.own.later import LaterLog
from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.prediction_files import measure, write_table
from fuxictr_mm.yaml_files import load_yaml
from tests.datasets.command import run
from tests.datasets.shop import ROLES, rewrite
from tests.errors import raises_naming

NUMERIC = {"labels": ["click", "watch_s"], "types": ["watch_s=numeric"]}


@pytest.fixture
def watched(shop, monkeypatch):
    """The shop with the seconds of watching, of which some are missing, in several chunks."""
    monkeypatch.setattr(buckets, "CHUNK_ROWS", 120)
    monkeypatch.setattr(log_module, "PART_ROWS", 16)
    row = pl.int_range(pl.len())
    watch = pl.when(row % 5 != 0).then((pl.col("basket") * 3 + row % 7).round(1))
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(watch_s=watch))
    return shop


def plain(source, label, split_by):
    """Return user, item, time and history of each row by its number, and the split of those with ``split_by``."""
    log = pl.read_csv(source / "interactions.csv").with_row_index("row")
    events = log.sort("time", maintain_order=True).to_dicts()
    written = sorted(event["time"] for event in events if any(event[name] is not None for name in split_by))
    bounds = [written[int(part * len(written) + 1e-6)] for part in (0.8, 0.9)]
    rows = {}
    for event in events:
        if all(event[name] is None for name in split_by):
            continue
        before = [e for e in events if e["user"] == event["user"] and e["time"] < event["time"]]
        history = [e["asin"] for e in before if (e[label] == 1 if label == "click" else e[label] is not None)]
        split = ("train", "valid", "test")[sum(event["time"] >= bound for bound in bounds)]
        rows[event["row"]] = {**event, "history": history[-100:], "split": split}
    return rows


def of_manifest(folder):
    return json.loads((folder / "manifest.json").read_text())["columns"]["interactions"]["labels"]["watch_s_scaled"]


@pytest.mark.parametrize("labels", [["watch_s", "click"], ["watch_s"]])
def test_numbers_are_those_of_a_plain_reading(labels, watched, prepare_log, read_split):
    folder, summary, _ = prepare_log(watched, labels=labels, types=["watch_s=numeric"])
    expected = plain(watched, "click" if "click" in labels else "watch_s", labels)
    facts = of_manifest(folder)
    known = [r["watch_s"] for r in expected.values() if r["split"] == "train" and r["watch_s"] is not None]
    assert (facts["column"], facts["type"]) == ("watch_s", "numeric")
    assert (facts["mean"], facts["std"]) == pytest.approx((np.mean(known), np.std(known)), rel=1e-5)
    found = {row["source_row"]: (split, row) for split in summary.splits for row in read_split(folder, split)}
    assert found.keys() == expected.keys()
    for number, (split, row) in found.items():
        assert (split, row["item_seq"]) == (expected[number]["split"], expected[number]["history"])
        if "click" in labels:
            assert row["click"] == expected[number]["click"]
        watch = expected[number]["watch_s"]
        assert (row["watch_s_scaled"] is None or np.isnan(row["watch_s_scaled"])) == (watch is None)
        if watch is not None:
            assert row["watch_s_scaled"] * facts["std"] + facts["mean"] == pytest.approx(watch, abs=1e-3)
    rates = {split: counts.positives / counts.labelled for split, counts in summary.splits.items() if counts.labelled}
    clicks = {s: np.mean([r["click"] for r in expected.values() if r["split"] == s]) for s in summary.splits}
    assert rates == (pytest.approx(clicks) if "click" in labels else {})


@pytest.mark.parametrize("labels", [["click", "watch_s"], ["watch_s"]])
def test_a_log_of_numbers_trains_and_is_scored(labels, watched, tmp_path, capsys):
    out = tmp_path / "shop"
    arguments = ("log", "--source", watched, "--out", out, "--roles", *ROLES, "--labels", *labels)
    assert run(*arguments) == 2
    text = capsys.readouterr().err
    assert all(word in text for word in ("watch_s", "--positive_from", "--types watch_s=numeric"))
    assert run(*arguments, "--types", "watch_s=numeric", "--overwrite") == 0
    facts = of_manifest(out)
    assert f"* {facts['std']:g} + {facts['mean']:g}" in capsys.readouterr().out
    entry = load_yaml(out / "dataset_config.yaml")["shop"]["label_col"]
    names = [label["name"] for label in entry] if isinstance(entry, list) else [entry["name"]]
    assert names == [*labels[:-1], "watch_s_scaled"]
    overrides = {"epochs": 1, "record": False, "model_root": str(tmp_path / "runs"), "verbose": 0}
    experiment = Experiment.load("DIN_shop", out, **overrides)
    found = experiment.fit().metrics["valid"]
    assert ("AUC" in found, "gAUC" in found) == ("click" in labels, "click" in labels)
    assert 0 < found["MAE"] <= found["RMSE"] < 5
    source = tmp_path / "tomorrow"
    source.mkdir()
    log = pl.read_csv(watched / "interactions.csv")[:40]
    log.with_columns(time=pl.col("time") + 10_000).write_csv(source / "interactions.csv")
    (source / "users.csv").write_bytes((watched / "users.csv").read_bytes())
    assert run("log", "--source", source, "--like", out, "--out", tmp_path / "new") == 0
    rows = pl.read_parquet(tmp_path / "new" / "test" / "*.parquet").sort("source_row")
    known = (log["watch_s"].is_not_null()).to_numpy()
    again = rows["watch_s_scaled"].to_numpy() * facts["std"] + facts["mean"]
    np.testing.assert_allclose(again[known], log["watch_s"].to_numpy()[known], atol=1e-3)
    predictions = experiment.predict(str(tmp_path / "new" / "test"))
    assert predictions.shape == ((40, 2) if "click" in labels else (40,))
    assert np.isfinite(predictions).all()
    of_rows = str(tmp_path / "new" / "test"), predictions, experiment.config.to_dict()
    write_table(tmp_path / "p.parquet", *of_rows)
    table = pl.read_parquet(tmp_path / "p.parquet")
    scaled = table["prediction_watch_s_scaled" if "click" in labels else "prediction"]
    expected = scaled.to_numpy() * facts["std"] + facts["mean"]
    np.testing.assert_allclose(table["prediction_watch_s"], expected, rtol=1e-5)
    metrics = measure(*of_rows)
    in_order = table.sort("source_row")["prediction_watch_s"].to_numpy()[known]
    error = in_order - log["watch_s"].to_numpy()[known]
    assert metrics["watch_s"]["RMSE"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-3)
    assert metrics["watch_s"]["rows"] == metrics["watch_s_scaled"]["rows"] == known.sum()


def test_a_name_that_a_number_takes_is_not_one_of_a_column(watched, prepare_log):
    rewrite(
        watched / "interactions.csv", lambda log: log.with_columns(watch_s_scaled=pl.col("basket").round(0).cast(int))
    )
    folder, _, _ = prepare_log(watched, **NUMERIC)
    facts = json.loads((folder / "manifest.json").read_text())["columns"]["interactions"]
    assert facts["labels"]["watch_s_scaled"]["column"] == "watch_s"
    assert facts["written"]["context_watch_s_scaled"]["column"] == "watch_s_scaled"


def test_a_number_that_is_always_the_same_is_refused(watched, prepare_log):
    rewrite(watched / "interactions.csv", lambda log: log.with_columns(watch_s=3.5))
    with raises_naming(DataError, "interactions.csv", "watch_s", "3.5"):
        prepare_log(watched, **NUMERIC)


def with_purchases(shop):
    """Add a label that is 1 in three rows and missing in most."""
    row = pl.int_range(pl.len())
    buy = pl.when(row % 100 == 7).then(1).when(row % 3 == 0).then(0)
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(buy=buy))


def test_histories_are_of_the_label_that_is_named(watched, prepare_log, read_split, caplog, tmp_path):
    with_purchases(watched)
    with caplog.at_level("WARNING"):
        prepare_log(watched, "first", labels=["buy", "click"])
    assert "--history_from click" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING"):
        prepare_log(watched, "second", labels=["click", "buy"])
        folder, summary, _ = prepare_log(watched, labels=["buy", "click"], history_from="click")
    assert "--history_from" not in caplog.text
    expected = plain(watched, "click", ["buy", "click"])
    for split in summary.splits:
        for row in read_split(folder, split):
            assert row["item_seq"] == expected[row["source_row"]]["history"]
    # All parts have the label, also those of which no row has it.
    files = [file for split in summary.splits for file in sorted((folder / split).glob("*.parquet"))]
    assert all("buy" in pl.read_parquet_schema(file) for file in files)
    # A later log goes on with the same label.
    source = tmp_path / "tomorrow"
    source.mkdir()
    log = pl.read_csv(watched / "interactions.csv")
    new = log[:60].with_columns(time=pl.col("time") + 10_000)
    new.drop("buy").write_csv(source / "interactions.csv")
    (source / "users.csv").write_bytes((watched / "users.csv").read_bytes())
    reader = LaterLog(source, tmp_path / "new" / ".scratch", 100)
    reader.configure({"like": folder})
    Writer(reader, "log", tmp_path / "new", verbose=0).write()
    pl.concat([log, new], how="diagonal").write_csv(watched / "interactions.csv")
    both = plain(watched, "click", ["click"])
    for row in read_split(tmp_path / "new", "test"):
        assert row["item_seq"] == both[row["source_row"] + len(log)]["history"]


def test_columns_that_are_meant_as_weights_are_warned_of(shop, prepare_log, caplog):
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(Sample_Weight=pl.col("basket") / 7))
    for folder, options, is_warned in (
        ("feature", {}, True),
        ("kept", {"types": ["Sample_Weight=numeric"]}, False),
    ):
        caplog.clear()
        with caplog.at_level("WARNING"):
            prepare_log(shop, folder, **options)
        assert ("--roles weight=Sample_Weight" in caplog.text) == is_warned


def test_weights_are_read_from_the_log_and_not_needed_in_a_later_one(shop, prepare_log, read_split, tmp_path):
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(ips=(pl.col("basket") / 20).round(3)))
    roles = [*ROLES, "weight=ips"]
    folder, _, experiments = prepare_log(shop, roles=roles)
    weights = pl.read_csv(shop / "interactions.csv")["ips"]
    for split in ("train", "valid", "test"):
        for row in read_split(folder, split):
            assert row["source_weight"] == pytest.approx(weights[row["source_row"]])
    experiment = Experiment.load(experiments[0], folder, resident=False)
    assert experiment.config.dataset.sample_weight == "source_weight"
    assert "ips" not in str(experiment.config.dataset.feature_cols)
    rows = experiment.load_dataset({"train": True}).splits["train"]
    assert sum(float(chunk.weight.sum()) for chunk in rows.chunks()) > 0
    source = tmp_path / "tomorrow"
    source.mkdir()
    log = pl.read_csv(shop / "interactions.csv").drop("ips", "click").with_columns(pl.col("time") + 1000)
    log.write_csv(source / "interactions.csv")
    for name in ("items.csv", "users.csv"):
        (source / name).write_bytes((shop / name).read_bytes())
    reader = LaterLog(source, tmp_path / "new" / ".scratch", 100)
    reader.configure({"like": folder})
    assert Writer(reader, "log", tmp_path / "new", verbose=0).write().splits["test"].rows == len(log)


@pytest.mark.parametrize("value", ["-1", "", "NaN", "inf", "x"])
def test_weights_that_are_none_are_refused(shop, prepare_log, value):
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(ips=pl.Series(["1", value] + ["2"] * 298)))
    with raises_naming(DataError, "interactions.csv", "row 1", "ips"):
        prepare_log(shop, roles=[*ROLES, "weight=ips"])


@pytest.mark.parametrize("roles", [["weight=user"], ["weight=click"], ["weight=a", "weight=b"], ["weight=missing"]])
def test_roles_of_weights_that_are_none(shop, prepare_log, roles):
    with raises_naming(ConfigError, "--roles", roles[-1]):
        prepare_log(shop, roles=[*ROLES, *roles])


@pytest.mark.parametrize(("yes", "no"), [("Yes", "No"), ("t", "f"), (" TRUE", "FALSE "), ("y", "n")])
def test_words_for_labels(shop, prepare_log, read_split, yes, no):
    clicks = pl.read_csv(shop / "interactions.csv")["click"]
    word = pl.when(pl.col("click") == 1).then(pl.lit(yes)).otherwise(pl.lit(no)).alias("click")
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(word))
    folder, _, _ = prepare_log(shop)
    for row in read_split(folder, "train"):
        assert row["click"] == clicks[row["source_row"]]


def test_a_column_of_lists_is_no_weight(shop, prepare_log):
    path = shop / "interactions.csv"
    pl.read_csv(path).with_columns(ips=pl.concat_list("basket")).write_parquet(path.with_suffix(".parquet"))
    path.unlink()
    with raises_naming(ConfigError, "--roles weight=ips", "List"):
        prepare_log(shop, roles=[*ROLES, "weight=ips"])


def test_words_are_no_numbers(shop, prepare_log):
    values = pl.Series(["1.5", "n", *(f"{number}.5" for number in range(298))])
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(basket=values))
    with raises_naming(DataError, "row 1", "basket", "'n'"):
        prepare_log(shop, labels=["basket"], types=["basket=numeric"])
