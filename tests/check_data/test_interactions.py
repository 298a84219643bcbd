"""Splits: keys, repeats, clicks of later splits against brute force, drift."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.check_data import items as reading
from fuxictr_mm.check_data.check import SPLIT_CHECKS, check_folder
from fuxictr_mm.check_data.splits import history_keys, pair_keys, population_stability


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 5), max_size=4), max_size=30))
def test_history_keys_are_equal_where_histories_are(histories):
    values = np.array(list(itertools.chain.from_iterable(histories)), dtype=np.int64)
    ends = np.cumsum([0, *map(len, histories)])
    keys = history_keys(values, ends)
    assert len(set(keys.tolist())) == len(set(map(tuple, histories)))
    assert [keys[i] == keys[0] for i in range(len(keys))] == [h == histories[0] for h in histories]


def test_pair_keys_know_the_order():
    left, right = np.divmod(np.arange(10_000), 100)
    assert len(np.unique(pair_keys(left, right))) == 10_000
    assert pair_keys(np.array([1]), np.array([2])) != pair_keys(np.array([2]), np.array([1]))


def write_split(folder, name, users, items, histories, labels=None, **context):
    columns = {"user_id": users, "item_id": items, "item_seq": pa.array(histories, pa.list_(pa.int64())), **context}
    if labels is not None:
        columns["label"] = labels
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_leaks_are_those_of_brute_force(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(reading, "CHUNK_VALUES", 1)
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
        got[finding.check, finding.file] = sorted(zip(finding.rows.tolist(), finding.values.tolist(), strict=True))
    for place, name in enumerate(splits):
        later = [splits[n] for n in list(splits)[place + 1 :]]
        clicks = {
            (u, i)
            for us, its, _, ys in later
            for k, (u, i) in enumerate(zip(us, its, strict=True))
            if ys is None or ys[k] == 1
        }
        users, items, histories, _ = splits[name]
        future = sorted((r, i) for r, h in enumerate(histories) for i in h if i and (users[r], i) in clicks)
        own = sorted((r, i) for r, h in enumerate(histories) for i in h if i == items[r])
        inner = [r for r, h in enumerate(histories) if "0" in "".join("x" if i else "0" for i in h).strip("0")]
        assert got.get(("future-click", f"{name}.parquet"), []) == future
        assert got.get(("target-in-history", f"{name}.parquet"), []) == own
        assert [r for r, _ in got.get(("inner-padding", f"{name}.parquet"), [])] == inner


def findings(folder, *checks):
    report, _ = check_folder(folder, checks or SPLIT_CHECKS)
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


def test_population_stability_by_hand():
    # (9.5 + 0.5) / 20 and so on: shares of 0.5, 0.5 and 0.25, 0.75
    psi = population_stability(np.array([9.5, 9.5]), np.array([4.5, 14.5]))
    assert psi == pytest.approx(-0.25 * np.log(0.25 / 0.5) + 0.25 * np.log(0.75 / 0.5))


def test_labels_of_one_class_and_unknown_labels(tmp_path):
    rng = np.random.default_rng(7)
    write_world(tmp_path, "train", world(rng, 50, labels=np.ones(50, dtype=int)))
    write_world(tmp_path, "valid", world(rng, 50, labels=[0.5, float("nan"), *[0.0, 1.0] * 24]))
    found = findings(tmp_path, "one-class", "bad-label")
    assert set(found) == {("one-class", "train.parquet", "label"), ("bad-label", "valid.parquet", "label")}
    assert found["one-class", "train.parquet", "label"].found == "all 50 labels are 1"
    assert found["bad-label", "valid.parquet", "label"].rows.tolist() == [0, 1]


def test_repeats_by_chance_are_infos(tmp_path):
    rng = np.random.default_rng(8)
    count = 4000
    users = rng.integers(1, 100, count)  # a history per user: rows meet by chance
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
    assert found.rows.tolist() == [4, 7, 20]
    partners = [value.split("equals row ")[1].split()[0] for value in found.values]
    assert partners == ["20", "20", "4"]
    assert [value[value.index("label") :] for value in found.values] == [
        "label 0 and 1)",
        "label 0 and 1)",
        "label 1 and 0)",
    ]
