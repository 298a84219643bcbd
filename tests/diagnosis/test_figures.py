"""The figures of a diagnosis against computations by their definitions, and against scikit-learn."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fuxictr_mm.diagnosis import calibration, slices, vectors
from fuxictr_mm.diagnosis import vectors as neighbours
from fuxictr_mm.diagnosis.attention import even, look_at
from fuxictr_mm.diagnosis.importance import name_fields
from fuxictr_mm.diagnosis.slices import Popularity, by_history_length, by_popularity, count_items
from fuxictr_mm.errors import DataError
from fuxictr_mm.evaluation.significance import RankedRows, auc_with_interval, difference_variance


def rows(count=300, seed=0):
    random = np.random.default_rng(seed)
    prediction = random.random(count).round(2)  # with ties
    return (random.random(count) < prediction).astype(np.float32), prediction


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=12))
def test_auc_is_that_of_scikit_learn(pairs):
    label, score = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    found = auc_with_interval(label, score)
    if len(set(label)) == 1:
        assert set(found.values()) == {None}
    else:
        assert found["auc"] == pytest.approx(roc_auc_score(label, score), abs=1e-12)
        assert 0 <= found["low"] <= found["auc"] <= found["high"] <= 1


def test_delong_variance_by_its_definition():
    """Structural components by a double loop; the difference of two AUC by covariance matrices."""
    label, first = rows(60)
    second = first + np.random.default_rng(1).normal(0, 0.3, 60)

    def components(score):
        wins = (score[label == 1][:, None] > score[label == 0]) + 0.5 * (
            score[label == 1][:, None] == score[label == 0]
        )
        return wins.mean(axis=1), wins.mean(axis=0)

    (v10, v01), (w10, w01) = components(first), components(second)
    half = 1.959964 * math.sqrt(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))
    assert auc_with_interval(label, first)["low"] == pytest.approx(v10.mean() - half)
    covariance = np.cov(v10, w10) / len(v10) + np.cov(v01, w01) / len(v01)
    expected = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert difference_variance(RankedRows(label, first), RankedRows(label, second)) == pytest.approx(expected)
    assert difference_variance(RankedRows(label, first), RankedRows(label, first)) == 0


def test_the_interval_of_auc_holds_its_share():
    """Scores from two normal distributions, whose AUC is known: 95 % of intervals hold it, give or take."""
    random, inside = np.random.default_rng(0), 0
    label = np.repeat([0.0, 1.0], 100)
    truth = 0.5 * (1 + math.erf(1 / 2))  # of a shift by one deviation: normal(1 / sqrt 2)
    for _ in range(400):
        found = auc_with_interval(label, random.normal(label, 1))
        inside += found["low"] <= truth <= found["high"]
    assert 0.92 < inside / 400 < 0.975


def test_entropy_and_divergence_by_loops():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 3, 2, 6, generator=generator, dtype=torch.float64)
    lengths = [6, 2, 1, 0, 4]
    keys = torch.arange(6) < torch.tensor(lengths)[:, None]
    queries = torch.tensor([[True, True], [True, False], [True, True], [True, True], [False, True]])
    weights[4, 1] = 0.0  # a head that says nothing in one row
    found = look_at(weights, keys, queries)
    assert found.lengths.tolist() == lengths

    def entropy(p):
        return -sum(x * math.log(x) for x in p if x > 0)

    for row, length in enumerate(lengths):
        shares = {}
        for head in range(3):
            for query in range(2):
                size = weights[row, head, query, :length].abs()
                if queries[row, query] and length >= 2 and size.sum() > 0:
                    shares[head, query] = (size / size.sum()).tolist()
            mine = [p for (h, _), p in shares.items() if h == head]
            if not mine:
                assert math.isnan(found.entropy_ratio[row, head])
                continue
            expected = np.mean([entropy(p) / math.log(length) for p in mine])
            assert float(found.entropy_ratio[row, head]) == pytest.approx(expected)
            assert float(found.largest[row, head]) == pytest.approx(np.mean([max(p) for p in mine]))
        for pair, (i, j) in enumerate([(0, 1), (0, 2), (1, 2)]):
            both = [q for q in range(2) if (i, q) in shares and (j, q) in shares]
            found_bits = float(found.divergence[row, pair])
            if not both:
                assert math.isnan(found_bits)
                continue
            bits = [
                (entropy([(a + b) / 2 for a, b in zip(shares[i, q], shares[j, q], strict=True)])
                 - (entropy(shares[i, q]) + entropy(shares[j, q])) / 2) / math.log(2)
                for q in both
            ]  # fmt: skip
            assert found_bits == pytest.approx(np.mean(bits), abs=1e-12)
    assert found.silent[4].tolist() == [0, 1, 0]
    assert math.isnan(found.silent[3, 0])


def test_a_large_batch_is_looked_at_in_parts(monkeypatch):
    from fuxictr_mm.diagnosis import attention as attention_weights

    weights, keys = torch.rand(7, 2, 3, 3), torch.rand(7, 3) < 0.7
    whole = look_at(weights, keys, keys)
    monkeypatch.setattr(attention_weights, "CHUNK_ENTRIES", 40)
    for ours, theirs in zip(look_at(weights, keys, keys), whole, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_even_weights_keep_their_sum():
    weights, keys = torch.rand(4, 2, 1, 5), torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [0] * 5, [1, 0, 0, 0, 0]]).bool()
    flat = even(weights, keys)
    torch.testing.assert_close(flat.sum(-1), (weights * keys[:, None, None]).sum(-1))
    assert all(len(flat[row, head, 0, keys[row]].unique()) <= 1 for row in range(4) for head in range(2))
    assert not flat[~keys[:, None, None].expand_as(flat)].any()


def test_calibration_by_brute_force():
    label, prediction = rows(301)
    found = calibration.describe(label, prediction, bins=10)
    order = sorted(range(301), key=lambda row: (prediction[row], row))
    edges = np.cumsum([0] + [len(part) for part in np.array_split(range(301), 10)])
    error = 0.0
    for entry, start, stop in zip(found["curve"], edges[:-1], edges[1:], strict=True):
        members = order[start:stop]
        mean, rate = prediction[members].mean(), label[members].mean()
        assert (entry["rows"], entry["mean_prediction"]) == (len(members), pytest.approx(mean))
        assert entry["rate"] == pytest.approx(rate)
        assert entry["low"] < entry["rate"] + 1e-9
        assert entry["high"] > entry["rate"] - 1e-9
        error += len(members) / 301 * abs(mean - rate)
    assert found["expected_calibration_error"] == pytest.approx(error)


def test_true_probabilities_are_within_the_noise_and_squared_ones_are_not():
    inside = 0
    for seed in range(20):
        label, prediction = rows(2000, seed)
        inside += (
            calibration.describe(label, prediction)["expected_calibration_error"]
            <= (calibration.describe(label, prediction)["noise"])
        )
        found = calibration.describe(label, prediction**2)
        assert found["expected_calibration_error"] > 2 * found["noise"]
    assert inside >= 17


def test_recalibration_is_logistic_regression():
    label, prediction = rows(2000)
    prediction = prediction.clip(0.01, 0.99)
    logit = np.log(prediction / (1 - prediction))
    squeezed = 1 / (1 + np.exp(-(2 * logit + 0.5)))
    intercept, slope = calibration.recalibrate(label, squeezed)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit((2 * logit + 0.5)[:, None], label)
    assert intercept == pytest.approx(reference.intercept_[0], abs=1e-4)
    assert slope == pytest.approx(reference.coef_[0, 0], abs=1e-4)
    assert slope == pytest.approx(0.5, abs=0.06)
    separable = np.array([0.0, 0, 1, 1])
    assert calibration.recalibrate(separable, np.array([0.1, 0.2, 0.8, 0.9])) is None
    assert calibration.recalibrate(separable, np.full(4, 0.5)) is None


def test_auc_by_bucket_is_that_of_scikit_learn():
    label, prediction = rows(400)
    random = np.random.default_rng(2)
    lengths, target = random.integers(0, 30, 400), random.integers(1, 40, 400)
    shown = random.integers(0, 4, 40) * random.integers(0, 20, 40)
    popularity = Popularity(shown, (shown * random.random(40)).astype(int))
    for entry in by_history_length(label, prediction, lengths):
        members = (lengths >= entry["from"]) & (lengths <= (entry["to"] if entry["to"] is not None else 10**9))
        check(entry, members, label, prediction)
    found = by_popularity(label, prediction, target, popularity)
    assert [entry["cold"] for entry in found] == [True] + [False] * (len(found) - 1)
    for entry in found:
        clicks, cold = popularity.clicked[target], popularity.shown[target] == 0
        members = (clicks >= entry["from"]) & (clicks <= (10**9 if entry["to"] is None else entry["to"]))
        check(entry, members & (cold == entry["cold"]), label, prediction)
    assert sum(entry["rows"] for entry in found) == 400


def check(entry, members, label, prediction):
    assert entry["rows"] == members.sum()
    assert entry["positives"] == label[members].sum()
    if 0 < entry["positives"] < entry["rows"]:
        assert entry["auc"] == pytest.approx(roc_auc_score(label[members], prediction[members]))
        assert entry["low"] <= entry["auc"] <= entry["high"]
    else:
        assert entry["auc"] is None


def test_items_are_counted_over_part_files(tmp_path):
    for part, ids in enumerate([[1, 2, 2], [2, 3]]):
        table = pa.table({"item_id": ids, "label": [1.0, 0.0, 1.0][: len(ids)]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    found = count_items(tmp_path, "label", 5)
    assert found.shown.tolist() == [0, 1, 3, 1, 0]
    assert found.clicked.tolist() == [0, 1, 2, 0, 0]
    with pytest.raises(DataError, match=r"item_id.*3"):
        count_items(tmp_path, "label", 3)


def test_spectrum_is_that_of_a_pca():
    from sklearn.decomposition import PCA

    random = np.random.default_rng(0)
    found = (random.normal(size=(200, 6)) * [5, 4, 1, 1, 0.1, 0] + 3).astype(np.float32)
    stored = np.concatenate([found, np.zeros((50, 6), dtype=np.float32)])
    entry = vectors.describe("v", stored)
    ratio = PCA().fit(found.astype(np.float64)).explained_variance_ratio_
    np.testing.assert_allclose([k["kept"] for k in entry["kept"]], ratio.cumsum(), rtol=1e-6)
    assert [k["components"] for k in entry["kept"]] == list(range(1, 7))
    assert entry["participation_ratio"] == pytest.approx(1 / (ratio**2).sum(), rel=1e-6)
    assert entry["effective_rank"] == pytest.approx(math.exp(-sum(r * math.log(r) for r in ratio if r > 1e-12)))
    assert (entry["items"], entry["zero_share"], entry["width"]) == (250, pytest.approx(0.2), 6)
    assert entry["components_90"] == int((ratio.cumsum() < 0.9).sum()) + 1
    assert entry["norm_max"] == pytest.approx(np.linalg.norm(found, axis=1).max(), rel=1e-6)


def test_vectors_that_are_all_zero_are_described():
    entry = vectors.describe("v", np.zeros((4, 3), dtype=np.float32))
    assert (entry["zero_share"], entry["effective_rank"], entry["variance"], entry["components_90"]) == (1, 0, 0, 0)


def test_a_wide_spectrum_is_thinned_out():
    entry = vectors.describe("v", np.random.default_rng(0).normal(size=(700, 600)).astype(np.float32))
    counts = [k["components"] for k in entry["kept"]]
    assert len(counts) <= vectors.LISTED
    assert (counts[0], counts[-1]) == (1, 600)
    assert counts == sorted(set(counts))


def test_the_share_that_a_reduction_kept_is_read_beside_its_file(tmp_path):
    from fuxictr_mm.embeddings.item_files import Source
    from fuxictr_mm.embeddings.reduce import reduce_vectors

    random = np.random.default_rng(0)
    columns = {name: pa.array(list(random.normal(size=(60, 6)).astype(np.float32))) for name in ("t", "i")}
    pq.write_table(pa.table({"item_id": np.arange(1, 61), **columns}), tmp_path / "raw.parquet")
    sources = [Source("text", tmp_path / "raw.parquet", "t"), Source("image", tmp_path / "raw.parquet", "i")]
    _, report = reduce_vectors(sources, tmp_path / "small.parquet", dim=4, prefix="emb")
    files = [str(tmp_path / "absent"), str(tmp_path / "raw.parquet"), str(tmp_path / "small.parquet")]
    for strategy in report["strategies"]:
        found = vectors.find_reduction(strategy["column"], files)
        assert found["kept"] == strategy["kept"]
        assert {entry["modality"]: entry["kept"] for entry in found["kept_of"]} == strategy["kept_of"]
    assert vectors.find_reduction("t", files) is None
    (tmp_path / "small.reducer.safetensors").write_bytes(b"broken")
    assert vectors.find_reduction(report["strategies"][0]["column"], files) is None


def test_neighbours_by_brute_force(tmp_path):
    random = np.random.default_rng(0)
    stored = random.normal(size=(40, 5)).astype(np.float32)
    stored[[0, 7]] = 0
    known = np.ones(40, dtype=bool)
    known[11] = False
    clicks = np.zeros(40, dtype=int)
    clicks[[3, 9, 7]] = [5, 8, 8]
    pq.write_table(pa.table({"item_id": [3, 9, 2], "item_title": ["three", "nine", None]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"item_id": np.arange(40)}), tmp_path / "b.parquet")
    files = [str(tmp_path / "absent.parquet"), str(tmp_path / "b.parquet"), str(tmp_path / "a.parquet")]
    found = neighbours.describe({"v": stored}, clicks, known, files, number_of_items=3, number=4)
    assert [(e["item_id"], e["title"], e["clicks"]) for e in found] == [(7, None, 8), (9, "nine", 8), (3, "three", 5)]
    assert found[0]["columns"][0]["neighbours"] == []

    def cosine(a, b):
        return float(np.dot(stored[a].astype(float), stored[b]) / np.linalg.norm(stored[a]) / np.linalg.norm(stored[b]))

    for entry in found[1:]:
        item = entry["item_id"]
        expected = sorted((i for i in range(1, 40) if i not in (7, 11, item)), key=lambda i: -cosine(item, i))[:4]
        near = entry["columns"][0]["neighbours"]
        assert [n["item_id"] for n in near] == expected
        assert [n["cosine"] for n in near] == pytest.approx([cosine(item, i) for i in expected], abs=1e-5)


def test_fields_of_senet_are_named_where_their_number_tells():
    assert name_fields(4, [], ["a", "b"]) == ["target.a", "target.b", "history.a", "history.b"]
    assert name_fields(3, ["c"], ["a", "b"]) == ["context.c", "target.a", "target.b"]
    assert name_fields(2, ["c"], ["a", "b"]) == ["field.0", "field.1"]


def test_rows_of_one_class_have_no_auc():
    entry = slices.describe_rows(np.ones(3), np.array([0.1, 0.2, 0.3]), np.arange(3))
    assert (entry["auc"], entry["low"], entry["high"], entry["positives"]) == (None, None, None, 3)
