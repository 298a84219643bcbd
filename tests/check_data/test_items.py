"""Item ids and columns of numbers: which are wrong, which are outliers, which are neither."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.check_data import files
from fuxictr_mm.check_data.check import check_folder
from fuxictr_mm.check_data.number_columns import first_outlier

CHECKS = ["bad-item-value", "item-value-outlier", "far-item-id", "bad-context", "context-outlier"]


def outlier_of(values):
    return first_outlier(*np.unique(np.asarray(values), return_counts=True))


@pytest.mark.parametrize(
    ("values", "outlier"),
    [
        ([*list(range(11)) * 10, 99_999], 99_999),
        ([*list(range(11)) * 10, 131], 131),
        ([*list(range(11)) * 10, 120], None),  # a gap of 110, ten times the range
        ([*list(range(11)) * 20, 10**9, 99_999], 99_999),
        ([*list(range(11)) * 10, 99_999, 99_999], None),  # more than 1 in 100
        ([*list(range(11)) * 10, *[10**9] * 30], None),
        ([*list(range(1, 1000)), *[10**9] * 5, 10**12], 10**9),
        ([0] * 100 + [15], None),  # one value alone has no range
        ([*range(10), 500], None),  # too few to tell
        ([], None),
    ],
)
def test_values_far_beyond_the_others(values, outlier):
    assert outlier_of(values) == outlier


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**40), max_size=60))
def test_outliers_are_few_and_the_others_are_many(values):
    outlier = outlier_of(values)
    if outlier is not None:
        above = [v for v in values if v >= outlier]
        below = [v for v in values if v < outlier]
        assert len(above) == 1  # of up to 60
        assert outlier - max(below) > 10 * (max(below) - min(below) + 1)


def test_heavy_tails_and_spread_ids_are_no_outliers():
    rng = np.random.default_rng(0)
    assert outlier_of(rng.integers(1, 2**31, 5000)) is None
    assert outlier_of(rng.zipf(1.6, 20_000).clip(max=10**6)) is None


def of_items(folder, checks=CHECKS, **columns):
    count = len(next(iter(columns.values())))
    pq.write_table(pa.table({"item_id": np.arange(1, count + 1), **columns}), folder / "item_info.parquet")
    report, _ = check_folder(folder, checks)
    return {(f.check, f.column, f.severity): f.rows["row"].to_list() for f in report.findings()}


def test_fractions_in_a_column_of_integers_and_none_in_a_measure(tmp_path):
    levels = [float(v % 10) for v in range(200)]
    levels[7], levels[9] = 2.5, None
    prices = [v + 0.25 * (v % 3) for v in range(200)]
    prices[4] = -1.5
    found = of_items(tmp_path, level=levels, price=prices)
    assert found == {("bad-item-value", "level", "warning"): [7], ("bad-item-value", "level", "error"): [9]}


def test_a_negative_number_among_levels_is_a_warning_and_negative_numbers_in_plenty_are_none(tmp_path):
    rng = np.random.default_rng(1)
    level = rng.integers(0, 11, 300)
    level[17] = -1
    unknown = np.where(np.arange(300) % 5, level.clip(0), -1)  # a code
    degrees = rng.integers(-20, 35, 300)
    found = of_items(tmp_path, level=level, unknown=unknown, degrees=degrees, balance=rng.standard_normal(300))
    assert found == {
        ("bad-item-value", "level", "warning"): [17],
        ("bad-item-value", "unknown", "warning"): list(range(0, 300, 5)),
    }


def test_tags_that_pandas_made_floats_are_ids_and_no_embeddings(tmp_path):
    tags = [[0.0, float(v % 40 + 1)] for v in range(200)]
    tags[5][1], tags[6][1], tags[7][1], tags[8] = -5.0, 7.5, 2.0**31, None
    vectors = np.random.default_rng(0).standard_normal((200, 4)).tolist()
    flags = [[float(v % 2), 1.0] for v in range(200)]
    found = of_items(tmp_path, item_tags=tags, vector=vectors, flags=flags)
    assert found == {("bad-item-value", "item_tags", "error"): [5, 7], ("bad-item-value", "item_tags", "warning"): [6]}


def test_ids_and_rows_across_files_and_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_VALUES", 1)  # 256 rows
    ids = list(range(600))
    ids[300], ids[301], ids[302], ids[303] = None, -4, 2**31, 299
    tags = [[number % 7, 1] for number in range(600)]
    tags[0], tags[500] = [0, 3], [-1, 1]
    pq.write_table(pa.table({"item_id": ids, "item_tags": tags}), tmp_path / "item_info.parquet")
    pq.write_table(pa.table({"item_id": list(range(1, 600))}), tmp_path / "item_emb.parquet")
    report, _ = check_folder(tmp_path)
    found = {(f.check, f.file): list(zip(f.rows["row"], f.rows["item_id"], strict=True)) for f in report.findings()}
    assert found == {
        ("bad-item-id", "item_info.parquet"): [(300, None), (301, None), (302, None)],
        ("duplicate-item", "item_info.parquet"): [(303, 299)],
        ("padding-row", "item_info.parquet"): [(0, 0)],
        ("bad-item-value", "item_info.parquet"): [(500, 500)],
        ("partial-item", "item_info.parquet"): [(None, 300), (None, 301), (None, 302), (None, 303)],
    }


def test_context_columns(tmp_path):
    levels = np.arange(300) % 11
    levels[3], levels[150] = 99_999, 10**9
    halves = (np.arange(300) % 11).astype(float)
    halves[8], halves[9] = 0.5, np.nan
    rng = np.random.default_rng(0)
    columns = {
        "user_id": range(300),
        "item_id": np.arange(300) % 50 + 100,
        "label": np.arange(300) % 2,
        "item_seq": [[1]] * 300,
        # Names that are used for other things as well.
        "click": levels,
        "length": halves,
        "measure": rng.lognormal(size=300).astype(np.float16),
        "standardized": rng.standard_normal(300),
        "flag": levels > 5,
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    report, _ = check_folder(tmp_path, CHECKS)
    found = [(f.check, f.severity, f.column, f.rows["row"].to_list()) for f in report.findings()]
    assert found == [
        ("bad-context", "error", "length", [9]),
        ("context-outlier", "warning", "click", [3, 150]),
        ("bad-context", "warning", "length", [8]),
    ]
    assert report.findings()[1].rows["user_id"].to_list() == [3, 150]


def test_unscaled_numbers_of_train_and_items_are_reported(tmp_path):
    rng = np.random.default_rng(0)
    interactions = {
        "user_id": range(300),
        "item_id": np.arange(300) % 50 + 1,
        "label": np.arange(300) % 2,
        "item_seq": [[1]] * 300,
        "seconds": rng.lognormal(8, 1, 300),
        "scaled": rng.standard_normal(300),
        "level": np.arange(300) % 200,
    }
    items = {"item_id": range(1, 101), "price": rng.lognormal(3, 1, 100), "year": range(1900, 2000)}
    items |= {"words": np.sort(rng.choice(1500, 100, replace=False)), "topic": np.arange(100) % 60}
    for name in ("train", "valid"):
        pq.write_table(pa.table(interactions), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table(items), tmp_path / "item_info.parquet")
    report, _ = check_folder(tmp_path, ["unscaled-context", "unscaled-item-number"])
    found = [(f.check, f.file, f.column) for f in report.findings()]
    assert found == [
        ("unscaled-item-number", "item_info.parquet", "price"),
        ("unscaled-item-number", "item_info.parquet", "words"),
        ("unscaled-context", "train.parquet", "seconds"),
    ]
    assert report.is_clean
