"""The grid search, with a stand-in for run_expid.py that trains nothing."""

import csv
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from fuxictr_mm.config import config_hash, list_experiments, load_config
from fuxictr_mm.data.fingerprint import data_hashes, data_paths
from fuxictr_mm.errors import ConfigError, MissingFileError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.files import write_json
from fuxictr_mm.training.resume import FORMAT, Progress
from fuxictr_mm.tuning import enumerate_trials, format_table, grid, report, run_grid, run_tuner, write_table
from fuxictr_mm.yaml_files import load_yaml
from tests.errors import check_names, raises_naming
from tests.paths import ROOT
from tests.tuning.grids import run, runs, tuner_file


def test_a_grid_is_enumerated(folder):
    written = enumerate_trials(
        tuner_file(folder, "learning_rate: [1e-3, 1.e-4]\nwidth: 3\ndnn_hidden_units: [[8, 4], [2]]\nbatch_size: 16")
    )
    assert written == folder / "grid"
    experiments = list_experiments(written)
    for number, name in enumerate(experiments, 1):
        assert re.fullmatch(rf"Fake_tiny_00{number}_[0-9a-f]{{8}}", name)
    tried = [(p["learning_rate"], p["dnn_hidden_units"], p["width"], p["batch_size"]) for p in experiments.values()]
    assert tried == [(lr, units, 3, 16) for lr in (1e-3, 1e-4) for units in ([8, 4], [2])]
    assert list(load_yaml(written / "dataset_config.yaml")) == ["tiny"]
    params = load_config(written, next(iter(experiments)))
    assert (params["model"], params["model_root"], params["dataset_id"]) == ("Fake", "checkpoints", "tiny")


def test_enumerating_again_gives_the_same_bytes(folder):
    path = tuner_file(folder, "width: [1, 2]")
    first = (enumerate_trials(path) / "model_config.yaml").read_bytes()
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    code = "from fuxictr_mm.tuning import enumerate_trials; enumerate_trials('grid.yaml')"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert (folder / "grid/model_config.yaml").read_bytes() == first


def test_configurations_of_the_same_characters_have_hashes_of_their_own(folder):
    written = enumerate_trials(tuner_file(folder, "width: [12, 21]\nembedding_regularizer: [12, 21]"))
    hashes = [name.rsplit("_", 1)[1] for name in list_experiments(written)]
    assert len(set(hashes)) == 4


def test_a_grid_over_the_dataset_keeps_every_combination(folder):
    written = enumerate_trials(tuner_file(folder, "ids: [auto, vocabulary]\nwidth: [1, 2]"))
    datasets = load_yaml(written / "dataset_config.yaml")
    assert [entry["ids"] for entry in datasets.values()] == ["auto", "vocabulary"]
    assert all(name.startswith("tiny_") for name in datasets)
    experiments = list_experiments(written)
    assert len(experiments) == 4
    assert {load_config(written, name)["ids"] for name in experiments} == {"auto", "vocabulary"}


def test_texts_that_look_like_numbers_stay_texts(folder):
    written = enumerate_trials(tuner_file(folder, "embedding_regularizer: ['1e-3', 1e-3]"))
    values = [entry["embedding_regularizer"] for entry in list_experiments(written).values()]
    assert values == ["1e-3", 1e-3]


def test_all_run_and_the_best_is_first(folder):
    written = enumerate_trials(tuner_file(folder, "width: [1, 3, 2]\nlearning_rate: 1e-3"))
    results = run(written)
    assert [result.params["width"] for result in results] == [1, 3, 2]
    lines = format_table(results).splitlines()
    assert lines[0].split() == ["rank", "expid", "valid", "AUC", "valid", "logloss", "test", "AUC", "width", "seconds"]
    cells = [line.split() for line in lines[1:]]
    assert [(line[0], line[-2]) for line in cells] == [("1", "3"), ("2", "2"), ("3", "1")]
    assert cells[0][2:] == ["0.502000", "0.997000", "0.750000", "3", "1.5"]
    write_table(results, folder / "table.csv")
    with (folder / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["width"] for row in rows] == ["3", "2", "1"]
    assert float(rows[0]["valid AUC"]) == 0.5 + 3 / 1000 - 1e-3
    assert (written / "logs" / f"{results[0].expid}.out").read_text() == "width 1\n"


def test_what_has_finished_is_skipped_unless_its_configuration_changed(folder):
    written = enumerate_trials(tuner_file(folder, "width: [1, 2]"))
    first = run(written)
    again = run(written)
    assert len(runs(folder)) == 2
    assert [(r.expid, r.valid, r.skipped) for r in again] == [(r.expid, r.valid, True) for r in first]
    record = folder / "checkpoints/tiny" / f"{first[0].expid}.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "config_hash": "of another"}))
    (folder / "checkpoints/tiny" / f"{first[1].expid}.json").write_text('{"half')
    assert [result.skipped for result in run(written)] == [False, False]
    assert len(runs(folder)) == 4


def test_a_failed_trial_does_not_stop_the_others(folder, capsys):
    written = enumerate_trials(tuner_file(folder, "width: [13, 77, 2]"))
    results = run(written)
    assert results[0].error == "ValueError: width must not be 13"
    assert "checkpoints" in results[1].error
    assert results[2].error is None
    with raises_naming(UserError, "2 of 3", "Fake_tiny_001_", "ValueError: width must not be 13"):
        report(results, written)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "1"
    assert lines[2].endswith("ValueError: width must not be 13")
    assert (written / "results.csv").is_file()
    assert [result.skipped for result in run(written)] == [False, False, True]


