"""Splits: keys, repeats, clicks of later splits against brute force, drift."""

import json
from collections import defaultdict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.check_data import files
from fuxictr_mm.check_data.check import check_folder
from fuxictr_mm.check_data.clean import clean_folder
from fuxictr_mm.config import Roles


def write_split(folder, name, users, items, histories, labels=None, **context):
    columns = {"user_id": users, "item_id": items, "item_seq": pa.array(histories, pa.list_(pa.int64())), **context}
    if labels is not None:
        columns["label"] = labels
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_leaks_are_those_of_brute_force(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(files, "CHUNK_VALUES", 1)
    rng = np.random.default_rng(seed)
    splits = {}
    for name, count in (("train", 700), ("valid", 90), ("test", 80)):
        users, items = rng.integers(1, 30, count), rng.integers(1, 60, count)
        histories = [rng.integers(0, 60, rng.integers(0, 6)).tolist() for _ in range(count)]
        labels = None if name == "test" else rng.integers(0, 2, count)
        splits[name] = (users, items, histories, labels)
        write_split(tmp_path, name, *splits[name])
    report, _ = check_folder(tmp_path, ["future-click", "target-in-history", "inner-padding"])
    got = {}
    for finding in report.findings():
        got[finding.check, finding.file] = sorted(finding.rows.select("row", "value").rows())
    for place, name in enumerate(splits):
        later = [splits[n] for n in list(splits)[place + 1 :]]
        clicks = {
            (u, i)
            for us, its, _, ys in later
            for k, (u, i) in enumerate(zip(us, its, strict=True))
            if ys is None or ys[k] == 1
        }
        users, items, histories, _ = splits[name]
        before = {
            (u, i)
            for us, its, _, ys in (splits[n] for n in list(splits)[: place + 1])
            for k, (u, i) in enumerate(zip(us, its, strict=True))
            if ys is None or ys[k] == 1
        }
        future = sorted((r, i) for r, h in enumerate(histories) for i in h if i and (users[r], i) in clicks - before)
        own = sorted((r, i) for r, h in enumerate(histories) for i in h if i == items[r])
        inner = [r for r, h in enumerate(histories) if "0" in "".join("x" if i else "0" for i in h).strip("0")]
        assert got.get(("future-click", f"{name}.parquet"), []) == future
        assert got.get(("target-in-history", f"{name}.parquet"), []) == own
        assert [r for r, _ in got.get(("inner-padding", f"{name}.parquet"), [])] == inner


def findings(folder, *checks):
    report, _ = check_folder(folder, checks or None)
    return {(f.check, f.file, f.column): f for f in report.findings() if f.severity != "info"}


def world(rng, count, **changes):
    made = {
        "users": rng.integers(1, 500, count),
        "items": rng.integers(1, 200, count),
        "histories": [rng.integers(1, 200, n).tolist() for n in rng.poisson(5, count)],
        "labels": rng.integers(0, 2, count),
        "level": rng.integers(1, 11, count),
    }
    return {**made, **changes}


def write_world(folder, name, world):
    write_split(folder, name, world["users"], world["items"], world["histories"], world["labels"], level=world["level"])


DRIFTS = {
    "label-drift": (lambda rng, n: {"labels": (rng.random(n) < 0.8).astype(int)}, "label"),
    "context-drift": (lambda rng, n: {"level": rng.integers(1, 4, n)}, "level"),
    "history-drift": (lambda rng, n: {"histories": [[3]] * n}, "item_seq"),
    "popularity-drift": (lambda rng, n: {"items": rng.integers(1, 20, n)}, "item_id"),
    "cold-targets": (lambda rng, n: {"items": rng.integers(150, 300, n)}, "item_id"),
}


@pytest.mark.parametrize("check", [*DRIFTS, None])
def test_drift_of_each_kind_is_found_and_nothing_without_it(tmp_path, check):
    rng = np.random.default_rng(6)
    weights = 1 / np.arange(1, 200)
    for name, count in (("train", 6000), ("valid", 1500)):
        made = world(rng, count, items=1 + rng.choice(199, count, p=weights / weights.sum()))
        if check and name == "valid":
            made.update(DRIFTS[check][0](rng, count))
        write_world(tmp_path, name, made)
    found = findings(tmp_path, *DRIFTS)
    if check is None:
        assert found == {}
    else:
        assert (check, "valid.parquet", DRIFTS[check][1]) in found


def test_labels_of_one_class_and_unknown_labels(tmp_path):
    rng = np.random.default_rng(7)
    write_world(tmp_path, "train", world(rng, 50, labels=np.ones(50, dtype=int)))
    write_world(tmp_path, "valid", world(rng, 50, labels=[0.5, float("nan"), *[0.0, 1.0] * 24]))
    found = findings(tmp_path, "one-class", "bad-label")
    assert set(found) == {("one-class", "train.parquet", "label"), ("bad-label", "valid.parquet", "label")}
    assert found["bad-label", "valid.parquet", "label"].rows["row"].to_list() == [0, 1]


def test_placeholders_for_the_labels_of_test_are_a_warning_and_hide_no_click(tmp_path):
    write_split(tmp_path, "train", [1, 2], [5, 6], [[7], [8]], [0, 1])
    write_split(tmp_path, "test", [1, 2], [7, 9], [[], []], [0, 0])
    report, _ = check_folder(tmp_path, ["one-class", "future-click"])
    found = {(f.check, f.severity, f.file): f.rows.height for f in report.findings()}
    assert found == {("one-class", "warning", "test.parquet"): 0, ("future-click", "warning", "train.parquet"): 1}


def test_repeats_by_coincidence_are_infos(tmp_path):
    rng = np.random.default_rng(8)
    count = 4000
    users = rng.integers(1, 100, count)  # a history per user: rows meet by coincidence
    made = world(rng, count, users=users, histories=[[int(u)] for u in users], level=np.ones(count, int))
    write_world(tmp_path, "train", made)
    report, _ = check_folder(tmp_path, ["contradictory-row", "duplicate-row"])
    assert {f.severity for f in report.findings()} == {"info"}
    assert sum(f.count for f in report.findings()) > 300
    for name in ("users", "items", "labels"):
        made[name][:600] = made[name][600:1200]
    made["histories"][:600] = made["histories"][600:1200]
    write_world(tmp_path, "train", made)
    assert ("duplicate-row", "train.parquet", "item_id") in findings(tmp_path)


def test_a_contradicted_row_names_the_row_that_contradicts_it(tmp_path):
    made = world(np.random.default_rng(9), 30, labels=np.zeros(30, dtype=int), level=np.ones(30, int))
    for row, label in ((4, 0), (7, 0), (20, 1)):
        for name in ("users", "items"):
            made[name][row] = made[name][4]
        made["histories"][row] = made["histories"][4]
        made["labels"][row] = label
    write_world(tmp_path, "train", made)
    (found,) = check_folder(tmp_path, ["contradictory-row"])[0].findings()
    assert found.rows["row"].to_list() == [4, 7, 20]
    partners = [value.split("equals row ")[1].split()[0] for value in found.rows["value"]]
    assert partners == ["20", "20", "4"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_rows_and_repeats_are_those_of_brute_force(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(files, "CHUNK_VALUES", 1)
    rng = np.random.default_rng(seed)
    keys, labels = {}, {}
    for name, count in (("train", 900), ("valid", 300)):
        users, items, levels = rng.integers(1, 4, count), rng.integers(1, 4, count), rng.integers(0, 2, count)
        histories = [rng.integers(0, 3, rng.integers(0, 4)).tolist() for _ in range(count)]
        labels[name] = rng.integers(0, 2, count).tolist()
        write_split(tmp_path, name, users, items, histories, labels[name], level=levels.astype(float))
        real = [tuple(item for item in history if item) for history in histories]
        keys[name] = list(zip(users.tolist(), items.tolist(), real, levels.tolist(), strict=True))
    checks = ["duplicate-row", "contradictory-row", "shared-row", "repeated-history"]
    report, _ = check_folder(tmp_path, checks)
    got = defaultdict(list)
    for finding in report.findings():
        got[finding.check, finding.file] += finding.rows["row"].to_list()
    for name in keys:
        groups = defaultdict(list)
        for row, key in enumerate(keys[name]):
            groups[key].append(row)
        classes = {key: {labels[name][row] for row in rows} for key, rows in groups.items()}
        contradictory = sorted(row for key, rows in groups.items() if len(classes[key]) > 1 for row in rows)
        duplicate = sorted(row for key, rows in groups.items() if len(classes[key]) == 1 for row in rows[1:])
        repeated = [row for row, key in enumerate(keys[name]) if len(set(key[2])) < len(key[2])]
        assert got["contradictory-row", f"{name}.parquet"] == contradictory
        assert got["duplicate-row", f"{name}.parquet"] == duplicate
        assert got["repeated-history", f"{name}.parquet"] == repeated
    shared = [row for row, key in enumerate(keys["train"]) if key in set(keys["valid"])]
    assert got["shared-row", "train.parquet"] == shared


def test_cold_targets_and_empty_histories_are_always_measured(tmp_path):
    write_split(tmp_path, "train", [1, 2, 3, 4], [5, 6, 7, 8], [[], [0, 0], [5], None], [0, 1, 0, 1])
    write_split(tmp_path, "valid", [1, 2, 3, 4], [5, 6, 9, 9], [[1], [2], [3], []], [0, 1, 0, 1])
    write_split(tmp_path, "test", [1, 2], [5, 5], [[1], [2]])
    report, _ = check_folder(tmp_path, ["bad-label"])
    assert report.measures == {
        "cold_fraction": {"valid": 0.5, "test": 0.0},
        "without_history": {"train": 0.75, "valid": 0.25, "test": 0.0},
    }
    report, _ = check_folder(tmp_path, ["cold-targets"])
    assert [(f.check, f.file) for f in report.findings()] == [("cold-targets", "test.parquet")]


@pytest.mark.parametrize("kind", [pa.null(), pa.list_(pa.null())])
def test_histories_that_are_all_empty(tmp_path, kind):
    count = 40
    histories = pa.nulls(count, kind) if kind == pa.null() else pa.array([[]] * count, kind)
    columns = {"user_id": range(count), "item_id": np.arange(count) + 1, "item_seq": histories}
    pq.write_table(pa.table({**columns, "label": np.arange(count) % 2}), tmp_path / "train.parquet")
    found = findings(tmp_path)
    assert set(found) <= {("null-history", "train.parquet", "item_seq")}


def test_histories_of_floats_with_nulls_and_far_ids(tmp_path):
    pq.write_table(pa.table({"item_id": range(1, 6)}), tmp_path / "item_info.parquet")
    histories = [[1.0, 2.0], [3.5], [None, 4.0], [-1.0], [2.0**40], [float("nan"), 5.0]]
    columns = {"user_id": [1] * 6, "item_id": [1, 2, 3, 4, 5, 2**62], "item_seq": histories, "label": [0, 1] * 3}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    found = findings(tmp_path, "unknown-history", "unknown-target", "column-type")
    assert found["unknown-history", "train.parquet", "item_seq"].rows["row"].to_list() == [1, 2, 3, 4, 5]
    assert found["unknown-target", "train.parquet", "item_id"].rows["row"].to_list() == [5]
    assert len(found) == 2


def test_unused_items_are_neither_target_nor_in_a_history(tmp_path):
    pq.write_table(pa.table({"item_id": [0, 4, 3, 2, 1, 5]}), tmp_path / "item_info.parquet")
    write_split(tmp_path, "train", [1, 1], [1, 3], [[0, 2], [9]], [0, 1])
    report, _ = check_folder(tmp_path, ["unused-item"])
    (finding,) = report.findings()
    assert finding.rows.select("row", "item_id").rows() == [(1, 4), (5, 5)]


def test_text_in_one_split_and_numbers_in_another(tmp_path):
    for name, levels in (("train", ["5", "6"]), ("valid", [5, 6])):
        rows = {"user_id": [1, 2], "item_id": [1, 2], "item_seq": [[], [1]], "level": levels, "label": [0, 1]}
        pq.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"item_id": [1, 2]}), tmp_path / "items.parquet")
    report, _ = check_folder(tmp_path)
    found = [(f.check, f.severity, f.file) for f in report.findings() if f.column == "level"]
    assert ("column-type", "error", "train.parquet") in found


