"""Predictions of other programs: how they are ordered, joined and refused."""

import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from fuxictr_mm.cli import main
from fuxictr_mm.errors import DataError, MissingFileError
from fuxictr_mm.evaluation.compare import compare
from fuxictr_mm.evaluation.others import read_file
from fuxictr_mm.runs import find_runs
from tests.errors import exits_naming, raises_naming
from tests.paths import TINY


@pytest.fixture
def run(runs_root):
    """The run with test labels."""
    return next(run for run in find_runs(runs_root) if run.test)


@pytest.fixture
def frame(run):
    """Scores of its test rows with the columns of the test file, of rows that user and item tell apart."""
    data = pd.read_parquet(TINY / "test_labelled.parquet")[["user_id", "item_id", "label"]]
    return data.assign(score=run.predictions("test")[1])


def test_rows_in_order_and_by_number(run, frame, tmp_path):
    expected = run.predictions("test")
    for name, table in {
        "plain.csv": frame[["score"]],
        "plain.parquet": frame[["score"]],
        "labelled.csv": frame[["label", "score"]],
        "keys.csv": frame,
        "submission.csv": pd.DataFrame({"ID": range(len(frame)), "Task2": frame["score"]}).sample(frac=1),
    }.items():
        path = tmp_path / name
        table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path, index=False)
        label, prediction, group = read_file(path, run, "test").predictions("test")
        np.testing.assert_allclose(prediction, expected[1], atol=1e-7)
        assert (label is expected[0]) or np.array_equal(label, expected[0])
        np.testing.assert_array_equal(group, expected[2])


def test_tables_of_prepared_rows_have_the_ids_of_the_owner(run, frame, tmp_path, monkeypatch):
    path = tmp_path / "scores.parquet"
    texts = frame.drop(columns="label").assign(user_id="u" + frame["user_id"].astype(str), item_id="i7")
    texts.assign(row=range(len(frame))).sample(frac=1, random_state=1).to_parquet(path, index=False)
    with raises_naming(DataError, "scores.parquet", "_id"):  # other rows are joined by them
        read_file(path, run, "test")
    monkeypatch.setattr("fuxictr_mm_serving.numbering.is_numbered", lambda file: True)
    found = read_file(path, run, "test").predictions("test")[1]
    np.testing.assert_allclose(found, run.predictions("test")[1], atol=1e-7)


@pytest.fixture
def unique_keys(run, frame, tmp_path):
    """The run with a test file where user and item occur once."""
    folder = tmp_path / "runs" / "tiny_mm" / "A" / run.run
    shutil.copytree(run.path, folder)
    data = pd.read_parquet(run.config["test_data"])
    keep = ~frame.duplicated(["user_id", "item_id"]).to_numpy()
    data[keep].to_parquet(tmp_path / "test.parquet")
    table = pd.read_parquet(folder / "test_predictions.parquet")
    table[keep].to_parquet(folder / "test_predictions.parquet", index=False)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(run.config["test_data"], str(tmp_path / "test.parquet")))
    return find_runs(tmp_path / "runs")[0], frame[keep]


def test_rows_are_joined_by_ids(unique_keys, tmp_path):
    run, frame = unique_keys
    frame.sample(frac=1, random_state=1).to_csv(tmp_path / "x.csv", index=False)
    np.testing.assert_allclose(read_file(tmp_path / "x.csv", run, "test").predictions()[1], frame["score"], atol=1e-7)
    frame.sample(frac=0.9, random_state=1).to_csv(tmp_path / "x.csv", index=False)
    with raises_naming(DataError, "99"):
        read_file(tmp_path / "x.csv", run, "test")


