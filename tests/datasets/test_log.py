"""``prepare log`` against a plain reading of a log."""

import gzip
import json
import re
from datetime import datetime, timedelta, timezone
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.autopilot.candidates import MODELS
from fuxictr_mm.datasets import log as log_module
from fuxictr_mm.datasets.configuration import write_config
from fuxictr_mm.datasets.own.experiments import explain, log_experiments, users_recur
from fuxictr_mm.datasets.reader import load_reader
from fuxictr_mm.datasets.writer import SplitSummary, Summary, Writer
from fuxictr_mm.errors import DataError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.yaml_files import load_yaml
from tests.datasets.test_prepare import run
from tests.errors import raises_naming

ROLES = {"roles": ["user=user", "target=asin", "time=time"]}


@pytest.fixture
def shop(tmp_path):
    """A shop of three CSV files; the last item of the log is in no item file."""
    source = tmp_path / "exports"
    source.mkdir()
    random = np.random.default_rng(0)
    rows = 300
    asins = [f"B{number:03}" for number in random.choice(900, 30, replace=False)]
    log = pl.DataFrame(
        {
            "user": [f"u-{number}" for number in random.integers(0, 12, rows)],
            "asin": [asins[number] for number in random.integers(0, 30, rows)],
            "time": np.sort(random.integers(0, 150, rows)) + 1_700_000_000,
            "click": random.integers(0, 2, rows),
            "device": random.choice(["phone", "tablet"], rows),
            "basket": random.normal(20, 5, rows).round(3),
        }
    )
    log.sample(fraction=1, shuffle=True, seed=1).write_csv(source / "interactions.csv")
    pl.DataFrame(
        {
            "asin": asins[:-1],
            "title": [f"a thing no {number}" for number in range(29)],
            "category": random.choice(["tea", "books"], 29),
            "tags": random.choice(["red|big", "blue", "red|blue|big"], 29),
            "price": random.lognormal(3, 1, 29).round(2),
        }
    ).write_csv(source / "items.csv")
    pl.DataFrame(
        {
            "user": [f"u-{number}" for number in range(11)],
            "age": random.integers(18, 80, 11),
            "country": ["fr", "de"] * 5 + [None],
        }
    ).write_csv(source / "users.csv")
    return source


@pytest.fixture
def prepare_log(tmp_path):
    """Prepare a log with options as of the command line; returns folder, summary and experiment ids."""

    def prepare(source, folder="out", max_len=100, **options):
        out = tmp_path / folder
        reader = load_reader("log")(source, out / ".scratch", max_len)
        reader.configure({**ROLES, **options})
        summary = Writer(reader, "log", out, verbose=0).write()
        return out, summary, write_config(out, out.name, reader, summary, [reader.label, *reader.other_labels])

    return prepare


def test_what_is_prepared_trains(shop, tmp_path, capsys):
    options = ("--roles", "user=user", "target=asin", "time=time", "--labels", "click")
    arguments = ("log", "--source", shop, "--out", tmp_path / "shop", *options)
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    assert "device (categorical)" in text
    assert "title (text)" in text
    for expid in ("DIN_shop", "DIN_MM_shop", "LightFM_shop"):
        assert f"--config {tmp_path / 'shop'} --expid {expid}" in text
        overrides = {"epochs": 1, "record": False, "model_root": str(tmp_path / "runs"), "verbose": 0}
        experiment = Experiment.load(expid, tmp_path / "shop", **overrides)
        assert 0 <= experiment.fit().metrics["valid"]["AUC"] <= 1
    columns = load_yaml(tmp_path / "shop" / "dataset_config.yaml")["shop"]["feature_cols"]
    assert columns[0] == {"name": "user_id", "dtype": "int", "type": "categorical", "vocab_size": 13}
    assert run(*arguments) == 0  # is complete already
    assert run(*arguments[:-1], "device") == 2


@pytest.mark.parametrize(("users", "recur"), [(50, True), (200, False)])
def test_the_user_is_a_feature_where_users_recur(users, recur):
    summary = Summary(9, users, {"train": SplitSummary(rows=300)}, vocab_sizes={"user_id": users + 1})
    experiments = log_experiments(summary, 20)
    assert ("LightFM" in experiments) == recur
    assert users_recur(summary) == recur