@pytest.mark.parametrize("kind", ["role", "stamp", "offset", "text", "number"])
def test_rows_at_other_times_or_in_another_text_are_not_equal(tmp_path, kind):
    world_of = {}
    for name, count in (("train", 900), ("valid", 100)):
        world_of[name] = world(np.random.default_rng(0), count)
    for key, values in world_of["train"].items():  # each of 300 rows again, at another time
        world_of["train"][key] = [*values[:600], *values[:300]]
    for start, name in enumerate(world_of):
        times = np.arange(len(world_of[name]["users"])) + 1000 * start
        column = {
            "stamp": pa.array(times).cast(pa.timestamp("us", "Europe/Berlin")),
            "offset": pa.array(times).cast(pa.timestamp("us", "+05:30")),
            "text": pa.array([f"page {time}" for time in times]),
        }.get(kind, pa.array(times))
        made = world_of[name]
        write_split(tmp_path, name, made["users"], made["items"], made["histories"], made["labels"], when=column)
    checks = ["duplicate-row", "contradictory-row", "shared-row"]
    report, _ = check_folder(tmp_path, checks, roles=Roles(time="when") if kind == "role" else None)
    assert not report.findings()


@pytest.mark.parametrize(
    "kinds", [(pa.int64(), pa.int64()), (pa.int32(), pa.float64()), (pa.uint8(), pa.decimal128(19, 0))]
)
def test_rows_of_two_splits_are_equal_whatever_the_types(tmp_path, kinds):
    made = world(np.random.default_rng(0), 300)
    for name, kind in zip(("train", "valid"), kinds, strict=True):
        texts = {"split": [name] * 300, "device": ["phone", "tablet"] * 150}
        level = pa.array(made["level"]).cast(kind)
        write_split(
            tmp_path, name, made["users"], made["items"], made["histories"], made["labels"], level=level, **texts
        )
    found = findings(tmp_path, "shared-row")
    assert found["shared-row", "train.parquet", "item_id"].count == 300


