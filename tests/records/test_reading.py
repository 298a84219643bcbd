"""Runs are found, named and read; what is broken is said and stops nothing."""

import shutil
import subprocess
import sys

import pytest

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.records.reading import find_runs, read_lines, read_run, resolve


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
    train(tmp_path, seed=9, description="another word for it")
    assert find_runs(tmp_path)[0].config_key in keys
    train(tmp_path, seed=9, learning_rate=0.001)
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
    with pytest.raises(MissingFileError, match=r"'DIN_tyny': no experiment id, run or .*did you mean 'DIN_tiny'\?"):
        resolve(["DIN_tyny"], runs_root)
    with pytest.raises(MissingFileError, match=r"'X': .* \(there are: none yet; train with run_expid.py"):
        resolve(["X"], runs_root / "nowhere")


def test_unfinished_and_ambiguous_names(copy):
    for run in find_runs(copy, expid="DIN_MM_none_tiny"):
        (run.path / "result.json").unlink()
        assert read_run(run.path).finished is False
        with pytest.raises(MissingFileError, match="none of its 1 runs is finished"):
            resolve(["DIN_MM_none_tiny"], copy)
        (run.path / "valid_predictions.parquet").unlink()
        with pytest.raises(MissingFileError, match=r"no predictions of this run; it is unfinished"):
            read_run(run.path).predictions()
    shutil.copytree(copy / "tiny_mm" / "DIN_tiny", copy / "other" / "DIN_tiny")
    with pytest.raises(ConfigError, match="DIN_tiny: there are runs on several datasets; give one folder"):
        resolve(["DIN_tiny"], copy)
    with pytest.raises(ConfigError, match="several runs have this name; give a folder"):
        resolve([find_runs(copy, dataset="other")[0].run], copy)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.yaml", None, "config.yaml: no such file"),
        ("config.yaml", "a: [", "config.yaml, line 1"),
        ("environment.json", "{", "environment.json: not valid JSON"),
        ("result.json", "[]", "result.json: is no JSON mapping"),
        ("result.json", "{}", ""),
        ("result.json", '{"valid": 3}', "result.json: valid is 3, expected metrics"),
        ("result.json", '{"valid": {}, "seconds": "x"}', "result.json: seconds is 'x'"),
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
    with pytest.raises(DataError, match="no predictions of a run"):
        run.predictions()
    (run.path / "metrics.jsonl").write_text('{"step": 1}\nnothing\n')
    with pytest.raises(DataError, match=r"metrics.jsonl, line 2: is no evaluation of a run; delete the line"):
        run.history()
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert read_lines(run.path / "metrics.jsonl") == [{"step": 1}]


def test_reading_does_without_torch():
    code = (
        "import sys, fuxictr_mm.records.listing, fuxictr_mm.records.compare_command; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