def test_a_high_learning_rate_comes_with_the_average_of_the_weights():
    """As ``docs/choosing_settings.md`` has it, and as the autopilot begins."""
    for rows, updates in ((80_024, 626), (600, 6), (1, 2), (3_000_000, 1466)):
        experiments = log_experiments(Summary(9, 1, {"train": SplitSummary(rows=rows)}, vocab_sizes={"user_id": 2}), 20)
        for name, entry in experiments.items():
            rate = entry["learning_rate"]
            assert (rate, entry.get("swa_start")) == ((5e-3, None) if name == "LightFM" else (4e-3, updates))
            if name in MODELS and name != "LightFM":
                assert rate == MODELS[name].first["learning_rate"]


@pytest.mark.parametrize(("cold", "coverage", "dropout"), [(85, True, 0.5), (85, False, None), (40, True, None)])
def test_item_ids_are_dropped_where_targets_are_cold_and_embeddings_tell_the_item(cold, coverage, dropout):
    splits = {"train": SplitSummary(rows=300), "test": SplitSummary(rows=100, cold=cold)}
    summary = Summary(9, 200, splits, {"title_emb": 1.0} if coverage else {}, vocab_sizes={"user_id": 201})
    entry = log_experiments(summary, 20)["DIN_MM"]
    assert entry.get("feature_specs") == (dropout and [{"name": "item_id", "dropout": dropout}])
    assert "factor_dim" not in entry
    assert [f"{cold}%" in line for line in explain(summary)] == [True] * (cold > 80)


def test_where_users_recur_the_attention_has_a_factorization():
    splits = {"train": SplitSummary(rows=300)}
    summary = Summary(9, 10, splits, {"title_emb": 1.0}, vocab_sizes={"user_id": 11})
    entry = log_experiments(summary, 20)["DIN_MM"]
    assert (entry["factor_dim"], entry["factor_features"]) == (17, ["user_id", "item_id", "title_emb"])
    assert ["factor_dim: 17" in line for line in explain(summary)] == [True]


def test_types_of_columns(shop, prepare_log, values_of):
    folder, summary, _ = prepare_log(shop)
    entry = load_yaml(folder / "dataset_config.yaml")[folder.name]
    types = {feature["name"]: feature["type"] for feature in entry["feature_cols"]}
    assert types == {
        "user_id": "categorical", "item_seq": "meta", "device": "categorical", "basket_scaled": "numeric",
        "age": "categorical", "country": "categorical", "item_id": "categorical", "category": "categorical",
        "tags": "sequence", "price_scaled": "numeric",
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


EVENTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 12), st.sampled_from([0, 1, 1, None])),
    min_size=8,
    max_size=40,
)


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, by=st.sampled_from(["time", "user"]), max_len=st.integers(1, 4))
def test_rows_are_those_of_a_plain_computation(events, by, max_len, tmp_path_factory, read_split, monkeypatch):
    # Some rows of both labels, at their own times, so that there is something to train on.
    events += [(user, 0, -1 - turn, turn % 2) for user in range(3) for turn in range(6)]
    events += [(user, 1, 20 + turn, turn % 2) for user in range(3) for turn in range(6)]
    source = tmp_path_factory.mktemp("events")
    columns = dict(zip(("user", "asin", "time", "click"), zip(*events, strict=True), strict=True))
    pl.DataFrame(columns).write_csv(source / "interactions.csv")
    monkeypatch.setattr(log_module, "CHUNK_ROWS", 20)
    monkeypatch.setattr(log_module, "PART_ROWS", 5)
    reader = load_reader("log")(source, source / "out" / ".scratch", max_len)
    reader.configure({**ROLES, "split_by": by})
    Writer(reader, "log", source / "out", verbose=0).write()
    labelled = [event for event in events if event[3] is not None]
    times = sorted(event[2] for event in labelled)
    expected = {"train": [], "valid": [], "test": []}
    for user, item, time, click in labelled:
        clicks = [e for e in events if e[0] == user and e[2] < time and e[3] == 1]
        history = [e[1] for e in sorted(clicks, key=lambda e: e[2])][-max_len:]  # stable: in the order of the file
        if by == "time":
            bounds = times[int(0.8 * len(times) + 1e-6)], times[int(0.9 * len(times) + 1e-6)]
        else:
            bounds = bounds_of(sorted(e[2] for e in labelled if e[0] == user))
        split = "test" if time >= bounds[1] else "valid" if time >= bounds[0] else "train"
        expected[split].append((str(user), str(item), [str(i) for i in history], click))
    for split, rows in expected.items():
        found = [(r["user_id"], r["item_id"], r["item_seq"], r["click"]) for r in read_split(source / "out", split)]
        assert sorted(found) == sorted(rows)