@pytest.mark.parametrize("column", ["text", None])
def test_a_split_without_lists_of_histories(tmp_path, column):
    columns = {"user_id": range(40), "item_id": np.arange(40) + 1, "label": np.arange(40) % 2}
    if column:
        columns["item_seq"] = ["1^2"] * 40
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    check = "column-type" if column else "missing-column"
    assert set(findings(tmp_path)) == {(check, "train.parquet", "item_seq")}


@pytest.mark.parametrize("time", [None, "number", "datetime", "date"])
def test_an_item_that_was_clicked_before_and_is_clicked_again_is_no_future_click(tmp_path, time):
    days = {"train": [1, 2, 4, 3], "valid": [5, 6]}

    def write(name, *columns):
        found = {"number": days[name], "datetime": pd.to_datetime(days[name], unit="D")}
        found["date"] = pa.array(days[name], pa.int32()).cast(pa.date32())
        write_split(tmp_path, name, *columns, **({"ts": found[time]} if time else {}))

    # User 1 clicks item 5 on day 1 and again on day 5, user 2 item 6 on days 4 and 6.
    write("train", [1, 1, 2, 2], [5, 7, 6, 8], [[], [5], [], [6]], [1, 1, 1, 0])
    write("valid", [1, 2], [5, 6], [[5, 7], [6]], [1, 1])
    report, _ = check_folder(tmp_path, ["future-click"], roles=Roles(time="ts") if time else None)
    # Its history of day 3 has it: without times, the day of the click in train is not known.
    assert [f.rows.select("row", "value").rows() for f in report.findings()] == ([[(3, 6)]] if time else [])


