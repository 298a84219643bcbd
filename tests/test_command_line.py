"""Every kind of bad input, from the command line: one line that helps, exit code 2, nothing left behind."""

import json
import runpy
import shutil
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.experiment import Experiment
from fuxictr_mm.yaml_files import load_yaml
from tests.errors import exits_naming, raises_naming
from tests.paths import ROOT, TINY


def run(script, *arguments, monkeypatch):
    """Run a script of the root in this process, as its own __main__."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(ROOT / script), run_name="__main__")


#: The experiments of these tests, quick to read.
FEW = (ROOT / "model_config.yaml").read_text().split("DIN_MM_V1_tiny:")[0]


def snapshot(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory of a user's own: configuration, a small copy of tiny_mm, no results."""
    data = tmp_path / "data" / "tiny_mm"
    data.mkdir(parents=True)
    for path in (TINY).glob("*.parquet"):
        shutil.copy(path, data)
    shutil.copytree(ROOT / "data" / "tiny_mm_derived", tmp_path / "data" / "tiny_mm_derived")
    train = pq.read_table(data / "train.parquet").slice(0, 600)
    pq.write_table(train, data / "train.parquet")
    shutil.copy(ROOT / "dataset_config.yaml", tmp_path)
    (tmp_path / "model_config.yaml").write_text(FEW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit_yaml(path, change):
    content = load_yaml(path)
    change(content)
    path.write_text(json.dumps(content))


def edit_table(path, **columns):
    table = pq.read_table(path)
    for name, make in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, make(table[name]))
    pq.write_table(table, path)


def changed(row, value):
    """Return a function that puts `value` into `row` of a column."""

    def change(column):
        values = column.to_pylist()
        values[row] = value
        return pa.array(values)

    return change


def changed_entry(row, place, value):
    def change(column):
        values = np.array(column.to_pylist())
        values[row, place] = value
        return pa.array(values.tolist(), type=pa.list_(column.type.value_type))

    return change


def experiment(**settings):
    return lambda folder: edit_yaml(folder / "model_config.yaml", lambda c: c["DIN_MM_tiny"].update(settings))


def dataset(**settings):
    return lambda folder: edit_yaml(folder / "dataset_config.yaml", lambda c: c["tiny_mm"].update(settings))


def features(change):
    return lambda folder: edit_yaml(
        folder / "dataset_config.yaml", lambda c: change({str(f["name"]): f for f in c["tiny_mm"]["feature_cols"]})
    )


def data(file, **columns):
    return lambda folder: edit_table(folder / "data" / "tiny_mm" / file, **columns)


def cut(file):
    """Break a file as an interrupted download does."""

    def change(folder):
        path = folder / "data" / "tiny_mm" / file
        path.write_bytes(path.read_bytes()[:-100])

    return change


