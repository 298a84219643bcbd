"""AUC by bucket against scikit-learn, counts of items, and the findings of weak buckets."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from fuxictr_mm.diagnosis import slices
from fuxictr_mm.diagnosis.slices import Popularity, count_items, describe_rows
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming


def check(entry, members, label, prediction):
    assert entry["rows"] == members.sum()
    assert entry["positives"] == label[members].sum()
    if 0 < entry["positives"] < entry["rows"]:
        assert entry["auc"] == pytest.approx(roc_auc_score(label[members], prediction[members]))
        assert entry["low"] <= entry["auc"] <= entry["high"]
    else:
        assert entry["auc"] is None


def test_auc_by_bucket_is_that_of_scikit_learn():
    random = np.random.default_rng(2)
    prediction = random.random(400).round(2)
    label = (random.random(400) < prediction).astype(np.float32)
    lengths, target = random.integers(0, 30, 400), random.integers(1, 40, 400)
    shown = random.integers(0, 4, 40) * random.integers(0, 20, 40)
    popularity = Popularity(shown, (shown * random.random(40)).astype(int))
    found = slices.measure(label, prediction, lengths, target, popularity)
    for entry in found["history_length"]:
        high = lengths.max() if entry["to"] is None else entry["to"]
        check(entry, (lengths >= entry["from"]) & (lengths <= high), label, prediction)
    clicks, cold = popularity.clicked[target], popularity.shown[target] == 0
    assert [entry["cold"] for entry in found["popularity"]] == [True] + [False] * (len(found["popularity"]) - 1)
    for entry in found["popularity"]:
        high = clicks.max() if entry["to"] is None else entry["to"]
        members = (clicks >= entry["from"]) & (clicks <= high) & (cold == entry["cold"])
        check(entry, members, label, prediction)
    assert sum(entry["rows"] for entry in found["popularity"]) == 400
    assert "popularity" not in slices.measure(label, prediction, lengths, target, None)


def test_weak_buckets_are_found():
    """Cold items and one bucket of history lengths are scored at random."""
    random = np.random.default_rng(0)
    label = random.integers(0, 2, 4000).astype(np.float32)
    prediction = label * 0.5 + random.random(4000) * 0.5
    lengths, target = random.integers(0, 3, 4000), random.integers(1, 5, 4000)
    weak = (lengths == 0) | (target == 1)
    prediction[weak] = random.random(weak.sum())
    result = slices.measure(label, prediction, lengths, target, Popularity(np.arange(5) - 1, np.arange(5) - 1))
    result["metrics"] = {"auc": roc_auc_score(label, prediction)}
    found = {(f.code, f.subject) for f in slices.findings(result)}
    assert found == {("weak_on_cold_items", "never shown"), ("weak_by_history_length", "0")}


def test_items_are_counted_over_part_files(tmp_path):
    for part, ids in enumerate([[1, 2, 2], [2, 3]]):
        table = pa.table({"item_id": ids, "label": [1.0, 0.0, 1.0][: len(ids)]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    found = count_items(tmp_path, "label", 5)
    assert found.shown.tolist() == [0, 1, 3, 1, 0]
    assert found.clicked.tolist() == [0, 1, 2, 0, 0]
    with raises_naming(DataError, "item_id", "3"):
        count_items(tmp_path, "label", 3)


def test_examples_of_one_class_have_no_auc():
    entry = describe_rows(np.ones(3), np.array([0.1, 0.2, 0.3]))
    assert (entry["auc"], entry["low"], entry["high"], entry["positives"]) == (None, None, None, 3)