def test_cleaning_keeps_clicks_that_the_files_may_lack(tmp_path):
    write_split(tmp_path, "train", [1, 2], [7, 8], [[5], [6]], [0, 1])
    write_split(tmp_path, "valid", [1, 2], [5, 9], [[], []], [1, 0])
    report, found = check_folder(tmp_path, ["future-click"])
    assert [f.rows["row"].to_list() for f in report.findings()] == [[0]]
    clean_folder(found, report, tmp_path / "clean")
    assert pq.read_table(tmp_path / "clean" / "train.parquet")["item_seq"].to_pylist() == [[5], [6]]


def songs(rng, count, leak=None):
    """Clicks of users who come back to an item in one of five; with ``leak``, some with their target in the history."""
    histories, items, labels = [], [], rng.integers(0, 2, count)
    for row in range(count):
        met = rng.integers(1, 2000, 2).tolist()
        for _ in range(10):
            met.append(int(rng.choice(met)) if rng.random() < 0.2 else int(rng.integers(1, 2000)))
        *history, item = met
        if leak and labels[row] and row % 4 == 0:
            history = [*history[1:], item] if leak == "newest" else [item, *history[1:]]
            if leak == "anywhere":
                rng.shuffle(history)
        histories.append(history)
        items.append(item)
    return {"histories": histories, "items": items, "labels": labels}


