"""``prepare log`` against a plain reading of a log."""

import json
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuxictr_mm.datasets import log as log_module
from fuxictr_mm.datasets.folder import VERSION, PreparedFolder
from fuxictr_mm.datasets.own import buckets
from fuxictr_mm.datasets.reader import load_reader
from fuxictr_mm.datasets.writer import Writer
from fuxictr_mm.errors import DataError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.files import write_json
from fuxictr_mm.yaml_files import load_yaml
from fuxictr_mm_serving.prepared import MANIFEST
from tests.datasets.command import run
from tests.datasets.shop import ROLES, drop_label, rewrite, with_impressions, with_value, without_header
from tests.errors import raises_naming


def test_what_is_prepared_trains(shop, tmp_path, capsys):
    options = ("--roles", "user=user", "target=asin", "time=time", "--labels", "click")
    arguments = ("log", "--source", shop, "--out", tmp_path / "shop", *options)
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    assert "device (categorical)" in text
    assert "title (text, not read by models)" in text
    for expid in ("DIN_shop", "DIN_MM_shop", "LightFM_shop"):
        assert f"--config {tmp_path / 'shop'} --expid {expid}" in text
        overrides = {"epochs": 1, "record": False, "model_root": str(tmp_path / "runs"), "verbose": 0}
        experiment = Experiment.load(expid, tmp_path / "shop", **overrides)
        assert 0 <= experiment.fit().metrics["valid"]["AUC"] <= 1
    columns = load_yaml(tmp_path / "shop" / "dataset_config.yaml")["shop"]["feature_cols"]
    assert columns[0] == {"name": "user_id", "dtype": "int", "type": "categorical", "vocab_size": 13}
    assert run(*arguments) == 0  # is complete already
    assert run(*arguments[:-1], "device") == 2


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
    monkeypatch.setattr(buckets, "CHUNK_ROWS", 20)
    monkeypatch.setattr(log_module, "PART_ROWS", 5)
    reader = load_reader("log")(source, source / "out" / ".scratch", max_len)
    reader.configure({"roles": ROLES, "split_by": by})
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


def test_another_start_continues_and_gives_the_same_rows(shop, prepare_log, monkeypatch):
    options = {"types": ["age=numeric"]}
    whole, summary, _ = prepare_log(shop, **options)
    monkeypatch.setattr(buckets, "CHUNK_ROWS", 60)
    monkeypatch.setattr(buckets, "READ_ROWS", 17)
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


@pytest.mark.slow
def test_buckets_without_users_have_no_negatives(shop, prepare_log, monkeypatch):
    monkeypatch.setattr(buckets, "CHUNK_ROWS", 10)  # more of them than users
    with raises_naming(UserError, "--types click=none"):
        prepare_log(shop, negatives=1)
    _, summary, _ = prepare_log(shop, negatives=1, types=["click=none"])  # as if all rows were clicks
    assert sum(split.rows for split in summary.splits.values()) == 600


def test_negatives_are_items_that_the_user_has_no_event_of(tmp_path, prepare_log, read_split, monkeypatch):
    random = np.random.default_rng(0)
    rows = {
        (int(u), int(i)): t
        for t, (u, i) in enumerate(zip(random.integers(0, 9, 200), random.zipf(1.5, 200) % 60, strict=True))
    }
    rows |= {(user, 99): 200 + user for user in range(3)}  # an item that is new in test
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
    assert summary.splits["test"].cold >= 0.05 * summary.splits["test"].rows  # so dropout of ids is written
    overrides = {"epochs": 1, "record": False, "model_root": str(tmp_path / "runs"), "verbose": 0}
    written = load_yaml(out / "model_config.yaml")[expids[0]]
    assert written["feature_specs"] == [{"name": "item_id", "dropout": 0.1, "unknown": "trained"}]
    assert Experiment.load(expids[0], out, **overrides).fit().metrics["valid"]["AUC"] > 0


