"""Whole numbers: which values lie far beyond the others, which columns hold ids, repeats in histories."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.check_data.check import check_folder
from fuxictr_mm.check_data.items import first_far
from fuxictr_mm.cli import main

CHECKS = ["bad-item-value", "item-value-outlier", "far-item-id", "bad-context", "context-outlier", "repeated-history"]


def far_of(values):
    return first_far(*np.unique(np.asarray(values), return_counts=True))


@pytest.mark.parametrize(
    ("values", "far"),
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
def test_values_far_beyond_the_others(values, far):
    assert far_of(values) == far


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**40), max_size=60))
def test_far_values_are_few_and_those_below_are_many(values):
    far = far_of(values)
    if far is not None:
        beyond = [v for v in values if v >= far]
        below = [v for v in values if v < far]
        assert len(beyond) == 1  # of up to 60
        assert far - max(below) > 10 * (max(below) - min(below) + 1)


def test_heavy_tails_and_spread_ids_are_not_far():
    rng = np.random.default_rng(0)
    assert far_of(rng.integers(1, 2**31, 5000)) is None
    assert far_of(rng.zipf(1.6, 20_000).clip(max=10**6)) is None


def write(folder, **columns):
    count = len(next(iter(columns.values())))
    ids = np.arange(1, count + 1)
    pq.write_table(pa.table({"item_id": ids, **columns}), folder / "item_info.parquet")
    report, _ = check_folder(folder, CHECKS)
    return {(f.check, f.column, f.severity): f.rows.tolist() for f in report.findings()}


def test_fractions_in_a_column_of_whole_numbers_and_none_in_a_measure(tmp_path):
    levels = [float(v % 10) for v in range(200)]
    levels[7], levels[9] = 2.5, None
    prices = [v + 0.25 * (v % 3) for v in range(200)]
    prices[4] = -1.5
    found = write(tmp_path, level=levels, price=prices)
    assert found == {("bad-item-value", "level", "warning"): [7], ("bad-item-value", "level", "error"): [9]}


def test_tags_that_pandas_made_floats_are_judged_as_ids_and_not_as_vectors(tmp_path):
    tags = [[0.0, float(v % 40 + 1)] for v in range(200)]
    tags[5][1], tags[6][1] = -5.0, 7.5
    vectors = np.random.default_rng(0).standard_normal((200, 4)).tolist()
    flags = [[float(v % 2), 1.0] for v in range(200)]
    found = write(tmp_path, item_tags=tags, vector=vectors, flags=flags)
    assert found == {("bad-item-value", "item_tags", "error"): [5], ("bad-item-value", "item_tags", "warning"): [6]}


def split(folder, histories, **context):
    count = len(histories)
    columns = {"user_id": np.arange(count), "item_id": np.arange(count) % 50 + 100, "label": np.arange(count) % 2}
    lists = pa.array(histories, pa.list_(pa.int64()))
    pq.write_table(pa.table({**columns, "item_seq": lists, **context}), folder / "train.parquet")
    report, _ = check_folder(folder, CHECKS)
    return report.findings()


def test_repeats_in_histories_are_a_note_with_their_share(tmp_path):
    (finding,) = split(tmp_path, [[0, 0, 3], [1, 2, 1], [], [4, 4, 4], [0, 5, 6], [7]])
    assert (finding.check, finding.severity) == ("repeated-history", "info")
    assert finding.rows.tolist() == [1, 3]
    assert finding.values.tolist() == [1, 4]
    assert finding.found == "an item more than once, in 40.0% of the histories that are not empty"


def test_context_levels(tmp_path):
    levels = np.arange(300) % 11
    levels[3], levels[150] = 99_999, 10**9
    shares = (np.arange(300) % 11).astype(float)
    shares[8] = 0.5
    measure = np.random.default_rng(0).lognormal(size=300)
    found = split(tmp_path, [[1]] * 300, level=levels, whole=shares, measure=measure)
    assert [(f.check, f.severity, f.column, f.rows.tolist(), f.ids.tolist()) for f in found] == [
        ("bad-context", "warning", "whole", [8], [8]),
        ("context-outlier", "warning", "level", [3, 150], [3, 150]),
    ]


def test_null_in_fixed_size_histories_is_found_and_set_to_padding(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    histories = pa.array([[1, 2], None, [0, 3]] * 20, pa.list_(pa.int64(), 2))
    count = len(histories)
    columns = {"user_id": np.arange(count), "item_id": np.arange(count) + 10, "label": np.arange(count) % 2}
    pq.write_table(pa.table({**columns, "item_seq": histories}), folder / "train.parquet")
    command = ["check-data", str(folder), "--only", "null-history", "--clean", str(tmp_path / "out"), "--quiet"]
    with pytest.raises(SystemExit):
        main(command)
    assert pq.read_table(tmp_path / "out" / "train.parquet")["item_seq"].to_pylist() == [[1, 2], [0, 0], [0, 3]] * 20
