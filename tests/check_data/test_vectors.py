"""Vectors: near duplicates against all pairs, lengths, and images that do not belong to their text."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.check_data import files
from fuxictr_mm.check_data.check import check_folder
from tests.arrow import skip_unreadable


def write(folder, **columns):
    count = len(next(iter(columns.values())))
    arrays = {"item_id": pa.array(np.arange(1, count + 1))}
    for name, values in columns.items():
        arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])
    pq.write_table(pa.table(arrays), folder / "item_feature.parquet")
    return folder


def rows_of(folder, check):
    report, _ = check_folder(folder, [check])
    return sorted(r for f in report.findings() for r in f.rows["row"]), report


@pytest.mark.parametrize("chunk", [64, 1 << 22])
def test_near_duplicates_are_those_of_all_pairs(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(files, "CHUNK_VALUES", chunk)
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((900, 24))
    for row in range(100):  # neighbours at distances from far below to far above the limit
        noise = rng.standard_normal(24)
        base = vectors[row] / np.linalg.norm(vectors[row])
        vectors[800 + row] = 3 * (base + 10 ** rng.uniform(-4, -1) * noise / np.linalg.norm(noise))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance = np.sqrt(np.maximum(2 - 2 * unit @ unit.T, 0))
    expected = sorted(j for i in range(900) for j in range(i + 1, 900) if distance[i, j] <= 0.01)
    assert 20 < len(expected) < 90
    found, _ = rows_of(write(tmp_path, item_emb=vectors), "near-duplicate-vector")
    assert found == expected


def test_equal_vectors_name_the_first_and_minus_zero_is_zero(tmp_path):
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((50, 4))
    vectors[:, 0] = 0.0
    vectors[7] = vectors[20] = vectors[3]
    vectors[20, 0] = -0.0
    found, report = rows_of(write(tmp_path, item_emb=vectors), "duplicate-vector")
    assert found == [7, 20]
    assert all("row 3, item_id 4" in value for value in report.findings()[0].rows["value"])


@pytest.mark.parametrize(
    ("factor", "spread", "key"), [(1, 0, ""), (22, 0, "norm: l2"), (0.01, 0, "norm: l2"), (22, 1.5, "scale: ")]
)
def test_a_norm_far_from_1_is_an_info_unless_the_configuration_scales_it(tmp_path, factor, spread, key):
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((200, 8))
    vectors *= factor * rng.lognormal(0, spread, (200, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    (write(tmp_path, item_emb=vectors, other_emb=vectors) / "dataset_config.yaml").write_text(
        "d: {feature_cols: [{name: [item_emb], type: embedding, source: item, norm: l2}]}\n"
    )
    report, _ = check_folder(tmp_path, ["unscaled-vector"])
    assert [f.column for f in report.findings()] == ["other_emb"] * bool(key)
    assert all(key in f.expected for f in report.findings())
    assert report.is_clean


def test_lengths_are_judged_against_the_spread(tmp_path):
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((300, 8)) * rng.lognormal(0, 1.5, (300, 1))
    assert rows_of(write(tmp_path, item_emb=vectors), "norm-outlier")[0] == []
    vectors = rng.standard_normal((300, 8))
    vectors[5] *= 50
    vectors[6] /= 100
    assert rows_of(write(tmp_path, item_emb=vectors), "norm-outlier")[0] == [5, 6]


@pytest.mark.parametrize("noise", [0.3, 0.6])
def test_swapped_images_are_far_and_sound_ones_are_not(tmp_path, noise):
    rng = np.random.default_rng(4)
    topics = rng.standard_normal((1500, 10))
    text = topics @ rng.standard_normal((10, 40)) + noise * rng.standard_normal((1500, 40))
    image = 20 * (topics @ rng.standard_normal((10, 60)) + noise * rng.standard_normal((1500, 60))) + 5
    folder = write(tmp_path, txt=text, img=image)
    found, report = rows_of(folder, "modalities-disagree")
    assert found == []
    assert report.measures["modalities"]["explained"] > 0.8
    image[[11, 12]] = image[[12, 11]]
    assert rows_of(write(tmp_path, txt=text, img=image), "modalities-disagree")[0] == [11, 12]


def test_unrelated_modalities_have_no_outliers(tmp_path):
    rng = np.random.default_rng(5)
    folder = write(tmp_path, title_vector=rng.standard_normal((500, 20)), poster=rng.standard_normal((500, 30)))
    found, report = rows_of(folder, "modalities-disagree")
    assert found == []
    assert abs(report.measures["modalities"]["explained"]) < 0.2


@pytest.mark.parametrize("kind", [pa.list_(pa.float16()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 4)])
def test_broken_embeddings_of_any_type(tmp_path, kind):
    skip_unreadable(kind)
    rows = np.random.default_rng(7).standard_normal((300, 4)).tolist()
    rows[3][2], rows[4][0], rows[5], rows[6] = float("nan"), float("-inf"), [0.0] * 4, None
    if pa.types.is_float16(kind.value_type):
        rows = [None if row is None else [np.float16(v) for v in row] for row in rows]
    pq.write_table(pa.table({"item_id": range(1, 301), "v": pa.array(rows, kind)}), tmp_path / "item_emb.parquet")
    report, _ = check_folder(tmp_path, ["vector-width", "nonfinite-vector", "zero-vector", "constant-column"])
    found = sorted((f.check, f.severity, f.rows["row"].to_list()) for f in report.findings())
    assert found == [
        ("nonfinite-vector", "error", [3, 4]),
        ("zero-vector", "warning", [5]),
        ("zero-vector", "warning", [6]),
    ]


def test_small_integers_are_embeddings_and_not_ids(tmp_path):
    vectors = np.random.default_rng(8).integers(-127, 128, (300, 8))
    vectors[9] = 0
    column = pa.array(vectors.tolist(), pa.list_(pa.int8(), 8))
    pq.write_table(pa.table({"item_id": range(1, 301), "v": column}), tmp_path / "item_emb.parquet")
    report, _ = check_folder(tmp_path)
    zero, unscaled = report.findings()
    assert (zero.check, zero.rows["row"].to_list(), unscaled.check) == ("zero-vector", [9], "unscaled-vector")
