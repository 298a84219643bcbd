"""Predictions of a split: whether their rows are the same, and their file."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.runs import Predictions


def rows(group, label=None):
    return Predictions(label, np.zeros(len(group), np.float32), np.array(group))


def test_groups_with_other_numbers_differ_where_their_rows_do():
    first, second = rows([7, 7, 3, 3]), rows([1, 1, 2, 1])
    assert first.difference_of_rows(second).endswith("row 3")
    assert first.difference_of_rows(rows([5, 5, 9, 9])) == ""


def test_a_file_of_two_labels_is_read_by_label(tmp_path):
    label = np.array([[0, 0.5], [1, np.nan], [1, -2]])
    prediction = np.arange(6, dtype=np.float32).reshape(3, 2)
    Predictions(label, prediction, np.array([3, 3, 9])).write(tmp_path / "p.parquet", ["click", "watch"])
    watch = Predictions.read(tmp_path / "p.parquet", "watch", is_regression=True)
    np.testing.assert_array_equal(watch.label, label[:, 1])
    known = watch.of_known_labels
    assert (known.label.tolist(), known.prediction.tolist(), known.group.tolist()) == ([0.5, -2], [1, 5], [3, 9])
    click = Predictions.read(tmp_path / "p.parquet", "click")
    assert (click.label.dtype, click.label.tolist()) == (np.int8, [0, 1, 1])


def test_the_columns_of_a_file_are_those_of_earlier_versions(tmp_path):
    columns = {"label_like": [1, None, 0], "prediction_like": [0.5, 0.25, 0.75], "group": ["a", None, "b"]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    found = Predictions.read(tmp_path / "p.parquet", "like").of_known_labels
    assert (found.label.tolist(), found.prediction.tolist(), found.group.tolist()) == ([1, 0], [0.5, 0.75], ["a", "b"])
    Predictions(np.ones(2), np.zeros(2, "f"), np.array([7, np.iinfo(np.int64).min])).write(tmp_path / "one.parquet")
    expected = {"label": [1, 1], "prediction": [0, 0], "group": [7, None]}
    assert pq.read_table(tmp_path / "one.parquet").to_pydict() == expected