@pytest.mark.parametrize("leak", [None, "newest", "oldest", "anywhere"])
def test_items_that_are_clicked_again_are_told_from_leaks(tmp_path, leak):
    rng = np.random.default_rng(9)
    write_world(tmp_path, "train", world(rng, 2000, **songs(rng, 2000, leak)))
    report, _ = check_folder(tmp_path, ["target-in-history"])
    (finding,) = report.findings()
    assert finding.severity == ("warning" if leak else "info")
    assert finding.rows.height > 200


def playlists(rng, leak):
    """Rows in the order of time: users play every third song again, and histories hold a song once, the newest last."""
    rows = []
    for user in range(1, 151):
        history = []
        for day in range(12):
            again = bool(history) and rng.random() < 1 / 3
            item = int(rng.choice(history) if again else rng.integers(1, 5000))
            after = [*(i for i in history if i != item), item]
            rows.append((day, user, item, after if leak and rng.random() < 0.2 else history, 1))
            rows.append((day, user, int(rng.integers(5000, 9000)), history, 0))
            history = after
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.parametrize("time", [None, "day"])
def test_histories_without_repetition_do_not_make_repeated_clicks_leaks(tmp_path, time, leak):
    days, users, items, histories, labels = zip(*playlists(np.random.default_rng(3), leak), strict=True)
    write_split(tmp_path, "train", users, items, histories, labels, day=days)
    report, _ = check_folder(tmp_path, ["target-in-history"], roles=Roles(time=time) if time else None)
    (finding,) = report.findings()
    assert finding.severity == ("warning" if leak else "info")
    assert finding.rows.height > 400


@pytest.mark.parametrize(("repeats", "severity"), [(1, "info"), (4, "info"), (30, "warning")])
@pytest.mark.parametrize("place", [0, 2, -1])
def test_where_no_history_shows_an_item_again_a_few_clicks_may(tmp_path, repeats, severity, place):
    """Of 400 histories none may show by chance what is so in one of 200."""
    histories = np.arange(400 * 4).reshape(400, 4) + 1
    items = np.arange(2000, 2400)
    items[: 2 * repeats : 2] = histories[: 2 * repeats : 2, place]
    made = {"histories": histories.tolist(), "items": items, "labels": np.arange(1, 401) % 2}
    write_world(tmp_path, "train", world(np.random.default_rng(0), 400, **made))
    write_world(tmp_path, "valid", world(np.random.default_rng(0), 400, **{**made, "users": np.arange(1000, 1400)}))
    report, found = check_folder(tmp_path, ["target-in-history"])
    assert {(f.severity, f.rows.height) for f in report.findings()} == {(severity, repeats)}
    clean_folder(found, report, tmp_path / "clean")
    assert pq.read_table(tmp_path / "clean" / "train.parquet")["item_seq"].to_pylist() == made["histories"]


@pytest.mark.parametrize(("clicks", "severity"), [(3, "info"), (40, "warning")])
def test_where_no_history_shows_an_item_again_a_few_later_clicks_may(tmp_path, clicks, severity):
    histories = np.arange(400 * 4).reshape(400, 4) + 1
    users = np.arange(400)
    made = world(np.random.default_rng(0), 400, users=users, histories=histories.tolist(), items=users + 2000)
    write_world(tmp_path, "train", made)
    items = np.where(users < clicks, histories[:, 1], users + 3000)
    write_world(tmp_path, "valid", {**made, "items": items, "labels": np.ones(400, dtype=int)})
    report, _ = check_folder(tmp_path, ["future-click"])
    assert [(f.severity, f.rows.height) for f in report.findings() if f.file == "train.parquet"] == [(severity, clicks)]