def bounds_of(times):
    """Return the first times of valid and test of a user's rows."""
    part = max(1, round(len(times) * 0.1))
    second = times[-part]
    before = [time for time in times if time < second]
    if len(before) <= part or before[-part] == times[0]:
        return 99, 99
    return before[-part], second


@pytest.mark.parametrize(
    "form",
    ["csv", "tsv", "semicolon and BOM", "gz", "parquet", "jsonl", "jsonl.gz", "parts", "ISO", "zones", "datetimes"],
)
def test_every_form_gives_the_same_rows(form, shop, prepare_log, read_split, tmp_path):
    whole, _, _ = prepare_log(shop, folder="whole")
    source = tmp_path / "other"
    source.mkdir()
    for name in ("interactions", "items", "users"):
        write(
            pl.read_csv(shop / f"{name}.csv"),
            source / name,
            form if name == "interactions" or form[0] not in "IZzd" else "csv",
        )
    folder, _, _ = prepare_log(source, interactions="interactions*")
    for split in ("train", "valid", "test"):  # in the same order: they train to the same metrics
        assert without_time(read_split(whole, split)) == without_time(read_split(folder, split))


def without_time(rows):
    """Return rows without their times, which are in the form of the source."""
    return [{name: value for name, value in row.items() if name != "source_time"} for row in rows]


def write(frame, path, form):
    """Write a table in some form."""
    times = frame["time"] - frame["time"].min() if "time" in frame.columns else []
    moments = [datetime(2024, 3, 31, 0, 59, tzinfo=timezone.utc) + timedelta(seconds=second) for second in times]
    if form == "tsv":
        frame.write_csv(path.with_suffix(".tsv"), separator="\t")
    elif form == "semicolon and BOM":
        frame.write_csv(path.with_suffix(".csv"), separator=";", include_bom=True)
    elif form == "gz":
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(frame.write_csv().encode()))
    elif form == "jsonl.gz":
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(frame.write_ndjson().encode()))
    elif form == "parquet":
        frame.write_parquet(path.with_suffix(".parquet"))
    elif form == "jsonl":
        frame.write_ndjson(path.with_suffix(".jsonl"))
    elif form == "parts":
        frame[:10].write_csv(path.with_name(f"{path.name}.part-0.csv"))
        frame[10:].write_csv(path.with_name(f"{path.name}.part-1.csv"))
    elif form == "ISO":
        frame.with_columns(time=pl.Series([f"{m:%Y-%m-%d %H:%M:%S}" for m in moments])).write_csv(
            path.with_suffix(".csv")
        )
    elif form == "zones":  # as texts they are in another order
        zones = [timezone(timedelta(hours=(5 * number) % 24 - 12)) for number in range(len(moments))]
        texts = [moment.astimezone(zone).isoformat() for moment, zone in zip(moments, zones, strict=True)]
        frame.with_columns(time=pl.Series(texts)).write_csv(path.with_suffix(".csv"))
    elif form == "datetimes":
        frame.with_columns(time=pl.Series(moments)).write_parquet(path.with_suffix(".parquet"))
    else:
        frame.write_csv(path.with_suffix(".csv"))


