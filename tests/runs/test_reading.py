"""Runs are found, named and read; what is broken is said and stops nothing."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.metrics import evaluate_metrics
from fuxictr_mm.runs import best_epoch_was_last, find_runs, read_lines, read_run, resolve
from fuxictr_mm.runs.reading import weights_of
from tests.errors import raises_naming


@pytest.fixture
def copy(runs_root, tmp_path):
    """The runs, safe to damage."""
    shutil.copytree(runs_root, tmp_path / "runs")
    return tmp_path / "runs"


def test_newest_first_and_filtered(runs_root):
    runs = find_runs(runs_root)
    assert len(runs) == 5
    assert [run.started_at for run in runs] == sorted((run.started_at for run in runs), reverse=True)
    assert {run.seed for run in find_runs(runs_root, expid="DIN_tiny")} == {1, 2, 3}
    assert [run.expid for run in find_runs(runs_root, model="DIN_MM")] == ["DIN_MM_none_tiny"]
    assert find_runs(runs_root, dataset="tiny_m*") == []
    assert find_runs(runs_root / "nowhere") == []


def test_seeds_share_a_configuration_and_experiments_do_not(runs_root, train, tmp_path):
    keys = {run.config_key for run in find_runs(runs_root, expid="DIN_tiny")}
    assert len(keys) == 1
    assert find_runs(runs_root, expid="DIN_MM_none_tiny")[0].config_key not in keys
    train(tmp_path, seed=9, batch_size=512, description="another word for it")
    assert find_runs(tmp_path)[0].config_key in keys
    train(tmp_path, seed=9, batch_size=512, learning_rate=0.001)
    assert find_runs(tmp_path)[0].config_key not in keys


def test_test_metrics_where_labels_are(runs_root):
    (run,) = find_runs(runs_root, expid="DIN_MM_none_tiny")
    assert set(run.test) == set(run.valid) == {"AUC", "gAUC", "logloss"}
    assert find_runs(runs_root, expid="DIN_tiny")[0].test == {}
    assert run.diagnosis() is None
    assert run.parameters > 0


def test_names_resolve(runs_root):
    (newest,) = find_runs(runs_root, expid="DIN_MM_none_tiny")
    assert resolve([newest.run], runs_root) == [newest]
    assert resolve([newest.path], "nowhere") == [newest]
    assert len(resolve(["DIN_tiny"], runs_root)) == 4
    assert len(resolve([runs_root / "tiny_mm" / "DIN_tiny", newest.path, newest.run], runs_root)) == 5
    with raises_naming(MissingFileError, "'DIN_tyny'", "'DIN_tiny'"):
        resolve(["DIN_tyny"], runs_root)
    with raises_naming(MissingFileError, "'X'", "fuxictr-mm train"):
        resolve(["X"], runs_root / "nowhere")
    with raises_naming(MissingFileError, "DIN_tyny", "'DIN_tiny'"):
        weights_of("DIN_tyny", runs_root)


def test_unfinished_and_ambiguous_names(copy):
    for run in find_runs(copy, expid="DIN_MM_none_tiny"):
        (run.path / "result.json").unlink()
        assert read_run(run.path).finished is False
        environment = json.loads((run.path / "environment.json").read_text())
        for argv, words in (
            (["/bin/fuxictr-mm", "train", "--expid", "X", "--config", "my cfg"], "--expid X --config 'my cfg'"),
            (["run_expid.py", "--expid", "X", "--resume", "--seed", "3"], "--expid X --seed 3"),
            (["/bin/fuxictr-mm", "influence", "--expid", "X"], "--expid DIN_MM_none_tiny"),
            ("damaged", "--expid DIN_MM_none_tiny"),
        ):
            (run.path / "environment.json").write_text(json.dumps({**environment, "command": argv}))
            with raises_naming(MissingFileError, f"fuxictr-mm train {words} --resume"):
                resolve(["DIN_MM_none_tiny"], copy)
        (run.path / "valid_predictions.parquet").unlink()
        with raises_naming(MissingFileError, run.path):
            read_run(run.path).predictions()
    shutil.copytree(copy / "tiny_mm" / "DIN_tiny", copy / "other" / "DIN_tiny")
    with raises_naming(ConfigError, "DIN_tiny"):
        resolve(["DIN_tiny"], copy)
    (name,) = {run.run for run in find_runs(copy, dataset="other") if run.seed == 1}
    with raises_naming(ConfigError, name):
        resolve([name], copy)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.yaml", None, "config.yaml: "),
        ("config.yaml", "a: [", "config.yaml, line"),
        ("environment.json", "{", "environment.json: "),
        ("environment.json", '{"data": 5}', "environment.json: data is 5"),
        ("environment.json", '{"data": {"train_data": 5}}', "environment.json: data is"),
        ("environment.json", '{"model_code": [1]}', "environment.json: model_code is [1]"),
        ("result.json", "[]", "result.json: "),
        ("result.json", "{}", "result.json: valid is None"),
        ("result.json", '{"valid": 3}', "result.json: valid is 3"),
        ("result.json", '{"valid": {}, "seconds": "x"}', "result.json: seconds is 'x'"),
        ("result.json", '{"valid": {"AUC": true}, "seconds": 1}', "result.json: valid is {'AUC': True}"),
        ("metrics.jsonl", "garbage\n", "metrics.jsonl, line 1"),
        ("metrics.jsonl", '{"step": "x"}\n', "metrics.jsonl, line 1"),
    ],
)
def test_what_is_broken_is_said(copy, name, content, problem):
    damaged = find_runs(copy)[0]
    (damaged.path / name).unlink()
    if content is not None:
        (damaged.path / name).write_text(content)
    runs = find_runs(copy)
    assert len(runs) == 5
    found = next(run for run in runs if run.path == damaged.path)
    assert found.problem.startswith(problem)
    assert bool(found.problem) == bool(problem)
    assert found.finished == (name != "result.json")
    assert found.started_at == damaged.started_at


def test_damaged_predictions_and_lines(copy):
    run = find_runs(copy)[0]
    (run.path / "valid_predictions.parquet").write_bytes(b"nothing")
    with raises_naming(DataError, "valid_predictions.parquet"):
        run.predictions()
    (run.path / "metrics.jsonl").write_text('{"step": 1}\nnothing\n')
    with raises_naming(DataError, "metrics.jsonl, line 2"):
        run.history()
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert read_lines(run.path / "metrics.jsonl") == [{"step": 1}]


def test_test_predictions(copy):
    run = next(run for run in find_runs(copy) if run.test)
    label, prediction, group = run.predictions("test")
    assert evaluate_metrics(label, prediction, ["AUC", "gAUC"], group) == pytest.approx(
        {name: run.test[name] for name in ("AUC", "gAUC")}
    )
    (run.path / "test_predictions.parquet").unlink()
    with raises_naming(MissingFileError, f"fuxictr-mm predict --runs {run.path}"):
        run.predictions("test")


def test_a_folder_in_place_of_a_file_is_a_problem(copy):
    run = find_runs(copy)[0]
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").mkdir()
    assert find_runs(copy)[0].problem.startswith("metrics.jsonl: cannot be read (Is a directory)")
    assert not find_runs(copy)[0].is_usable
    with raises_naming(DataError, "metrics.jsonl"):
        run.history()


def test_keys_that_are_no_text_make_a_configuration_all_the_same(copy):
    for run in find_runs(copy, expid="DIN_tiny"):
        config = (run.path / "config.yaml").read_text()
        (run.path / "config.yaml").write_text(config + "x: {1: 2, b: [{2020-01-01: 3, c: 4}]}\n")
    assert len({run.config_key for run in find_runs(copy, expid="DIN_tiny")}) == 1
    assert {run.problem for run in find_runs(copy)} == {""}


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"label": [0, 1], "prediction": ["a", "b"]}, "predictions"),
        ({"label": [0, 1], "prediction": [0.5, float("nan")]}, "1 predictions"),
        ({"label": [0, 2], "prediction": [0.5, 0.5]}, "labels"),
        ({"label": ["0", "1"], "prediction": [0.5, 0.5]}, "labels"),
        ({"label": [0, None], "prediction": [0.5, 0.5]}, "labels"),
        ({"label": [], "prediction": []}, "rows"),
    ],
)
def test_predictions_that_are_none(copy, columns, found):
    run = find_runs(copy)[0]
    pq.write_table(pa.table(columns), run.path / "valid_predictions.parquet")
    with raises_naming(DataError, "valid_predictions.parquet", found):
        run.predictions()


def test_groups_with_nulls_are_objects(copy):
    run = find_runs(copy)[0]
    table = pa.table({"label": [0, 1, 1], "prediction": [0.1, 0.2, 0.3], "group": ["a", None, "a"]})
    pq.write_table(table, run.path / "valid_predictions.parquet")
    assert run.predictions()[2].tolist() == ["a", None, "a"]


def test_links_out_of_the_root_are_not_followed(copy, tmp_path):
    (tmp_path / "inner" / "tiny_mm").mkdir(parents=True)
    (tmp_path / "inner" / "tiny_mm" / "DIN_tiny").symlink_to(copy / "tiny_mm" / "DIN_tiny")
    assert find_runs(tmp_path / "inner") == []
    assert len(find_runs(tmp_path / "runs")) == 5


def test_a_folder_without_runs(copy):
    with raises_naming(MissingFileError, copy):
        resolve([copy], copy)


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ([0.6, 0.7, 0.8], {}, True),
        ([0.6, 0.8, 0.7], {}, False),
        ([0.6, 0.8, 0.8], {}, False),  # the first of the best is kept
        ([0.6, 0.7, 0.8], {"epochs": 4}, False),
        ([0.6, 0.5, 0.4], {"monitor_mode": "min"}, True),
        ([0.6, 0.7, 0.8], {"monitor": {"AUC": -1}}, False),
        ([0.6, 0.7, 0.8], {"monitor": "gAUC"}, False),
        ([], {}, False),
    ],
)
def test_the_best_epoch_was_the_last(values, settings, expected):
    history = [{"epoch": epoch, "AUC": value} for epoch, value in enumerate(values, 1)]
    given = {"monitor": "AUC", "monitor_mode": "max", "epochs": 3, **settings}
    assert best_epoch_was_last(history, given) == expected
    assert not best_epoch_was_last(history, {})