@pytest.mark.parametrize("key", ["fuxictr_mm.extends", "fuxictr_mm.known_items"])
def test_a_folder_that_continues_another_has_histories_of_clicks_that_are_not_in_it(tmp_path, key):
    write_split(tmp_path, "train", [1, 2, 3], [5, 6, 7], [[5, 8], [9, 8], [9, 4]], [1, 1, 0])
    write_split(tmp_path, "valid", [3, 2, 3], [9, 6, 4], [[], [], []], [1, 0, 1])
    checks = ["target-in-history", "future-click"]
    report, _ = check_folder(tmp_path, checks)
    assert {(f.check, f.severity) for f in report.findings()} == {(name, "warning") for name in checks}
    value = json.dumps({"item_id": {"0" * 64: 9}} if "extends" in key else 9)
    for name in ("train", "valid"):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pq.read_table(path).replace_schema_metadata({key: value}), path)
    report, _ = check_folder(tmp_path, checks)
    assert {(f.check, f.severity) for f in report.findings()} == {(name, "info") for name in checks}


@pytest.mark.parametrize(("fraction", "severity"), [(0.4, "info"), (1.0, "warning")])
def test_a_leak_of_all_clicks_is_told_from_clicks_of_an_earlier_folder(tmp_path, fraction, severity):
    """Histories that hold the click of their row, or of valid, without repeated items; the earlier files are absent."""
    users, rng = np.arange(200), np.random.default_rng(4)
    histories = np.arange(200 * 4).reshape(200, 4) + 1
    is_leak = rng.permutation(200) < 200 * fraction
    labels = np.ones(200, dtype=int)
    own = np.where(is_leak, histories[:, -1], users + 2000)
    later = np.where(is_leak, histories[:, 0], users + 3000)
    write_split(tmp_path, "train", users, own, histories.tolist(), labels)
    write_split(tmp_path, "valid", users, later, [[]] * 200, labels)
    for name in ("train", "valid"):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pq.read_table(path).replace_schema_metadata({"fuxictr_mm.known_items": "9"}), path)
    report, _ = check_folder(tmp_path, ["target-in-history", "future-click"])
    found = {f.check: f.severity for f in report.findings() if f.file == "train.parquet"}
    assert found == {"target-in-history": severity, "future-click": severity}


@pytest.mark.parametrize(("label", "severity"), [(0, "info"), (1, "warning")])
def test_a_row_that_is_no_click_may_have_its_target_in_its_history(tmp_path, label, severity):
    write_split(tmp_path, "train", [1, 2, 3], [5, 6, 7], [[5, 8], [9, 8], [9, 4]], [label, 1, 0])
    report, _ = check_folder(tmp_path, ["target-in-history"])
    assert [(f.rows["row"].to_list(), f.severity) for f in report.findings()] == [([0], severity)]


@pytest.mark.parametrize("fraction", [0.1, 0.6])
def test_later_clicks_on_known_items_are_told_from_leaks(tmp_path, fraction):
    rng = np.random.default_rng(10)
    train = world(rng, 500, users=np.arange(500), **songs(rng, 500))
    seen = [history[5] if rng.random() < fraction else 1999 - n for n, history in enumerate(train["histories"])]
    write_world(tmp_path, "train", train)
    write_world(tmp_path, "valid", world(rng, 500, users=np.arange(500), items=seen, labels=np.ones(500, dtype=int)))
    report, _ = check_folder(tmp_path, ["future-click"])
    (finding,) = [finding for finding in report.findings() if finding.file == "train.parquet"]
    assert finding.severity == ("info" if fraction < 0.2 else "warning")


def test_a_column_that_a_later_split_does_not_have_is_found(tmp_path):
    for name, labels, more in (("train", [0, 1], True), ("valid", [0, 1], False), ("test", None, False)):
        columns = {"level": [1, 2], "word": ["a", "b"]} if more else {"level": [1, 2]}
        write_split(tmp_path, name, [1, 2], [5, 6], [[7], [8]], labels, **columns)
    report, _ = check_folder(tmp_path, ["missing-context"])
    found = {(f.file, f.column, f.severity) for f in report.findings()}
    assert found == {("valid.parquet", "word", "warning"), ("test.parquet", "word", "info")}
