"""The public interface: what it names, that it imports nothing early, and a small program that uses it."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

import fuxictr_mm as fm
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from tests.errors import raises_naming
from tests.paths import ROOT, TINY

TEST = TINY / "test.parquet"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = {"epochs": 1, "embedding_dim": 8, "model_root": str(tmp_path_factory.mktemp("runs"))}
    return fm.Experiment.load("DIN_MM_tiny", ROOT, **settings).fit(progress=False)


def test_every_public_name_is_there():
    for name in fm.__all__:
        assert name in dir(fm)
        assert getattr(fm, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        fm.nothing  # noqa: B018


def test_a_run_has_metrics_and_is_found_again(run):
    assert run.metrics.keys() == {"valid"}
    assert 0.5 < run.metrics["valid"]["AUC"] < 1
    assert fm.load_run(run.path) == fm.load_run(run) == run
    assert fm.load_run(run.path.parent) == run
    assert fm.find_runs(run.path.parents[2]) == [run]
    for name in ("DIN_MM_tiny", run.run):
        assert fm.load_run(name, run.path.parents[2]) == run
    with raises_naming(MissingFileError, "nowhere"):
        fm.load_run(run.path / "nowhere")
    with raises_naming(MissingFileError, "DIN_MM_tny", "'DIN_MM_tiny'"):
        fm.load_run("DIN_MM_tny", run.path.parents[2])


def test_predictions_of_files_and_frames_are_the_same(run, tmp_path):
    expected = run.predict(TEST)
    assert expected.dtype == np.float32
    assert expected.shape == (3000,)
    np.testing.assert_array_equal(run.predict(), expected)
    for frame in (pd.read_parquet(TEST), pl.read_parquet(TEST), pq.read_table(TEST)):
        np.testing.assert_array_equal(run.predict(frame), expected)
    label, prediction, _ = run.predictions()
    assert len(label) == 3000
    np.testing.assert_allclose(run.predict(ROOT / "data/tiny_mm/valid.parquet"), prediction, atol=1e-6)


def test_bad_frames_are_one_line(run):
    with raises_naming(UserError, "dict"):
        run.predict({"item_id": [1]})
    with raises_naming(DataError, "data frame", "'item_id'"):
        run.predict(pl.read_parquet(TEST).drop("item_id"))
    with raises_naming(DataError, "data frame", "item_id", "row 2", "99999"):
        run.predict(pl.read_parquet(TEST).head(3).with_columns(item_id=pl.Series([1, 2, 99999])))
    with raises_naming(UserError, "data frame"):
        run.predict(pd.DataFrame({"item_id": [1, "x"]}))
    with raises_naming(DataError, "level"):
        run.predict(pd.DataFrame([[1, 2, 3]], columns=["item_id", "level", "level"]))


def test_runs_are_compared(run):
    settings = {"epochs": 1, "batch_size": 1000, "model_root": run.config["model_root"]}
    fm.Experiment.load("DIN_tiny", ROOT, **settings).fit(progress=False)
    other = fm.load_run(run.path.parents[1] / "DIN_tiny")
    comparison = fm.compare([run, other], run.path.parents[2], samples=100)
    assert [len(side.runs) for side in comparison.sides] == [1, 1]
    for names in ("DIN_tiny", run, ["DIN_tiny"], []):
        with raises_naming(ConfigError, "compare", "" if names == [] else "DIN_"):
            fm.compare(names, run.path.parents[2])


def test_models_and_a_registered_one(tmp_path):
    from fuxictr_mm.registry import load_model_class

    assert {"DIN", "DIN_MM"} <= set(fm.models())

    @fm.register_model
    class Registered(load_model_class("DIN", ROOT / "model_zoo")):
        """DIN under another name."""

    assert "Registered" in fm.models()
    settings = {"model": "Registered", "epochs": 1, "model_root": str(tmp_path)}
    run = fm.Experiment.load("DIN_tiny", ROOT, **settings).fit(progress=False)
    assert run.model == "Registered"
    assert run.predict().shape == (3000,)
    with raises_naming(ConfigError, "DIN"):
        fm.register_model("DIN")


def test_a_run_of_an_older_version():
    """Written by version 0.1 before its settings were typed."""
    folder = ROOT / "tests" / "fixtures" / "runs_0.1" / "tiny_mm" / "DIN_tiny"
    run = fm.load_run(folder)
    assert (run.state, run.seed, run.parameters) == ("finished", 20242025, 4486)
    experiment = fm.Experiment.load("DIN_tiny", ROOT).of_run(run)
    assert experiment.config.fingerprint() == "47f48ea6987f316a7cded6d4989e9aa2f4bba882f2f92433510ba5160ceb15c0"
    assert len(run.history()) == 1
    _, prediction, _ = run.predictions()
    np.testing.assert_allclose(run.predict(ROOT / "data/tiny_mm/valid.parquet"), prediction, atol=1e-6)