def test_another_start_continues_and_gives_the_same_rows(shop, prepare_log, monkeypatch):
    options = {"types": ["age=numeric"]}
    whole, summary, _ = prepare_log(shop, **options)
    monkeypatch.setattr(log_module, "CHUNK_ROWS", 60)
    monkeypatch.setattr(log_module, "READ_ROWS", 17)
    written = Writer._write_chunk

    def killed(self, number, chunk):
        if number == 2:
            raise KeyboardInterrupt
        return written(self, number, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_write_chunk", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare_log(shop, folder="again", **options)
    with raises_naming(UserError, "other options"):
        prepare_log(shop, folder="again")
    again, summary_again, _ = prepare_log(shop, folder="again", **options)
    assert summary_again == summary
    for name in ("train", "valid", "test"):
        rows = [sorted(map(str, pl.read_parquet(folder / name).to_dicts())) for folder in (whole, again)]
        assert rows[0] == rows[1]
    assert (whole / "items.parquet").read_bytes() == (again / "items.parquet").read_bytes()
    assert not (again / ".scratch").exists()


@pytest.mark.parametrize("kind", ["from 0", "large", "UUIDs", "zeros in front"])
def test_ids_map_back(kind, tmp_path, prepare_log, read_split):
    make = {
        "from 0": int,
        "large": lambda number: 2**62 + number,
        "UUIDs": lambda number: f"{number:032x}",
        "zeros in front": lambda number: f"{number:03}",
    }[kind]
    rows = [(make(number % 4), make(number % 5), number, number % 2) for number in range(40)]
    frame = pl.DataFrame(rows, schema=["user", "asin", "time", "click"], orient="row")
    for form in ("csv", "parquet"):
        source = tmp_path / form
        source.mkdir()
        getattr(frame, f"write_{form}")(source / f"interactions.{form}")
        folder, summary, _ = prepare_log(source, folder=f"out-{form}")
        found = [row for split in summary.splits for row in read_split(folder, split)]
        known = {(row[0], row[1]) if form == "parquet" else (str(row[0]), str(row[1])) for row in rows}
        assert {(row["user_id"], row["item_id"]) for row in found} == known
        assert (summary.items, summary.users) == (5, 4)  # without --items, those of the log


def test_ids_of_several_types_are_compared_as_texts(shop, prepare_log, tmp_path):
    (shop / "items.csv").unlink()
    log = pl.read_csv(shop / "interactions.csv").with_columns(pl.col("asin").str.slice(1).cast(pl.Int64))
    log.write_parquet(shop / "interactions.parquet")
    log.select(pl.col("asin").cast(pl.String).unique()).write_csv(shop / "items.csv")
    assert prepare_log(shop, interactions="interactions.parquet")[1].items == 30


def test_negatives_are_items_that_the_user_has_no_event_of(tmp_path, prepare_log, read_split, monkeypatch):
    random = np.random.default_rng(0)
    rows = {
        (int(u), int(i)): t
        for t, (u, i) in enumerate(zip(random.integers(0, 9, 200), random.zipf(1.5, 200) % 60, strict=True))
    }
    frame = pl.DataFrame([(*pair, time) for pair, time in rows.items()], schema=["user", "asin", "time"], orient="row")
    frame.write_parquet(tmp_path / "interactions.parquet")
    with raises_naming(UserError, "interactions.parquet", "--labels", "--negatives"):
        prepare_log(tmp_path, folder="none")
    found = []
    for folder, rows_at_once in (("one", 7), ("two", 20)):
        monkeypatch.setattr(log_module, "PART_ROWS", rows_at_once)
        out, summary, expids = prepare_log(tmp_path, folder=folder, negatives=2)
        found.append([row for split in ("train", "valid", "test") for row in read_split(out, split)])
    assert found[0] == found[1]  # of a fixed seed
    assert sum(split.positives for split in summary.splits.values()) == len(rows)
    ends = {"train": len(rows) * 8 // 10, "valid": len(rows) * 9 // 10, "test": len(rows)}
    pairs = sorted(rows, key=rows.get)
    sampled = {(row["user_id"], row["item_id"]) for row in found[0][: 3 * ends["train"]] if not row["label"]}
    assert sampled & set(pairs[ends["train"] :])  # what the user clicks later is no exception
    for event, *negatives in zip(found[0][::3], found[0][1::3], found[0][2::3], strict=True):
        assert (event["user_id"], event["item_id"]) in rows
        place = pairs.index((event["user_id"], event["item_id"]))
        begin, end = next((begin, end) for begin, end in pairwise([0, *ends.values()]) if place < end)
        assert all((row["user_id"], row["item_id"]) not in pairs[:end] for row in negatives)
        assert {row["item_id"] for row in negatives} <= {item for _, item in pairs[begin:end]}
        assert {row["user_id"] for row in negatives} == {event["user_id"]}
        assert all(row["item_seq"] == event["item_seq"] for row in negatives)
        assert [event["label"], *(row["label"] for row in negatives)] == [1, 0, 0]
    overrides = {"epochs": 1, "record": False, "model_root": str(tmp_path / "runs"), "verbose": 0}
    assert Experiment.load(expids[0], out, **overrides).fit().metrics["valid"]["AUC"] > 0


def test_embeddings_and_several_labels(shop, prepare_log, tmp_path):
    asins = pl.read_csv(shop / "items.csv")["asin"]
    vectors = np.random.default_rng(0).normal(size=(len(asins), 4)).astype(np.float32)
    frame = pl.DataFrame({"asin": [*asins, "unknown"], "vector": [*vectors.tolist(), [0.0] * 4]})
    frame.write_parquet(shop / "vectors.parquet")
    log = pl.read_csv(shop / "interactions.csv")
    like = pl.Series([None if number % 3 else number % 2 for number in range(len(log))])
    log.with_columns(like=like).write_csv(shop / "interactions.csv")
    options = {"labels": ["click", "like"], "embeddings": ["vectors.parquet"]}
    folder, summary, expids = prepare_log(shop, **options)
    assert summary.coverage == {"vector": 29 / 30}
    written = pl.read_parquet(folder / "vector.parquet").sort("item_id")
    assert np.array_equal(written["vector"].to_numpy(), vectors)
    likes = pl.concat(pl.read_parquet(folder / split) for split in summary.splits)["like"]
    assert likes.is_nan().sum() + likes.null_count() == like.null_count()
    overrides = {"epochs": 1, "record": False, "model_root": str(tmp_path / "runs"), "verbose": 0}
    assert "like_AUC" in Experiment.load(expids[1], folder, **overrides).fit().metrics["valid"]
    frame.with_columns(vector=pl.col("vector").list.head(pl.int_range(pl.len()) % 5)).write_parquet(
        shop / "vectors.parquet"
    )
    with raises_naming(DataError, "vectors.parquet", "vector", "row 1"):
        prepare_log(shop, folder="uneven", **options)


def test_items_with_a_vector_of_zeros_have_no_embedding(shop, prepare_log):
    asins = pl.read_csv(shop / "items.csv")["asin"]
    vectors = [[0.0, 0.0], *([1.0, float(number)] for number in range(len(asins) - 1))]
    pl.DataFrame({"asin": asins, "vector": vectors}).write_parquet(shop / "vectors.parquet")
    folder, summary, _ = prepare_log(shop, embeddings=["vectors.parquet"])
    assert summary.coverage == {"vector": 28 / 30}
    assert 1 not in pl.read_parquet(folder / "vector.parquet")["item_id"]


@pytest.mark.parametrize("interactions", ["log", "log/*", "log/*/*/*.parquet"])
def test_a_folder_of_partitions(interactions, shop, prepare_log, read_split):
    log = pl.read_csv(shop / "interactions.csv").with_row_index("row")
    day = pl.when(pl.col("time") < log["time"].median()).then(pl.lit("2023-11-14")).otherwise(pl.lit("2023-11-15"))
    log = log.with_columns(day=day, hour=pl.col("row") % 3)
    for (at, hour), part in log.sort("day", "hour").group_by("day", "hour", maintain_order=True):
        (shop / f"log/day={at}/hour={hour:02}").mkdir(parents=True)
        part.drop("day", "hour", "row").write_parquet(shop / f"log/day={at}/hour={hour:02}/part-0.parquet")
    (shop / "log/day=2023-11-14/_SUCCESS").touch()
    folder, summary, _ = prepare_log(shop, interactions=interactions)
    assert sum(split.rows for split in summary.splits.values()) == 300
    facts = json.loads((folder / "manifest.json").read_text())["columns"]["interactions"]
    assert facts["written"]["hour"]["type"] == "categorical"
    assert "day" in facts["left_out"]
    hours = dict(enumerate(log.sort("day", "hour")["hour"]))
    values = pl.read_parquet(folder / "vocabularies/hour.parquet")
    value = dict(zip(values["code"], values["value"], strict=True))
    for row in read_split(folder, "train"):
        assert value[row["hour"]] == str(hours[row["source_row"]])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_integers_with_missing_values_are_integers(form, shop, prepare_log, values_of):
    # pandas makes floats of them: 12 is 12.0.
    users = pl.read_csv(shop / "users.csv")
    missing = pl.int_range(pl.len()) % 4 == 1
    users = users.with_columns(
        city=pl.when(~missing).then((pl.int_range(pl.len()) % 3 + 7).cast(pl.Float64)),
        member=pl.when(missing).then(1.0),
        height=pl.when(~missing).then(1.5),
    )
    (shop / "users.csv").unlink()
    users.write_csv(shop / "users.csv") if form == "csv" else users.write_parquet(shop / "users.parquet")
    folder, _, _ = prepare_log(shop)
    assert sorted(values_of(folder, "city").values()) == ["7", "8", "9"]
    assert list(values_of(folder, "member").values()) == ["1"]
    facts = json.loads((folder / "manifest.json").read_text())["columns"]["users"]["written"]
    assert facts["height_scaled"]["type"] == "numeric"


def test_integers_of_users_that_are_all_different_are_numbers(shop, prepare_log):
    random = np.random.default_rng(0)
    log = pl.read_csv(shop / "interactions.csv").with_columns(user=pl.Series([f"u-{n % 150}" for n in range(300)]))
    log.write_csv(shop / "interactions.csv")
    numbers = random.choice(5000, 150, replace=False)
    users = pl.DataFrame({"user": [f"u-{n}" for n in range(150)], "days": numbers, "device_id": numbers})
    users.write_csv(shop / "users.csv")
    folder, _, _ = prepare_log(shop)
    facts = json.loads((folder / "manifest.json").read_text())["columns"]["users"]
    assert facts["written"]["days_scaled"]["type"] == "numeric"
    assert "device_id" in facts["left_out"]


def test_paths_of_categories_are_lists(shop, prepare_log, values_of):
    items = pl.read_csv(shop / "items.csv").drop("tags")
    paths = [[["all", "tea"], ["all", "new"]], [["all", "books"]], [[]], []] * 8
    items.with_columns(path=pl.Series(paths[:29])).write_parquet(shop / "items.parquet")
    (shop / "items.csv").unlink()
    folder, _, _ = prepare_log(shop)
    names = values_of(folder, "path")
    written = [[names[code] for code in codes] for codes in pl.read_parquet(folder / "items.parquet")["path"]]
    assert written[:4] == [["all", "tea", "new"], ["all", "books"], [], []]


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


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_dates_are_no_category_and_no_text(form, shop, prepare_log):
    items, log = pl.read_csv(shop / "items.csv"), pl.read_csv(shop / "interactions.csv")
    published = pl.datetime_range(datetime(2024, 1, 1), datetime(2024, 1, 2), "30m", eager=True)[: len(items)]
    items = items.with_columns(published=published, kept=published.dt.strftime("%Y-%m-%d"))
    log = log.with_columns(day=pl.from_epoch("time").dt.date())
    for name, frame in (("items", items), ("interactions", log)):
        (shop / f"{name}.csv").unlink()
        write(frame, shop / name, form)
    folder, _, _ = prepare_log(shop, types=["kept=text"])
    columns = json.loads((folder / "manifest.json").read_text())["columns"]
    assert set(columns["items"]["left_out"]) == {"published"}
    assert set(columns["interactions"]["left_out"]) == {"day"}
    assert columns["items"]["written"]["kept"]["type"] == "text"


def with_impressions(shop, rows=3):
    """Add a column of impressions of so many rows each, in the order of time."""
    log = pl.read_csv(shop / "interactions.csv").sort("time").with_row_index("n")
    log.with_columns(impression="i" + (pl.col("n") // rows).cast(pl.String)).drop("n").write_csv(
        shop / "interactions.csv"
    )


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


def test_metrics_group_by_the_column_with_the_role(shop, prepare_log, tmp_path):
    with_impressions(shop, rows=10)
    roles = [*ROLES["roles"], "group=impression"]
    folder, _, _ = prepare_log(shop, roles=roles)
    entry = load_yaml(folder / "dataset_config.yaml")[folder.name]
    assert {"name": "impression", "dtype": "str", "type": "meta"} in entry["feature_cols"]
    overrides = {"epochs": 1, "model_root": str(tmp_path / "runs"), "verbose": 0}
    trained = Experiment.load(f"DIN_{folder.name}", folder, **overrides).fit()
    assert "gAUC" in trained.metrics["valid"]
    groups = trained.predictions("valid")[2]
    assert groups.tolist() == pl.read_parquet(folder / "valid" / "*.parquet")["impression"].to_list()
    assert len(set(groups)) in (3, 4)
    other = Experiment.load(f"DIN_{folder.name}", folder, group_id="user_id", **overrides)
    assert len(other.load_dataset({"valid": True}).splits["valid"]) == len(groups)
    drawn, _, _ = prepare_log(drop_label(shop), "drawn", roles=roles, negatives=1)
    counts = pl.read_parquet(drawn / "train" / "*.parquet").group_by("impression").agg(pl.col("label").mean())
    assert counts["label"].unique().to_list() == [0.5]


def drop_label(shop):
    pl.read_csv(shop / "interactions.csv").drop("click").write_csv(shop / "interactions.csv")
    return shop


def change(column, row, value):
    """Return a change of one value of interactions.csv, all columns as texts."""

    def apply(shop):
        frame = pl.read_csv(shop / "interactions.csv", infer_schema=False)
        values = frame[column].to_list()
        values[row] = value
        frame.with_columns(pl.Series(column, values)).write_csv(shop / "interactions.csv")

    return apply


@pytest.mark.parametrize(
    ("damage", "options", "named"),
    [
        (change("time", 7, "yesterday"), {}, ["interactions.csv: row 7", "time", "yesterday"]),
        (change("time", 7, None), {}, ["interactions.csv: row 7", "time"]),
        (change("asin", 3, None), {}, ["interactions.csv: row 3", "asin"]),
        (change("click", 5, "2"), {}, ["interactions.csv: row 5", "click", "2"]),
        (change("click", 5, "yes"), {}, ["interactions.csv: row 5", "click", "yes"]),
        (change("click", 5, "yes"), {"positive_from": 1}, ["interactions.csv: row 5", "click", "yes"]),
        (None, {"positive_from": 2}, ["interactions.csv", "click", "--positive_from"]),
        (None, {"positive_from": 2, "negatives": 1}, ["--negatives", "--positive_from"]),
        (None, {"roles": ["user=usr", "target=asin"]}, ["--roles user=usr", "user"]),
        (None, {"roles": ["user=user", "target=asin", "history=seen"]}, ["--roles history=seen"]),
        (None, {"roles": [*ROLES["roles"], "history=basket"]}, ["--roles history=basket", "interactions.csv"]),
        (None, {"roles": [*ROLES["roles"], "history=asin"]}, ["--roles", "history", "asin"]),
        (None, {"roles": [*ROLES["roles"], "group=impresion"]}, ["--roles group=impresion", "interactions.csv"]),
        (None, {"roles": [*ROLES["roles"], "group=user"]}, ["--roles group=user"]),
        (None, {"roles": [*ROLES["roles"], "group=basket"]}, ["--roles group=basket", "interactions.csv"]),
        (None, {"roles": [*ROLES["roles"], "group=click"]}, ["--roles group=click", "interactions.csv"]),
        (None, {"labels": ["clicks"]}, ["--labels clicks", "click"]),
        (None, {"split": [0.5, 0.1, 0.1]}, ["--split"]),
        (None, {"types": ["device=number"]}, ["--types device=number", "numeric"]),
        (None, {"types": ["devices=none"]}, ["--types devices"]),
        (None, {"types": ["device=numeric"]}, ["--types device=numeric", "interactions.csv"]),
        (None, {"interactions": "log.csv"}, ["log.csv"]),
        (None, {"interactions": "/log.csv"}, ["--interactions /log.csv", "--source"]),
        (lambda shop: (shop / "users.jsonl").write_text("{}"), {}, ["users.csv", "users.jsonl"]),
        (lambda shop: (shop / "items.csv.gz").write_bytes(b""), {}, ["items.csv", "items.csv.gz"]),
        (lambda shop: (shop / "items.csv").rename(shop / "items.xlsx"), {}, ["items.xlsx", ".csv"]),
        (None, {"negatives": 1}, ["--negatives", "click"]),
        (None, {"embeddings": ["items.csv"]}, ["--embeddings", "items.csv"]),
    ],
)
def test_what_is_wrong_is_named(damage, options, named, shop, prepare_log):
    if damage is not None:
        damage(shop)
    with raises_naming(UserError, *named):
        prepare_log(shop, **options)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"u-1,B001,1700000001,1,phone,2.5,more", ["row 300", "7"]),
        ("u-1,B001,1700000001,1,t\u00e9l\u00e9phone,2.5".encode("latin-1"), ["row 300", "device", "UTF-8"]),
    ],
)
def test_a_row_that_cannot_be_read_is_named(line, named, shop, prepare_log):
    path = shop / "interactions.csv"
    path.write_bytes(path.read_bytes() + line + b"\n")
    with raises_naming(DataError, "interactions.csv", *named):
        prepare_log(shop)