def test_negatives_are_of_rows_near_in_time(tmp_path, prepare_log, read_split, caplog):
    random = np.random.default_rng(0)
    rows = 600  # of items that come and go, two at a time
    item = np.arange(rows) // 10 + random.integers(0, 8, rows)
    frame = pl.DataFrame({"user": random.integers(0, 90, rows), "asin": item, "time": np.arange(rows) // 2})
    for items, is_warned in ((item, True), (random.permutation(item), False)):
        caplog.clear()
        frame.with_columns(asin=pl.Series(items)).write_parquet(tmp_path / "interactions.parquet")
        prepare_log(tmp_path, folder=f"warned-{is_warned}", negatives=1)
        assert ("--negatives_near" in caplog.text) == is_warned
    frame.write_parquet(tmp_path / "interactions.parquet")
    out, _, _ = prepare_log(tmp_path, negatives=1, negatives_near=0.05)
    for split, begin, end in (("train", 0, 480), ("valid", 480, 540), ("test", 540, 600)):
        found = read_split(out, split)
        for row, negative in zip(found[::2], found[1::2], strict=True):
            of_time = 2 * row["source_time"]
            near = slice(max(begin, of_time - 30), min(end, of_time + 32))
            assert int(negative["item_id"]) in item[near]
            assert (row["label"], negative["label"]) == (1, 0)
    manifest = load_yaml(out / "manifest.json")
    assert manifest["log"]["options"]["negatives_near"] == 0.05  # for a log that extends it


@pytest.mark.parametrize("near", [0.001, 1.0])
def test_a_fraction_is_to_be_increased_only_where_that_helps(near, tmp_path, prepare_log):
    """A user of all items has no negative; one of all items near in time, such as of a session, has others."""
    rows = {"user": [n // 5 for n in range(60)], "asin": [n // 5 if near < 1 else n % 2 for n in range(60)]}
    pl.DataFrame({**rows, "time": range(60)}).write_parquet(tmp_path / "interactions.parquet")
    with raises_naming(DataError, "interactions.parquet") as caught:
        prepare_log(tmp_path, negatives=1, negatives_near=near)
    assert ("--negatives_near" in str(caught.value)) == (near < 1)


@pytest.mark.parametrize(("rule", "of_negatives"), [("new", 0), ("any", 0.25), ("matched", 0.75)])
def test_history_does_not_tell_repeated_items_from_matched_negatives(
    rule, of_negatives, tmp_path, prepare_log, read_split
):
    random = np.random.default_rng(0)
    rows = 1600  # 40 users who take again one of 5 items three times of four, of 20
    user = random.integers(0, 40, rows)
    item = np.where(random.random(rows) < 0.75, (user + random.integers(0, 5, rows)) % 20, random.integers(0, 20, rows))
    frame = pl.DataFrame({"user": user, "asin": item, "time": np.arange(rows) // 2})
    frame.write_parquet(tmp_path / "interactions.parquet")
    out, _, _ = prepare_log(tmp_path, negatives=2, negatives_from=rule, max_len=8, split=[0.3, 0.1, 0.6])
    found = read_split(out, "test")
    is_in = {label: np.mean([r["item_id"] in r["item_seq"] for r in found if r["label"] == label]) for label in (0, 1)}
    assert is_in[0] == pytest.approx(of_negatives * is_in[1] / 0.75, abs=0.1)
    assert is_in[1] > 0.5
    taken = set(zip(*(frame[name].cast(pl.String) for name in ("user", "asin")), frame["time"], strict=True))
    assert not any((str(r["user_id"]), str(r["item_id"]), r["source_time"]) in taken for r in found if not r["label"])


@pytest.mark.parametrize("parts", [1, 2])
def test_rows_without_a_label_of_a_second_file_are_warned_of_with_the_option(parts, shop, prepare_log, caplog):
    log = pl.read_csv(shop / "interactions.csv")
    test = log.with_columns(click=None) if parts == 1 else log.drop("click")
    (shop / "interactions.csv").unlink()
    if parts == 1:
        pl.concat([log, test], how="vertical_relaxed").write_csv(shop / "interactions.csv")
    else:
        log.write_csv(shop / "interactions-1.csv")
        test.write_csv(shop / "interactions-2.csv")
    with caplog.at_level("WARNING"):
        prepare_log(shop, interactions="interactions*")
    assert f"{len(log)} rows have no label" in caplog.text
    assert ("--like" in caplog.text) == (parts == 2)


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
    lines = (folder / "model_config.yaml").read_text().splitlines()
    assert sum(line.startswith("# ") and "embedding_regularizer" in line for line in lines) == 1  # why it is high
    assert summary.coverage == {"vector": 28 / 30}
    assert 1 not in pl.read_parquet(folder / "vector.parquet")["item_id"]


def test_embeddings_whose_norm_is_far_from_1_are_scaled(shop, prepare_log):
    asins = pl.read_csv(shop / "items.csv")["asin"]
    norms = {"near": (1, 1), "far": (22, 22), "uneven": (2, 200)}
    vectors = {name: (np.geomspace(*ends, len(asins))[:, None] * [0.6, -0.8]).tolist() for name, ends in norms.items()}
    pl.DataFrame({"asin": asins, **vectors}).write_parquet(shop / "vectors.parquet")
    folder, _, _ = prepare_log(shop, embeddings=["vectors.parquet"])
    columns = {c["name"]: c for c in load_yaml(folder / "dataset_config.yaml")[folder.name]["feature_cols"]}
    found = {name: (columns[name].get("norm"), columns[name].get("scale")) for name in norms}
    assert found == {"near": (None, None), "far": ("l2", None), "uneven": (None, 0.05)}
    comments = [line.split() for line in (folder / "model_config.yaml").read_text().splitlines() if line[0] == "#"]
    assert [(words[1], words[3]) for words in comments if words[1] in norms] == [("far", "norm:"), ("uneven", "scale:")]


@pytest.mark.parametrize("form", ["csv", "parquet", "npy"])
def test_arrays_with_the_ids_of_their_rows(shop, prepare_log, form):
    asins = pl.read_csv(shop / "items.csv")["asin"].reverse()
    vectors = np.random.default_rng(0).normal(size=(len(asins) + 1, 4)).astype(np.float16)
    vectors[3] = 0
    np.save(shop / "text.npy", vectors)
    ids = pl.DataFrame({"asin": [*asins, "unknown"], "other": 1})
    if form == "npy":
        np.save(shop / "ids.npy", ids["asin"].to_numpy().astype(str))
    else:
        getattr(ids, f"write_{form}")(shop / f"ids.{form}")
    folder, summary, _ = prepare_log(shop, embeddings=[f"text.npy:ids.{form}"])
    assert summary.coverage == {"text": 28 / 30}
    of_item = dict(zip(asins, vectors, strict=False))
    items = pl.read_parquet(folder / "items.parquet").join(pl.read_parquet(folder / "text.parquet"), on="item_id")
    for asin, vector in items.select("source_id", "text").iter_rows():
        assert np.array_equal(vector, of_item[asin])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((7, 4)), ["(7, 4)", "(29, dims)"]),
        (np.zeros(29), ["(29,)", "(29, dims)"]),
        (np.full((29, 4), np.nan), ["row 0"]),
        (np.full((29, 4), None), ["cannot be read"]),
    ],
)
def test_arrays_that_do_not_fit_their_ids(shop, prepare_log, array, words):
    np.save(shop / "text.npy", array, allow_pickle=True)
    with raises_naming(DataError, "text.npy", *words):
        prepare_log(shop, embeddings=["text.npy:items.csv"])


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


def test_metrics_group_by_the_column_with_the_role(shop, prepare_log, tmp_path):
    with_impressions(shop, rows=10)
    roles = [*ROLES, "group=impression"]
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


@pytest.mark.parametrize(
    ("damage", "options", "named"),
    [
        (with_value("time", 7, "yesterday"), {}, ["interactions.csv: row 7", "time", "yesterday"]),
        (with_value("time", 7, None), {}, ["interactions.csv: row 7", "time"]),
        (with_value("asin", 3, None), {}, ["interactions.csv: row 3", "asin"]),
        (with_value("click", 5, "2"), {}, ["interactions.csv: row 5", "click", "2"]),
        (with_value("click", 5, "maybe"), {}, ["interactions.csv: row 5", "click", "maybe"]),
        (with_value("click", 5, "maybe"), {"positive_from": 1}, ["interactions.csv: row 5", "click", "maybe"]),
        (None, {"positive_from": 2}, ["interactions.csv", "click", "--positive_from"]),
        (with_value("click", 5, "ja"), {}, ["interactions.csv: row 5", "click", "--labels click=ja"]),
        (with_value("click", 5, "3"), {}, ["interactions.csv: row 5", "click", "--positive_from"]),
        (None, {"positive_from": 2, "negatives": 1}, ["--negatives", "--positive_from"]),
        (None, {"roles": ["user=usr", "target=asin"]}, ["--roles user=usr", "user"]),
        (
            lambda shop: rewrite(shop / "items.csv", lambda items: items.rename({"asin": "id"})),
            {},
            ["--roles target=asin", "items.csv", "rename", "id"],
        ),
        (None, {"roles": ["user=user", "target=asin", "history=seen"]}, ["--roles history=seen"]),
        (None, {"roles": [*ROLES, "history=basket"]}, ["--roles history=basket", "interactions.csv"]),
        (None, {"roles": [*ROLES, "history=asin"]}, ["--roles", "history", "asin"]),
        (None, {"roles": [*ROLES, "group=impresion"]}, ["--roles group=impresion", "interactions.csv"]),
        (None, {"roles": [*ROLES, "group=user"]}, ["--roles group=user"]),
        (None, {"roles": [*ROLES, "group=basket"]}, ["--roles group=basket", "interactions.csv"]),
        (None, {"roles": [*ROLES, "group=click"]}, ["--roles group=click", "interactions.csv"]),
        (None, {"labels": ["clicks"]}, ["--labels clicks", "click"]),
        (None, {"split": [0.5, 0.1, 0.1]}, ["--split"]),
        (None, {"types": ["device=number"]}, ["--types device=number", "numeric"]),
        (None, {"types": ["devices=none"]}, ["--types devices"]),
        (None, {"types": ["device=sequence"]}, ["--types device=sequence", "interactions.csv"]),
        (None, {"types": ["device=numeric"]}, ["--types device=numeric", "interactions.csv"]),
        (None, {"interactions": "log.csv"}, ["log.csv"]),
        (None, {"interactions": "/log.csv"}, ["--interactions /log.csv", "--source"]),
        (lambda shop: (shop / "users.jsonl").write_text("{}"), {}, ["users.csv", "users.jsonl"]),
        (lambda shop: (shop / "items.csv.gz").write_bytes(b""), {}, ["items.csv", "items.csv.gz"]),
        (lambda shop: (shop / "items.csv").rename(shop / "items.xlsx"), {}, ["items.xlsx", ".csv"]),
        (None, {"negatives": 1}, ["--negatives", "click"]),
        (None, {"negatives_from": "any"}, ["--negatives_from any", "--negatives"]),
        (None, {"negatives_near": 0.1}, ["--negatives_near 0.1", "--negatives"]),
        (drop_label, {"negatives": 1, "negatives_near": 0.0}, ["--negatives_near 0"]),
        (drop_label, {"negatives": 1, "negatives_near": 1.5}, ["--negatives_near 1.5", "at most 1"]),
        (
            drop_label,
            {"negatives": 1, "negatives_from": "matched", "roles": [*ROLES, "history=device"]},
            ["--negatives_from matched", "device"],
        ),
        (None, {"embeddings": ["items.csv"]}, ["--embeddings", "items.csv"]),
        (
            lambda shop: np.save(shop / "img.npy", np.zeros((2, 3))),
            {"embeddings": ["img.npy"]},
            ["--embeddings", "img.npy:ids.csv", "asin"],
        ),
        (without_header, {}, ["interactions.csv", "first line", "--header interactions=", "user"]),
        (
            with_value("time", 0, "11/9/2019 12:03:29 AM"),
            {},
            ["11/9/2019 12:03:29 AM", 'pandas.to_datetime(frame["time"])'],
        ),
        (None, {"types": ["click=text"]}, ["--types click=text", "numeric"]),
        (with_value("click", 5, "inf"), {"types": ["click=numeric"]}, ["interactions.csv: row 5", "click", "inf"]),
        (None, {"types": ["click=numeric"], "positive_from": 1}, ["--positive_from", "click=numeric"]),
        (None, {"types": ["click=numeric"], "history_from": "click"}, ["--history_from click", "click=numeric"]),
        (None, {"history_from": "clic"}, ["--history_from clic", "click"]),
        (None, {"history_from": "click", "roles": [*ROLES, "history=device"]}, ["--history_from", "history"]),
        (None, {"history_from": "click", "negatives": 1}, ["--history_from", "--negatives"]),
    ],
)
def test_what_is_wrong_is_named(damage, options, named, shop, prepare_log):
    if damage is not None:
        damage(shop)
    with raises_naming(UserError, *named):
        prepare_log(shop, **options)


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
    arguments = ("log", "--source", shop, "--out", tmp_path / "by command", "--roles", *ROLES)
    assert run(*arguments, "--positive_from", "4") == 0


def test_what_was_begun_with_an_error_begins_again(shop, prepare_log):
    good = (shop / "interactions.csv").read_bytes()
    with_value("click", 5, "2")(shop)
    with raises_naming(DataError, "row 5"):
        prepare_log(shop)
    (shop / "interactions.csv").write_bytes(good)
    assert prepare_log(shop)[1].items == 30
    with raises_naming(UserError, "other options", "types"):
        prepare_log(shop, types=["device=none"])
    (shop / "interactions.csv").touch()
    with raises_naming(UserError, "other files", "interactions.csv"):
        prepare_log(shop)


def test_of_many_changed_files_some_are_named(tmp_path):
    files = {f"part-{number:04}.csv": [1, number] for number in range(2000)}
    (tmp_path / "users").mkdir()  # a part that is written
    write_json(tmp_path / MANIFEST, {"origin": {"version": VERSION, "files": files}})
    now = {"version": VERSION, "files": {name: [2, 0] for name in files}}
    with raises_naming(UserError, "part-0000.csv", "1995") as caught:
        PreparedFolder(tmp_path, now).prepare(tmp_path / "source", overwrite=False)
    assert len(str(caught.value)) < 500


def test_a_full_disk_is_no_fault_of_the_files(shop, prepare_log, monkeypatch):
    def full(*args, **kwargs):
        raise pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    with raises_naming(UserError, "out", "No space left") as caught:
        prepare_log(shop)
    assert not isinstance(caught.value, DataError)


def test_options_of_a_log_are_of_no_other_reader(microlens, tmp_path, capsys):
    assert run("microlens", "--source", microlens, "--out", tmp_path / "out", "--split_by", "user") == 2
    assert "--split_by" in capsys.readouterr().err
