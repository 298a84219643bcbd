"""The grid search, with a stand-in for run_expid.py that trains nothing."""

import csv
import json
import math
import os
import re
import runpy
import shutil
import signal
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
from fuxictr_mm.tuning import (
    TrialResult,
    enumerate_trials,
    format_table,
    grid,
    report,
    run_grid,
    run_tuner,
    write_table,
)
from fuxictr_mm.yaml_files import load_yaml
from tests.errors import check_names, raises_naming

ROOT = Path(__file__).resolve().parents[2]
HEAD = "base_config: base\nbase_expid: Fake_default\ndataset_id: tiny\n"


def tuner_file(folder, space, name="grid.yaml", head=HEAD):
    path = folder / name
    path.write_text(head + "tuner_space:\n" + "".join(f"    {line}\n" for line in space.splitlines()))
    return path


def run(config_dir, gpus=(-1,), tag=None, **options):
    return run_grid(config_dir, gpus, tag, Path("fake_run.py"), **options)


def runs(folder):
    path = folder / "runs.txt"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


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


def test_an_inline_base_and_a_named_experiment(folder):
    head = "base_expid: X\nmodel_config:\n    Base: {model_root: there}\n    X: {model: Fake, dataset_id: tiny}\n"
    head += "dataset_config:" + (folder / "base/dataset_config.yaml").read_text().replace("\n", "\n    ") + "\n"
    experiments = list_experiments(enumerate_trials(tuner_file(folder, "width: [1]", head=head)))
    assert [name.split("_")[:2] for name in experiments] == [["X", "001"]]
    assert next(iter(experiments.values()))["model_root"] == "there"
    named = tuner_file(folder, "width: [1]", head="base_config: base\nbase_expid: Fake_named\n")
    assert next(iter(list_experiments(enumerate_trials(named)))).startswith("Fake_named_001_")


def test_the_dataset_may_be_a_block_of_the_tuner_file(folder):
    block = (folder / "base/dataset_config.yaml").read_text().strip().replace("tiny:", "mine:", 1)
    head = f"base_config: base\nbase_expid: Fake_default\ndataset_id: mine\n{block}\n"
    written = enumerate_trials(tuner_file(folder, "width: [1]", head=head))
    assert list(load_yaml(written / "dataset_config.yaml")) == ["mine"]


def test_paths_that_count_from_the_base_folder_are_found(folder, monkeypatch):
    (folder / "base/data/tiny").mkdir(parents=True)
    (folder / "base/data/tiny/train.parquet").touch()
    written = enumerate_trials(tuner_file(folder, "width: [1]"))
    entry = load_yaml(written / "dataset_config.yaml")["tiny"]
    assert entry["train_data"] == str(folder / "base/data/tiny/train.parquet")
    assert entry["valid_data"] == "data/tiny/valid.parquet"


def test_the_challenges_own_tuner_file(folder):
    text = """
base_config: ./base/
base_expid: Fake_default
dataset_id: MicroLens_1M_x1
dataset_config:
    MicroLens_1M_x1:
        data_root: ./data/
        data_format: parquet
        train_data: ./data/MicroLens_1M_x1/train.parquet
        valid_data: ./data/MicroLens_1M_x1/valid.parquet
        item_info: ./data/MicroLens_1M_x1/item_info.parquet
        rebuild_dataset: False
        feature_cols: [{name: item_id, active: True, dtype: int, type: categorical, vocab_size: 91718, source: item}]
        label_col: {name: label, dtype: float}
tuner_space:
    embedding_regularizer: [1.e-6, 1.e-7]
    net_regularizer: 0
    learning_rate: 1.e-3
    batch_size: 8192
"""
    (folder / "grid.yaml").write_text(text)
    experiments = list_experiments(enumerate_trials(folder / "grid.yaml"))
    assert [entry["embedding_regularizer"] for entry in experiments.values()] == [1e-6, 1e-7]
    assert all(name.startswith("Fake_MicroLens_1M_x1_00") for name in experiments)


@pytest.mark.parametrize(
    ("space", "head", "names"),
    [
        ("widht: [1, 2]", HEAD, ["tuner_space: widht", "'width'"]),
        ("dnn_hidden_units: [1024, 512]", HEAD, ["dnn_hidden_units", "[[1024, 512]]"]),
        ("metrics: [AUC, logloss]", HEAD, ["metrics", "[['AUC', 'logloss']]"]),
        ("use_features: [item_id]", HEAD, ["use_features", "[['item_id']]"]),
        ("width: []", HEAD, ["width"]),
        ("width: [1, 2, 1]", HEAD, ["width: 1"]),
        ("dataset_id: [tiny, other]", HEAD, ["dataset_id"]),
        ("model: [Fake, Fakr]", HEAD, ["'Fakr'", "'Fake'"]),
        ("width: [1]", "base_config: base\nbase_expid: Fake_defalt\ndataset_id: tiny\n", ["'Fake_defalt'"]),
        ("width: [1]", "base_config: base\nbase_expid: Fake_default\n", ["dataset_id is 'TBD'"]),
        ("width: [1]", "base_config: base\nbase_exp: Fake_default\n", ["'base_exp'", "'base_expid'"]),
        ("width: [1]", "base_config: base\n", ["base_expid is missing"]),
        ("width: [1]", "base_config: nowhere\nbase_expid: Fake_default\n", ["base_config", "nowhere"]),
        ("width: [1]", "base_expid: X\nmodel_config: {Y: {model: Fake}}\n", ["base_expid", "'X'"]),
        ("width: [1]", "base_expid: X\nmodel_config: {X: 3}\n", ["model_config", "X is 3"]),
        (
            "width: [1]",
            "base_expid: X\ndataset_id: a\nmodel_config: {X: {model: Fake}}\ndataset_config: {b: {}}\n",
            ["'a'"],
        ),
    ],
)
def test_bad_spaces_and_bases_write_nothing(folder, space, head, names):
    with raises_naming(ConfigError, *names):
        enumerate_trials(tuner_file(folder, space, head=head))
    assert not (folder / "grid").exists()


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