def rewrite(path, change):
    """Rewrite a CSV file as a function of its frame."""
    change(pl.read_csv(path)).write_csv(path)


def test_blank_lines_and_spaces_around_ids_do_not_count(shop, prepare_log, read_split, caplog):
    whole, _, _ = prepare_log(shop, folder="whole")
    path = shop / "interactions.csv"
    header, *lines = path.read_text().splitlines()
    lines = [" , ".join(line.split(",", 2)) for line in lines]
    path.write_text("\n".join([header, *lines[:9], "", *lines[9:], lines[0].rpartition(",")[0], "", ""]))
    with caplog.at_level("WARNING"):
        folder, summary, _ = prepare_log(shop)
    assert "interactions.csv: 1 rows" in caplog.text  # the short one
    assert sum(split.rows for split in summary.splits.values()) == 301
    known = {str(row["item_seq"]) for row in read_split(whole, "train")}
    assert {str(row["item_seq"]) for row in read_split(folder, "train")[:20]} <= known


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


def test_times_of_nanoseconds_keep_their_order(shop, prepare_log, read_split):
    rewrite(shop / "interactions.csv", lambda log: log.sort("time").with_columns(pl.int_range(pl.len()).alias("time")))
    whole, _, _ = prepare_log(shop, folder="whole")
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(pl.col("time") + 1_700_000_000_000_000_000))
    folder, _, _ = prepare_log(shop)
    assert without_time(read_split(whole, "test")) == without_time(read_split(folder, "test"))


