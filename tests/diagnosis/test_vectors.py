"""The spectrum of embeddings against a PCA, neighbours by brute force, titles and reducers from item files."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import PCA

from fuxictr_mm.diagnosis import vectors


def test_the_spectrum_is_that_of_a_pca():
    random = np.random.default_rng(0)
    found = (random.normal(size=(200, 6)) * [5, 4, 1, 1, 0.1, 0] + 3).astype(np.float32)
    stored = np.concatenate([found, np.zeros((50, 6), dtype=np.float32)])
    entry = vectors.describe("v", stored, np.arange(250))
    ratio = PCA().fit(found.astype(np.float64)).explained_variance_ratio_
    np.testing.assert_allclose([k["kept"] for k in entry["kept"]], ratio.cumsum(), rtol=1e-6)
    assert [k["components"] for k in entry["kept"]] == list(range(1, 7))
    assert entry["participation_ratio"] == pytest.approx(1 / (ratio**2).sum(), rel=1e-6)
    assert entry["effective_rank"] == pytest.approx(math.exp(-sum(r * math.log(r) for r in ratio if r > 1e-12)))
    assert (entry["items"], entry["zero_share"], entry["width"]) == (250, pytest.approx(0.2), 6)
    assert entry["components_90"] == int((ratio.cumsum() < 0.9).sum()) + 1
    assert entry["norm_max"] == pytest.approx(np.linalg.norm(found, axis=1).max(), rel=1e-6)


def test_embeddings_of_zeros_are_described():
    entry = vectors.describe("v", np.zeros((4, 3), dtype=np.float32), np.arange(4))
    assert (entry["zero_share"], entry["effective_rank"], entry["variance"], entry["components_90"]) == (1, 0, 0, 0)
    assert entry["norm_mean"] == entry["norm_max"] == 0


def test_a_long_spectrum_is_thinned_out():
    entry = vectors.describe("v", np.random.default_rng(0).normal(size=(700, 600)).astype(np.float32), np.arange(700))
    counts = [k["components"] for k in entry["kept"]]
    assert len(counts) <= vectors.LISTED
    assert (counts[0], counts[-1]) == (1, 600)
    assert counts == sorted(set(counts))


def test_what_a_reduction_kept_is_read_next_to_its_file(tmp_path):
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
    ids = np.delete(np.arange(40), [0, 11])
    clicks = np.zeros(40, dtype=int)
    clicks[[3, 9, 7]] = [5, 8, 8]
    pq.write_table(pa.table({"item_id": [3, 9, 2], "item_title": ["three", "nine", None]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"item_id": np.arange(40)}), tmp_path / "b.parquet")
    files = [str(tmp_path / "absent.parquet"), str(tmp_path / "b.parquet"), str(tmp_path / "a.parquet")]
    found = vectors.find_neighbours(["v"], {"v": stored}.__getitem__, clicks, ids, files, num_items=3, number=4)
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