#: One or two of each kind; tests of the configuration and of the reader have the others.
CASES = {
    "unknown key": (
        experiment(embeding_regularizer=0.1),
        ["embeding_regularizer", "did you mean 'embedding_regularizer'"],
    ),
    "number in quotes": (experiment(learning_rate="0.001"), ["learning_rate is '0.001'", "expected a number"]),
    "unknown metric": (experiment(metrics=["AUC", "gAUCC"]), ["gAUCC", "gAUC"]),
    "unknown optimizer": (experiment(optimizer="adamm"), ["'adamm'", "did you mean 'adam"]),
    "unknown model": (experiment(model="DIN_MN"), ["'DIN_MN'", "did you mean 'DIN_MM'"]),
    "zero batch size": (experiment(batch_size=0), ["batch_size is 0"]),
    "no cross layers": (experiment(cross="v2", num_cross_layers=0), ["num_cross_layers"]),
    "unknown activation": (experiment(dnn_activations="Foo"), ["Foo"]),
    "batch norm of one row": (experiment(batch_size=1), ["batch_size is 1", "batch norm"]),
    "view of other code": (experiment(batch_view="flat"), ["batch_view is flat", "DIN_MM takes jagged"]),
    "class that is no model": (experiment(model="json:JSONDecoder"), ["model", "JSONDecoder"]),
    "two inputs to an encoder": (
        features(lambda f: f["item_tags"].update(feature_encoder="layers.DINAttention(16)")),
        ["feature_encoder", "DINAttention", "2 inputs"],
    ),
    "bad regularizer": (experiment(embedding_regularizer="l3(1)"), ["embedding_regularizer is 'l3(1)'"]),
    "missing file": (
        dataset(train_data="./data/tiny_mm/trian.parquet"),
        ["trian.parquet", "did you mean 'train.parquet'"],
    ),
    "unknown encoder": (
        features(lambda f: f["item_tags"].update(feature_encoder="layers.MaskedAveragPooling()")),
        ["did you mean 'MaskedAveragePooling'"],
    ),
    "item beyond the table": (
        data("train.parquet", item_id=changed(5, 99999)),
        ["train.parquet", "item_id", "row 5", "99999"],
    ),
    "NaN embedding": (
        data("item_emb.parquet", txt_emb_pca8=changed_entry(3, 2, float("nan"))),
        ["item_emb.parquet", "txt_emb_pca8", "item_id 3", "nan"],
    ),
    "broken file": (cut("train.parquet"), ["train.parquet", "Parquet"]),
    "text ids": (
        data("train.parquet", likes_level=lambda c: pa.array([str(v) for v in c.to_pylist()])),
        ["valid.parquet", "likes_level", "texts"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, project, monkeypatch, capsys):
    spoil, expected = CASES[case]
    spoil(project)
    before = snapshot(project)
    with exits_naming(capsys, *expected):
        run("run_expid.py", "--expid", "DIN_MM_tiny", monkeypatch=monkeypatch)
    assert snapshot(project) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run_expid.py", "--expid", "DIN_MM_tny"], "'DIN_MM_tiny'"),
        (["run_expid.py", "--expid", "DIN_MM_tiny", "--config", "nowhere"], "nowhere"),
        (["run_expid.py", "--expid", "DIN_MM_tiny", "--gpu", "99"], "--gpu -1"),
        (["run_expid.py", "--expid", "DIN_MM_tiny", "--model_zoo", "nowhere"], "nowhere"),
        (["prediction.py"], "--expid --runs"),
        (["prediction.py", "--expid", "DIN_tiny", "--runs", "DIN_tiny"], "--runs"),
        (["prediction.py", "--expid", "DIN_tiny", "--stack"], "--stack"),
        (["prediction.py", "--expid", "DIN_tiny", "--weights", "x", "--calibrate", "beta"], "--calibrate"),
        (["prediction.py", "--runs", "DIN_tiny", "--weights", "fit"], "--fit-weights"),
        (["prediction.py", "--runs", "DIN_tiny", "--calibrate", "plat"], "plat"),
        (["prediction.py", "--runs", "DIN_tiny"], "'DIN_tiny'"),
        (["prediction.py", "--expid", "DIN_tiny", "--calibrate", "beta"], "fuxictr-mm train --expid DIN_tiny"),
        (["prediction.py", "--expid", "DIN_MM_tiny"], "fuxictr-mm train --expid DIN_MM_tiny"),
    ],
)
def test_bad_flags(arguments, expected, project, monkeypatch, capsys):
    before = snapshot(project)
    with exits_naming(capsys, expected):
        run(*arguments, monkeypatch=monkeypatch)
    assert snapshot(project) == before


def test_yaml_that_is_none_names_its_line(project, monkeypatch, capsys):
    path = project / "model_config.yaml"
    path.write_text(path.read_text().replace("    dataset_id: tiny_mm", "    dataset_id: [tiny_mm", 1))
    with exits_naming(capsys, "model_config.yaml, line"):
        run("run_expid.py", "--expid", "DIN_MM_tiny", monkeypatch=monkeypatch)