@pytest.fixture
def made(make_run, tmp_path):
    """Gives a run of 300 examples with user and item, by default of a Parquet file; and their rows with the scores."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 300)
    data = pd.DataFrame({"user": [f"u{i // 5}" for i in range(300)], "item": np.arange(300) % 5, "label": label})
    data.to_parquet(tmp_path / "valid.parquet")
    prediction = np.round(64 * (label + generator.normal(size=300))) / 64  # exact as a text

    def give(**settings):
        settings = {"valid_data": tmp_path / "valid.parquet", **settings}
        return make_run("A", (label, prediction, None), **settings)

    return give, data.assign(score=prediction)


def read_shuffled(run, frame, path, index=False, index_label=None):
    frame.sample(frac=1, random_state=1).to_csv(path, index=index, index_label=index_label)
    return read_file(path, run)


def assert_predictions(found, run, how=None):
    """Check that the predictions of a file are those of a run, in its order, and how that was found."""
    np.testing.assert_array_equal(found.predictions()[1], run.predictions()[1])
    assert how is None or found.description == f"rows {how}"


def test_ids_are_looked_up_in_csv_files(made, tmp_path):
    give, frame = made
    frame[["label", "item", "user"]].to_csv(tmp_path / "valid.csv", sep=";")
    run = give(valid_data=tmp_path / "valid.csv", data_format="csv", sep=";")
    found = read_shuffled(run, frame[["user", "item", "score"]], tmp_path / "x.csv")
    assert_predictions(found, run, "joined by user, item")


@pytest.mark.parametrize("change", [lambda d: None, lambda d: d[::-1], lambda d: d[1:]])
def test_ids_of_other_rows_than_those_of_the_run_are_refused(change, made, tmp_path):
    give, frame = made
    if (changed := change(frame)) is not None:
        changed.to_parquet(tmp_path / "changed.parquet")
    run = give(valid_data=tmp_path / "changed.parquet")
    with raises_naming(DataError, "x.csv: user, item: ", "changed.parquet"):
        read_shuffled(run, frame[["user", "item", "score"]], tmp_path / "x.csv")
    frame[["score"]].to_csv(tmp_path / "x.csv", index=False)
    assert_predictions(read_file(tmp_path / "x.csv", run), run)


def test_the_index_of_a_pandas_frame_orders_rows(made, tmp_path):
    give, frame = made
    for label, named in ((None, "the column without a name"), ("Unnamed: 0", "Unnamed: 0")):
        found = read_shuffled(give(), frame[["score"]], tmp_path / "x.csv", index=True, index_label=label)
        assert_predictions(found, give(), f"ordered by {named}")
    frame[["score"]].sample(frac=1).to_parquet(tmp_path / "x.parquet")
    assert_predictions(read_file(tmp_path / "x.parquet", give()), give())
    (tmp_path / "plain.csv").write_text(frame[["score"]].to_csv(index=False))
    names, users = [give().path, tmp_path / "plain.csv"], tmp_path / "runs"
    assert "plain.csv: rows in file order" in compare(names, users, samples=100).notes


def test_the_index_of_a_pandas_frame_joins_no_rows(made, tmp_path):
    give, frame = made
    part = frame[["label", "item", "user"]].set_axis(range(1000, 1000 + len(frame)))  # as after a split
    part.to_csv(tmp_path / "valid.csv")
    run = give(valid_data=tmp_path / "valid.csv", data_format="csv")
    frame[["score"]].to_csv(tmp_path / "x.csv")
    assert_predictions(read_file(tmp_path / "x.csv", run), run, "ordered by the column without a name")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])  # of pandas 2; of Polars, pandas 3
def test_texts_of_digits_are_joined_as_texts(kind, made, tmp_path):
    give, frame = made
    texts = frame.assign(item=[f"{i:05d}" for i in range(len(frame))])
    texts[["label", "item"]].to_csv(tmp_path / "valid.csv", index=False)
    run = give(valid_data=tmp_path / "valid.csv", data_format="csv")
    shuffled = texts.sample(frac=1, random_state=1)
    table = pa.table({"item": pa.array(list(shuffled["item"]), kind), "score": shuffled["score"].to_numpy()})
    pq.write_table(table, tmp_path / "x.parquet")
    assert_predictions(read_file(tmp_path / "x.parquet", run), run, "joined by item")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    "ids",
    [
        pa.array([f"{i:05d}" for i in range(300)]),
        pa.array([2**63 + i for i in range(300)], pa.uint64()),
        pa.array([2**60 + i for i in range(300)], pa.uint64()),
        pa.array([None, *(2**60 + i for i in range(299))], pa.int64()),
    ],
    ids=["digits", "beyond int64", "uint64", "null"],
)
def test_ids_are_joined_by_the_type_of_the_data_file(ids, suffix, made, tmp_path):
    """CSV files tell no type, and NumPy compares some integers as floats."""
    give, frame = made
    pq.write_table(pa.table({"item": ids, "label": frame["label"]}), tmp_path / "valid.parquet")
    order = np.random.default_rng(1).permutation(300)
    rows = pa.table({"item": ids, "score": frame["score"]}).take(order)
    (csv.write_csv if suffix == ".csv" else pq.write_table)(rows, tmp_path / f"x{suffix}")
    assert_predictions(read_file(tmp_path / f"x{suffix}", give()), give(), "joined by item")


def test_integers_of_both_signs_are_compared_exactly(made, tmp_path):
    give, frame = made
    ids = pa.array([2**60 + i for i in range(300)], pa.uint64())
    pq.write_table(pa.table({"item": ids, "label": frame["label"]}), tmp_path / "valid.parquet")
    rows = pa.table({"item": ids.cast(pa.int64()), "score": frame["score"]})
    pq.write_table(rows.take(np.arange(300)[::-1]), tmp_path / "x.parquet")
    assert_predictions(read_file(tmp_path / "x.parquet", give()), give())


def test_a_separator_that_does_not_fit_the_data_is_no_reason_to_take_the_order(made, tmp_path):
    give, frame = made
    frame[["label", "item", "user"]].to_csv(tmp_path / "valid.csv", sep=";", index=False)
    run = give(valid_data=tmp_path / "valid.csv", data_format="csv")
    with raises_naming(DataError, "x.csv: user, item: ", "valid.csv"):
        read_shuffled(run, frame[["user", "item", "score"]], tmp_path / "x.csv")


@pytest.mark.parametrize("left_out", [0, 30])  # as of folds by time
def test_ids_of_out_of_fold_predictions_are_those_of_train_and_valid(left_out, made, tmp_path):
    give, frame = made
    first = frame[:30].assign(user="before", item=range(30))
    pd.concat([first[:left_out], frame[:250]]).to_parquet(tmp_path / "train.parquet")
    frame[250:].to_parquet(tmp_path / "valid.parquet")
    run = give(train_data=tmp_path / "train.parquet")
    assert_predictions(read_shuffled(run, frame[["user", "item", "score"]], tmp_path / "x.csv"), run)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda f: f[["score"]].head(99), "99 predictions"),
        (lambda f: f[["user_id", "score"]].sample(frac=1, random_state=1), "user_id"),
        (lambda f: f[["label"]].assign(label=1 - f["label"], score=f["score"]), "label: "),
        (lambda f: f[["user_id"]].rename(columns={"user_id": "x"}), "x.csv"),
        (lambda f: f[["score"]].assign(score="a"), "score: "),
        (lambda f: f[["score"]].assign(score=f["score"].where(f.index > 0)), "score"),
        (lambda f: f[["score"]].assign(ID=f.index + 1), "ID: "),
        (lambda f: f[["score"]].assign(user_id="a"), "user_id: "),
    ],
)
def test_files_that_do_not_fit(change, found, run, frame, tmp_path):
    change(frame).to_csv(tmp_path / "x.csv", index=False)
    with raises_naming(DataError, found):
        read_file(tmp_path / "x.csv", run, "test")


def test_files_that_cannot_be_read(run, tmp_path):
    with raises_naming(MissingFileError, tmp_path / "x.csv"):
        read_file(tmp_path / "x.csv", run)
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    with raises_naming(DataError, tmp_path / "x.parquet"):
        read_file(tmp_path / "x.parquet", run)


def test_compared_with_runs(run, runs_root, tmp_path):
    label, prediction, _ = run.predictions("test")
    noise = np.random.default_rng(0).normal(size=len(label))
    pd.DataFrame({"y_pred": prediction}).to_csv(tmp_path / "same.csv")
    pd.DataFrame({"y_pred": label + 2 * noise}).to_csv(tmp_path / "other.csv")
    names = [run.run, tmp_path / "same.csv", tmp_path / "other.csv"]
    found = compare(names, runs_root, split="test", samples=100)
    assert found.split == "test"
    aucs = {side.name: side.mean for side in found.sides}
    assert aucs[run.run] == pytest.approx(run.test["AUC"])
    assert aucs["same.csv"] == pytest.approx(run.test["AUC"], abs=1e-5)
    assert all(pair.found.seeds is None for pair in found.pairs)  # two files are no seeds of one configuration


def test_a_file_may_be_better_for_these_predictions(made, tmp_path):
    give, frame = made
    (give().path / "config.yaml").write_text(
        (give().path / "config.yaml").read_text() + "seed: null\n"  # as of an ensemble
    )
    pd.DataFrame({"score": frame["label"]}).to_csv(tmp_path / "best.csv", index=False)
    (pair,) = compare(["A", tmp_path / "best.csv"], tmp_path / "runs", samples=100).pairs
    assert (pair.better, pair.found.seeds) == (None, None)  # of other seeds nothing is known
    assert pair.conclusion.startswith("best.csv is better than A for these predictions")
    give()  # a run, of which other seeds can be trained
    (pair,) = compare(["A", tmp_path / "best.csv"], tmp_path / "runs", samples=100).pairs
    assert pair.conclusion.startswith("seeds unknown: ")


def test_test_without_labels_or_predictions_is_refused(runs_root, tmp_path, capsys):
    arguments = ["compare", "DIN_tiny", "DIN_MM_none_tiny", "--root", str(runs_root), "--split", "test"]
    with exits_naming(capsys, "labels"):
        main(arguments)
    (tmp_path / "x.csv").write_text("score\n1\n")
    with exits_naming(capsys):
        main(["compare", str(tmp_path / "x.csv"), str(tmp_path / "x.csv")])


def test_rows_are_joined_by_texts_of_which_some_are_null(unique_keys, tmp_path):
    run, frame = unique_keys
    data, users = pd.read_parquet(tmp_path / "test.parquet"), frame["user_id"].to_numpy()
    texts = pd.Series([None if user == users[0] else f"u{user}" for user in users], dtype=object)
    data.assign(user_id=texts.to_numpy()).to_parquet(tmp_path / "test.parquet")
    frame.assign(user_id=texts.to_numpy()).sample(frac=1, random_state=1).to_parquet(
        tmp_path / "x.parquet", index=False
    )
    found = read_file(tmp_path / "x.parquet", run, "test")
    np.testing.assert_allclose(found.predictions()[1], frame["score"], atol=1e-7)
