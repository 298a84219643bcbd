"""Tables of predictions: what rows are joined by, and metrics."""

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from fuxictr_mm.data import parquet
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.prediction_files import is_table, measure, write_table
from fuxictr_mm_serving.prepared import NUMBERED
from tests.errors import raises_naming

SETTINGS = {"label_col": {"name": "click"}, "roles": {"target": "asin", "history": "seen", "user": "who", "time": "at"}}


def read(path):
    return (pl.read_csv if path.suffix == ".csv" else pl.read_parquet)(path)


@pytest.fixture
def rows(tmp_path):
    """Two part files with ids of the owner."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for part in range(2):
        frame = {"who": ["a", "b", "c"], "asin": [1, 2, 3], "seen": [[1]] * 3, "at": [part] * 3, "click": [0, 1, part]}
        pl.DataFrame(frame).write_parquet(folder / f"part-{part}.parquet")
    return folder


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_rows_have_their_ids_and_numbers(suffix, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 2)
    scores = np.linspace(0, 1, 6, dtype=np.float32)
    out = tmp_path / f"scores{suffix}"
    assert is_table(out)
    for _ in range(2):  # replaces a table of its own
        write_table(out, str(rows), scores, SETTINGS)
    found = read(out)
    assert found.columns == ["row", "who", "asin", "at", "label", "prediction"]
    assert found["label"].to_list() == [0, 1, 0, 0, 1, 1]
    assert found["row"].to_list() == list(range(6))
    assert found["who"].to_list() == ["a", "b", "c"] * 2
    assert found["at"].to_list() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(found["prediction"].to_numpy().astype(np.float32), scores)


def test_several_labels_and_other_files(rows, tmp_path):
    several = {**SETTINGS, "label_col": [{"name": "click"}, {"name": "like"}]}
    write_table(tmp_path / "two.csv", str(rows), np.zeros((6, 2), np.float32), several)
    assert read(tmp_path / "two.csv").columns[-3:] == ["label_click", "prediction_click", "prediction_like"]
    write_table(tmp_path / "raw.csv", "rows.csv", np.zeros(4), {**SETTINGS, "data_format": "csv"})
    assert read(tmp_path / "raw.csv").columns == ["row", "prediction"]
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with raises_naming(ConfigError, tmp_path / "notes.csv"):
        write_table(tmp_path / "notes.csv", str(rows), np.zeros(6), SETTINGS)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "notes.parquet")
    with raises_naming(ConfigError, tmp_path / "notes.parquet"):
        write_table(tmp_path / "notes.parquet", str(rows), np.zeros(6), SETTINGS)
    with raises_naming(DataError, rows, "6 rows", "5"):
        write_table(tmp_path / "short.csv", str(rows), np.zeros(5), SETTINGS)
    assert not (tmp_path / "short.csv").exists()


@pytest.mark.parametrize("is_later", [False, True])
def test_prepared_rows_have_the_ids_of_the_owner(is_later, tmp_path):
    folder = tmp_path / "shop"
    for name in ("test", "vocabularies"):
        (folder / name).mkdir(parents=True)
    pl.DataFrame({"item_id": [2, 1], "source_id": ["B2", "B1"]}).write_parquet(folder / "items.parquet")
    pl.DataFrame({"code": [1, 2], "value": ["u-1", "u-2"]}).write_parquet(folder / "vocabularies" / "user_id.parquet")
    columns = {"user_id": [2, 0], "item_id": [1, 2]}
    if is_later:
        columns |= {"source_user": ["u-2", "u-9"], "source_time": [5, 6], "source_row": [1, 0]}
        columns["click"] = np.array([1, np.nan], np.float32)
    table = pa.table(columns).replace_schema_metadata(NUMBERED)
    pq.write_table(table, folder / "test" / "part-00000.parquet")
    write_table(tmp_path / "scores.parquet", str(folder / "test"), np.zeros(2), {"label_col": {"name": "click"}})
    found = read(tmp_path / "scores.parquet").drop("prediction").to_dict(as_series=False)
    expected = {"user_id": ["u-2", None], "item_id": ["B1", "B2"], "row": [0, 1]}
    if is_later:
        expected = {"user_id": ["u-2", "u-9"], "item_id": ["B1", "B2"], "source_time": [5, 6], "source_row": [1, 0]}
        expected["label"] = [1.0, None]
    assert found == expected


def test_metrics_are_of_rows_with_a_label(tmp_path):
    path = tmp_path / "rows.parquet"
    labels = [0, 1, 1, None, float("nan"), 0]
    pl.DataFrame({"click": pl.Series(labels, dtype=pl.Float32), "like": ["?"] * 6}).write_parquet(path)
    scores = np.array([[0.2, 0.5], [0.6, 0.5], [0.1, 0.5], [0.9, 0.5], [0.9, 0.5], [0.4, 0.5]])
    settings = {"label_col": [{"name": "click"}, {"name": "like"}, {"name": "buy"}]}
    known = [0, 1, 2, 5]
    found = measure(str(path), scores, settings)
    truth = np.array(labels)[known].astype(float)
    assert found.keys() == {"click"}
    assert found["click"]["rows"] == 4
    assert found["click"]["AUC"] == pytest.approx(roc_auc_score(truth, scores[known, 0]))
    assert found["click"]["logloss"] == pytest.approx(log_loss(truth, scores[known, 0]))
    pl.DataFrame({"click": [1, 1]}).write_parquet(path)
    assert measure(str(path), np.array([0.5, 0.5]), SETTINGS)["click"].keys() == {"rows", "logloss"}
    pl.DataFrame({"click": [3.0, 1.0]}).write_parquet(path)
    found = measure(str(path), np.array([0.5, 0.5]), {**SETTINGS, "task": "regression"})["click"]
    assert found == pytest.approx({"rows": 2, "RMSE": np.sqrt((2.5**2 + 0.5**2) / 2), "MAE": 1.5})