def test_weights_of_another_configuration_are_named(project, monkeypatch, capsys):
    run("run_expid.py", "--expid", "DIN_tiny", "--quiet", monkeypatch=monkeypatch)
    assert "Metrics" not in "".join(capsys.readouterr())
    weights = project / "checkpoints" / "tiny_mm" / "DIN_tiny.model"
    with exits_naming(capsys, "attention.W_q.weight", "dnn.mlp.0.weight (64, 128)", "(64, 160)"):
        run("prediction.py", "--expid", "DIN_MM_tiny", "--weights", weights, monkeypatch=monkeypatch)
    assert not (project / "submission").exists()


def test_debug_shows_the_traceback(project, monkeypatch):
    from fuxictr_mm.errors import ConfigError

    with raises_naming(ConfigError, "nothing"):
        run("run_expid.py", "--expid", "nothing", "--debug", monkeypatch=monkeypatch)


def test_train_score_check(project, monkeypatch, capsys):
    """The main job, on a user's own folder."""
    run("run_expid.py", "--expid", "DIN_MM_tiny", monkeypatch=monkeypatch)
    run("prediction.py", "--expid", "DIN_MM_tiny", "--task", "Task1&2", monkeypatch=monkeypatch)
    with zipfile.ZipFile(project / "submission" / "DIN_MM_tiny.zip") as archive:
        assert archive.namelist() == ["prediction.csv"]
        lines = archive.read("prediction.csv").decode().splitlines()
    assert lines[0] == "ID,Task1&2"
    assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(3000))
    assert (project / "checkpoints" / "tiny_mm" / "DIN_MM_tiny.log").stat().st_size > 0
    csv = (project / f"{project.name}.csv").read_text()
    assert "[exp_id] DIN_MM_tiny,[dataset_id] tiny_mm,[train] N.A.,[val] AUC: 0." in csv


def read_scores(path):
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("prediction.csv").decode().splitlines()[1:]
    return np.array([float(line.split(",")[1]) for line in lines])


@pytest.mark.slow
def test_train_seeds_average_calibrate(project, monkeypatch, capsys):
    for seed in (1, 2):
        run("run_expid.py", "--expid", "DIN_tiny", "--seed", seed, monkeypatch=monkeypatch)
    run("prediction.py", "--runs", "DIN_tiny", "--average", "logit", monkeypatch=monkeypatch)
    assert "DIN_tiny_ensemble (logit)" in capsys.readouterr().out
    plain = read_scores(project / "submission" / "DIN_tiny_ensemble.zip")
    options = ("--average", "logit", "--calibrate", "platt", "--name", "mine", "--task", "Task1&2")
    run("prediction.py", "--runs", "DIN_tiny", *options, monkeypatch=monkeypatch)
    assert "calibrated by platt" in capsys.readouterr().out
    calibrated = read_scores(project / "submission" / "mine.zip")
    assert len(plain) == len(calibrated) == 3000
    assert not np.allclose(plain, calibrated)
    assert (np.argsort(plain, kind="stable") == np.argsort(calibrated, kind="stable")).mean() > 0.99
    searches, find = [], Experiment.find_weights  # which warns: once is enough
    monkeypatch.setattr(Experiment, "find_weights", lambda *given: searches.append(given) or find(*given))
    run("prediction.py", "--expid", "DIN_tiny", "--calibrate", "isotonic", monkeypatch=monkeypatch)
    assert len(searches) == 1
    scores = read_scores(project / "submission" / "DIN_tiny.zip")
    (newest,) = (project / "checkpoints" / "tiny_mm" / "DIN_tiny").glob("*-seed2")
    points = json.loads((newest / "calibration.json").read_text())["methods"]["isotonic"]["parameters"]["y"]
    assert min(points) <= scores.min()
    assert scores.max() <= max(points)