@pytest.mark.parametrize("kind", [pl.UInt64, pl.Decimal(38, 0)])
def test_integers_of_other_types_are_ids(kind, tmp_path, prepare_log, read_split):
    base = 2**63 if kind == pl.UInt64 else 2**60
    ids = pl.Series([base + number % 5 for number in range(40)], dtype=kind)
    log = pl.DataFrame({"user": ids, "asin": ids, "time": range(40), "click": [0, 0, 1, 1] * 10})
    log.write_parquet(tmp_path / "interactions.parquet")
    log.select("asin", color=pl.lit("red")).unique().write_parquet(tmp_path / "items.parquet")
    folder, _, _ = prepare_log(tmp_path)
    assert {row["user_id"] for row in read_split(folder, "train")} == {base + number for number in range(5)}


def test_users_that_are_not_in_their_table(shop, prepare_log, caplog):
    with caplog.at_level("WARNING"):
        prepare_log(shop)
    assert "users.csv: 1 of 12" in caplog.text
    rewrite(shop / "users.csv", lambda users: users.with_columns(pl.col("user").str.replace("u", "v")))
    with raises_naming(DataError, "users.csv", "12 of 12"):
        prepare_log(shop, folder="other")


def test_ratings(shop, prepare_log, read_split, tmp_path):
    whole, _, _ = prepare_log(shop, folder="whole")
    rating = pl.when(pl.col("click") == 1).then(4.5).otherwise(3.5)
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(rating.alias("click")))
    folder, _, _ = prepare_log(shop, positive_from=4)
    assert read_split(folder, "test") == read_split(whole, "test")
    arguments = ("log", "--source", shop, "--out", tmp_path / "by command", "--roles", *ROLES["roles"])
    assert run(*arguments, "--positive_from", "4") == 0


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