def test_each_trial_is_a_line_without_a_terminal(folder, capsys):
    written = enumerate_trials(tuner_file(folder, "width: [1, 3, 2]"))
    run(written)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"trial {n} of 3" for n in (1, 2, 3)]
    assert re.search(r"Fake_tiny_001_\w+ finished, AUC 0.500000, 2 s$", lines[0])
    assert re.search(r"; best 0.502000 Fake_tiny_002_\w+$", lines[2])
    run(written)
    run(enumerate_trials(tuner_file(folder, "width: [4]", "quiet.yaml")), quiet=True)
    assert capsys.readouterr().err == ""


def test_two_workers_run_at_the_same_time(folder):
    written = enumerate_trials(tuner_file(folder, "width: [50]\nlearning_rate: [1e-3, 1e-4, 1e-5]"))
    results = run(written, gpus=[-1, -1])
    assert [result.error for result in results] == [None] * 3
    assert sorted(runs(folder)) == sorted(result.expid for result in results)


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


def test_order_of_the_table():
    def result(name, auc, mode="max", monitor="AUC", **more):
        params = {"monitor": monitor, "monitor_mode": mode}
        return TrialResult(name, params, {"AUC": auc, "logloss": 0.5}, seconds=1.0, **more)

    results = [result("unknown", math.nan), result("low", 0.5), result("broken", 0.9, error="x"), result("high", 0.6)]
    lines = format_table(results).splitlines()[1:]
    assert [next(word for word in line.split() if word.isalpha()) for line in lines] == [
        "high",
        "low",
        "unknown",
        "broken",
    ]
    assert result("a", 0.3, mode="min").score == -0.3
    assert result("a", 0.3, monitor={"AUC": 1, "logloss": -1}).score == pytest.approx(-0.2)
    assert result("a", 0.3, monitor="gAUC").score == -math.inf


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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_killed_half_way_and_run_again(folder, forked, wait_for, number, code):
    path = tuner_file(folder, "width: [1, 99]")
    (folder / "slow").touch()
    tuner = forked(lambda: run_tuner(path, [-1], Path("fake_run.py")))
    wait_for(lambda: len(runs(folder)) == 2 or not tuner.is_alive())
    os.kill(tuner.pid, number)
    tuner.join(60)
    assert tuner.exitcode == code
    pid = int((folder / "runs.txt").read_text().split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    (folder / "slow").unlink()
    results = run(enumerate_trials(path))
    assert [(result.error, result.skipped) for result in results] == [(None, True), (None, False)]
    assert len(runs(folder)) == 3


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


def test_a_trial_ends_with_its_tuner_even_by_kill_9(folder, forked, wait_for):
    path = tuner_file(folder, "width: [99]")
    (folder / "slow").touch()
    tuner = forked(lambda: run_tuner(path, [-1], Path("fake_run.py")))
    wait_for(lambda: runs(folder))
    tuner.kill()
    tuner.join()
    (folder / "slow").unlink()
    # Begins once the child has let go of the lock.
    assert [result.skipped for result in run(enumerate_trials(path))] == [False]
    status = Path("/proc") / (folder / "runs.txt").read_text().splitlines()[0].split()[-1] / "status"
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_two_tuners_share_a_grid(folder, forked, wait_for):
    path = tuner_file(folder, "width: [1, 2, 3, 4, 99]")
    (folder / "slow").touch()
    other = forked(lambda: run_tuner(path, [-1, -1], Path("fake_run.py"), quiet=True))
    wait_for(lambda: runs(folder))
    threading.Timer(2, (folder / "slow").unlink).start()
    results = run(enumerate_trials(path))
    other.join(60)
    assert other.exitcode == 0
    assert [result.error for result in results] == [None] * 5
    assert sorted(runs(folder)) == [result.expid for result in results]


@pytest.mark.parametrize(("cores", "workers", "share"), [(8, 1, "8"), (8, 3, "2"), (2, 3, "1")])
def test_workers_share_the_cores(folder, monkeypatch, cores, workers, share):
    (folder / "fake_run.py").write_text("import os\nopen('cores.txt', 'w').write(os.environ['FUXICTR_MM_CORES'])\n")
    monkeypatch.delenv("FUXICTR_MM_CORES", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    run(enumerate_trials(tuner_file(folder, "width: [1]")), [-1] * workers, quiet=True)
    assert (folder / "cores.txt").read_text() == share