def test_a_tag_keeps_some(folder):
    written = enumerate_trials(tuner_file(folder, "width: [1, 2, 3]"))
    results = run(written, tag="_002_")
    assert [result.params["width"] for result in results] == [2]
    with raises_naming(ConfigError, "'xyz'", "Fake_tiny_001_"):
        run(written, tag="xyz")


def test_a_warning_names_changed_data_of_finished_trials(folder, capsys, monkeypatch):
    monkeypatch.setattr(grid, "run_trials", lambda *arguments: None)
    written = enumerate_trials(tuner_file(folder, "width: [1, 2, 3]"))
    path = folder / "data" / "tiny" / "train.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a")
    for name in list(list_experiments(written))[:2]:
        params = load_config(written, name)
        result = {"expid": name, "config_hash": config_hash(params), "valid": {}, "test": {}, "seconds": 1.0}
        result_path = folder / "checkpoints" / "tiny" / f"{name}.json"
        result_path.parent.mkdir(parents=True, exist_ok=True)
        write_json(result_path, {**result, "data": data_hashes(params)})
    assert [result.skipped for result in run(written)] == [True, True]
    assert capsys.readouterr().err == ""
    path.write_bytes(b"b")
    assert run(written) == []
    (line,) = capsys.readouterr().err.splitlines()  # one for all trials
    check_names(line, "train_data", "data/tiny/train.parquet")
    assert run(written, quiet=True) == []
    assert capsys.readouterr().err == ""


def test_everything_is_checked_before_the_first_trial(folder):
    written = enumerate_trials(tuner_file(folder, "width: [1]\nbatch_size: [8, -8]"))
    with raises_naming(ConfigError, "batch_size is -8"):
        run(written)
    with raises_naming(ConfigError, "--gpu 640"):
        run(enumerate_trials(tuner_file(folder, "width: [1]")), gpus=[-1, 640])
    with raises_naming(MissingFileError, "nowhere"):
        run_grid(written, [-1], None, Path("nowhere.py"))
    assert runs(folder) == []


def test_the_script_ends_with_2_and_one_line(folder, capsys, monkeypatch):
    tuner_file(folder, "width: [13]")
    shutil.copy(ROOT / "run_param_tuner.py", folder)  # it starts the script run_expid.py beside it
    shutil.copy(folder / "fake_run.py", folder / "run_expid.py")

    def script(*arguments):
        monkeypatch.setattr(sys, "argv", ["run_param_tuner.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(folder / "run_param_tuner.py"), run_name="__main__")
        assert stop.value.code == 2
        return capsys.readouterr()

    shown = script("--config", "grid.yaml", "--gpu", "-1")
    assert shown.out.splitlines()[0].split()[:2] == ["rank", "expid"]
    told, error = shown.err.splitlines()
    assert re.fullmatch(r"trial 1 of 1: Fake_tiny_001_\w+ failed: ValueError: width must not be 13", told)
    assert error.startswith("error: 1 of 1 trials failed")
    document = json.loads(script("--config", "grid.yaml", "--json", "--quiet").out)
    assert [row["error"] for row in document["trials"]] == ["ValueError: width must not be 13"]
    assert "--script" in script("--config", "grid.yaml", "--script", "fake_run.py").err
    shown = script("--config", "grid.yaml", "--quite")
    assert shown.out == ""
    check_names(shown.err, "'--quite'", "'--quiet'")


@pytest.mark.parametrize("change", [{}, {"config_hash": "another"}, {"data": {}}, {"model_code": "another"}, None])
def test_an_interrupted_trial_resumes_if_it_is_the_same(folder, change):
    (folder / "data" / "tiny").mkdir(parents=True)
    (folder / "data" / "tiny" / "train.parquet").write_bytes(b"rows")
    (folder / "data" / "tiny" / "valid.parquet").write_bytes(b"rows")
    written = enumerate_trials(tuner_file(folder, "width: [1, 2]"))
    first, second = list_experiments(written)
    experiment = Experiment.load(first, written)
    params, paths = experiment.config.to_dict(), dict(data_paths(experiment.config.to_dict()))
    content = {
        "format": FORMAT,
        "config_hash": config_hash({**params, "resident": True}),
        "model_code": experiment.model_code,
        "data": {paths[name]: value for name, value in data_hashes(params).items()},
        "progress": asdict(Progress(None, None)),
        "state": {},
    }
    if change is None:  # of a version that did not write them
        change = {}
        del content["data"], content["model_code"]
    write_json(experiment.paths.checkpoint / "step-000000000005" / "state.json", {**content, **change})
    damaged = Experiment.load(second, written).paths.checkpoint / "step-000000000005"
    damaged.mkdir(parents=True)
    assert [result.error for result in run(written)] == [None, None]
    resumed = folder / "resumed.txt"
    assert (resumed.read_text().split() if resumed.exists() else []) == ([] if change else [first])


def test_two_tuners_share_a_grid(folder, forked, wait_for):
    path = tuner_file(folder, "width: [1, 2, 3, 99]")
    (folder / "slow").touch()
    other = forked(lambda: run_tuner(path, [-1, -1], Path("fake_run.py"), quiet=True))
    wait_for(lambda: runs(folder))
    threading.Timer(2, (folder / "slow").unlink).start()
    results = run(enumerate_trials(path))
    other.join(60)
    assert other.exitcode == 0
    assert [result.error for result in results] == [None] * 4
    assert sorted(runs(folder)) == [result.expid for result in results]