def test_what_was_begun_with_an_error_begins_again(shop, prepare_log):
    good = (shop / "interactions.csv").read_bytes()
    change("click", 5, "2")(shop)
    with raises_naming(DataError, "row 5"):
        prepare_log(shop)
    (shop / "interactions.csv").write_bytes(good)
    assert prepare_log(shop)[1].items == 30
    with raises_naming(UserError, "other options"):
        prepare_log(shop, types=["device=none"])


def test_a_full_disk_is_no_fault_of_the_files(shop, prepare_log, monkeypatch):
    def full(*args, **kwargs):
        raise pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    with raises_naming(UserError, "out", "No space left") as caught:
        prepare_log(shop)
    assert not isinstance(caught.value, DataError)


def test_a_column_twice_is_refused(shop, prepare_log):
    path = shop / "interactions.csv"
    path.write_text(path.read_text().replace("basket", "click", 1))
    with raises_naming(DataError, "interactions.csv", "click"):
        prepare_log(shop)


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


@pytest.mark.parametrize("first", ["2024-03-31T01:00:00+01:00", "2024-03-31 01:00"])
def test_times_with_and_without_a_zone_are_not_mixed(first, shop, prepare_log):
    texts = [first, *(["2024-03-31T01:00:00"] if "+" in first else ["2024-03-31T01:00:00Z"]) * 299]
    pl.read_csv(shop / "interactions.csv").with_columns(time=pl.Series(texts)).write_csv(shop / "interactions.csv")
    with raises_naming(DataError, "interactions.csv: row 1", "zone"):
        prepare_log(shop)


@pytest.mark.parametrize("name", ["items", "users"])
def test_an_id_twice_is_refused(name, shop, prepare_log):
    path = shop / f"{name}.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with raises_naming(DataError, f"{name}.csv: row", "again"):
        prepare_log(shop)


def test_options_of_a_log_are_of_no_other_reader(microlens, tmp_path, capsys):
    assert run("microlens", "--source", microlens, "--out", tmp_path / "out", "--split_by", "user") == 2
    assert "--split_by" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_fields_of_structs_are_columns(form, shop, prepare_log, read_split, tmp_path):
    source = tmp_path / "nested"
    source.mkdir()
    log = pl.read_csv(shop / "interactions.csv")
    app = pl.struct(device="device", basket="basket")
    log = log.select("user", "asin", "time", feedback=pl.struct("click"), ctx=pl.struct(app=app))
    write(log, source / "interactions", form)
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
