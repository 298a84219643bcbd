"""What a run leaves: whole files, one folder each, gone on with after a kill."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxictr_mm.commands.compare import as_dict
from fuxictr_mm.config import config_hash
from fuxictr_mm.data.groups import NO_GROUP, decode_group
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.evaluation.compare import compare
from fuxictr_mm.evaluation.ensemble import ensemble
from fuxictr_mm.metrics import evaluate_metrics
from fuxictr_mm.runs import RunPaths, best_epoch_was_last, find_runs
from fuxictr_mm.training import callbacks
from fuxictr_mm.training.callbacks import RunWriter
from fuxictr_mm.yaml_files import load_yaml
from tests.errors import raises_naming
from tests.paths import ROOT, TINY
from tests.tensors import read_tensors


def test_the_files_say_what_happened(train, tmp_path):
    pytest.importorskip("tensorboard")
    returned = train(tmp_path, epochs=2, eval_steps=20, early_stop_patience=9, seed=5, tensorboard=True)
    (run,) = find_runs(tmp_path)
    assert returned == run
    result = json.loads((run.path / "result.json").read_text())
    assert (run.finished, run.problem, run.seed, run.model) == (True, "", 5, "DIN")
    assert run.path.parent == tmp_path / "tiny_mm" / "DIN_tiny"
    names = {"config.yaml", "environment.json", "metrics.jsonl", "tensorboard", "run.log", "best.model", "result.json"}
    predictions = {"valid_predictions.parquet", "test_predictions.parquet"}
    assert {path.name for path in run.path.iterdir()} == names | predictions
    assert config_hash(load_yaml(run.path / "config.yaml")) == result["config_hash"]
    assert run.metrics == {"valid": result["valid"]}
    history = run.history()
    assert [line["step"] for line in history] == [20, 40, 60, 80, 100, 120]
    assert max(line["AUC"] for line in history) == pytest.approx(run.valid["AUC"], abs=1e-12)
    assert all(line["rows_per_second"] > 0 and 0 < line["learning_rate"] <= 0.002 for line in history)
    told = "The best epoch was the last allowed one" in (run.path / "run.log").read_text()
    assert told == best_epoch_was_last(history, run.config)
    seconds = [line["seconds"] for line in history]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= run.seconds == result["seconds"]
    label, prediction, group = run.predictions()
    assert (label.dtype, prediction.dtype, group.dtype) == (np.int8, np.float32, np.int64)
    assert evaluate_metrics(label, prediction, ["AUC", "gAUC", "logloss"], group) == pytest.approx(run.valid)
    label, prediction, group = run.predictions("test")  # of a file without labels
    assert (label, prediction.dtype, group.dtype) == (None, np.float32, np.int64)
    np.testing.assert_array_equal(prediction, run.predict())
    best = tmp_path / "tiny_mm" / "DIN_tiny.model"
    assert best.samefile(run.path / "best.model")
    assert (run.path / "run.log").read_text() == (tmp_path / "tiny_mm" / "DIN_tiny.log").read_text()
    (block,) = re.findall(r"settings that differ from the defaults:\n((?:  .*\n)+)", (run.path / "run.log").read_text())
    shown = dict(line.split(maxsplit=1) for line in block.splitlines())
    assert shown["model"] == "DIN"
    assert shown["epochs"] == "2"
    assert shown["dnn_hidden_units"] == "[64, 32]"
    assert not {"optimizer", "feature_cols", "monitor"} & shown.keys()
    assert len({len(re.match(r"  \S+ +", line)[0]) for line in block.splitlines()}) == 1, "aligned"
    assert run.config["optimizer"] == "adam"
    assert run.config["feature_cols"]
    assert run.environment["torch"] == torch.__version__
    assert run.environment["command"] == sys.argv
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    state = read_tensors(best)
    assert run.parameters == sum(v.numel() for name, v in state.items() if not name.endswith(buffers))


def test_groups_are_written_as_they_are_and_rows_may_have_none(train, tmp_path, caplog):
    data = {}
    for split, name in {"valid": "valid", "test": "test_labelled"}.items():
        table = pq.read_table(TINY / f"{name}.parquet")
        users = [None if row % 7 == 0 else f"user {user}" for row, user in enumerate(table["user_id"].to_pylist())]
        data[split] = table.set_column(table.column_names.index("user_id"), "user_id", pa.array(users))
        pq.write_table(data[split], tmp_path / f"{split}.parquet")
    files = {f"{split}_data": str(tmp_path / f"{split}.parquet") for split in data}
    runs = [train(tmp_path / "runs", seed=seed, batch_size=512, metrics=["AUC", "gAUC"], **files) for seed in (1, 2)]
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING" and "429 of 3000" in r.message]
    assert [files["valid_data"] in text for text in warnings[:2]].count(True) == 1
    for split, table in data.items():
        label, prediction, group = runs[0].predictions(split)
        assert group.tolist() == table["user_id"].to_pylist()
        kept = group != None  # noqa: E711
        within = evaluate_metrics(label[kept], prediction[kept], ["gAUC"], group[kept].astype(str))
        expected = {**evaluate_metrics(label, prediction, ["AUC"]), **within}
        assert runs[0].metrics[split] == pytest.approx(expected)
    assert len(runs[0].predict()) == 3000
    found = as_dict(compare([run.path for run in runs], samples=100))
    assert found["users"] == len(set(data["valid"]["user_id"].to_pylist())) - 1 + 429
    assert any("429 of 3000" in note for note in found["notes"])
    path = runs[0].path / "valid_predictions.parquet"  # as older versions wrote it
    table = pq.read_table(path)
    hashes = decode_group(table["group"].combine_chunks(), "", 0)
    pq.write_table(table.set_column(2, "group", pa.array(hashes, mask=hashes == NO_GROUP)), path)
    assert as_dict(compare([run.path for run in runs], samples=100)) == found
    averaged = ensemble([str(run.path) for run in runs], tmp_path / "runs")
    assert averaged.predictions("test")[2].tolist() == data["test"]["user_id"].to_pylist()


def test_a_later_run_leaves_earlier_weights_alone(runs_root):
    runs = find_runs(runs_root, expid="DIN_tiny")
    assert len({run.path for run in runs}) == 4  # two of seed 3, perhaps in one second
    states = {run.seed: read_tensors(run.path / "best.model") for run in runs}
    assert not torch.equal(*(next(iter(states[seed].values())) for seed in (1, 2)))
    first, second = (run.predictions()[1] for run in runs if run.seed == 3)
    np.testing.assert_array_equal(first, second)


def test_no_record_no_folder(train, tmp_path):
    result = train(tmp_path, batch_size=1000, record=False, tensorboard=True)
    assert sorted(path.name for path in (tmp_path / "tiny_mm").iterdir()) == [
        f"DIN_tiny.{e}" for e in ("json", "lock", "log", "model")
    ]
    assert result.finished
    assert result.weights == tmp_path / "tiny_mm" / "DIN_tiny.model"
    assert config_hash(result.config) == json.loads((tmp_path / "tiny_mm" / "DIN_tiny.json").read_text())["config_hash"]
    recorded = train(tmp_path, batch_size=1000)
    assert recorded.valid == result.valid


SCRIPT = """
import os, signal, sys, torch
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.logs import set_up_logging
from fuxictr_mm.training import loop

settings = {{"model_root": sys.argv[1], "epochs": 2, "eval_steps": 20, "verbose": 0, "tensorboard": False}}
experiment = Experiment.load("DIN_tiny", {config!r}, **settings)
step = loop._Fitting.evaluate
torch.set_num_threads(1)

def evaluate(run, epoch, index):
    step(run, epoch, index)
    if run.model._total_steps == 80 and "--resume" not in sys.argv:
        os.kill(os.getpid(), signal.SIGKILL)  # the line is written, the checkpoint is not

loop._Fitting.evaluate = evaluate
set_up_logging()
experiment.fit(resume="--resume" in sys.argv)
"""


@pytest.mark.slow
def test_killed_and_resumed_in_one_folder(train, tmp_path):
    whole = train(tmp_path / "whole", epochs=2, eval_steps=20)
    command = [sys.executable, "-c", SCRIPT.format(config=str(ROOT)), str(tmp_path / "killed")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    (killed,) = find_runs(tmp_path / "killed")
    assert not killed.finished
    assert [line["step"] for line in killed.history()] == [20, 40, 60, 80]
    with (killed.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, "st')  # as if it were cut off
    assert [line["step"] for line in killed.history()] == [20, 40, 60, 80]

    train(tmp_path / "killed", epochs=2, eval_steps=20, resume=True)
    (resumed,) = find_runs(tmp_path / "killed")
    (expected,) = find_runs(tmp_path / "whole")
    assert resumed.path == killed.path
    assert resumed.valid == whole.valid
    keys = ("epoch", "step", "loss", "learning_rate", "AUC")
    assert [[line[k] for k in keys] for line in resumed.history()] == [
        [line[k] for k in keys] for line in expected.history()
    ]
    seconds = [line["seconds"] for line in resumed.history()]
    assert seconds == sorted(seconds)
    np.testing.assert_array_equal(resumed.predictions()[1], expected.predictions()[1])


def params_of(root, **settings):
    return {"model_root": str(root), "dataset_id": "d", "model_id": "X", "model": "M", "seed": 1, "gpu": -1, **settings}


def open_run(params, resume=False):
    paths = RunPaths(Path(params["model_root"]), params["dataset_id"], params["model_id"])
    return RunWriter.open(paths, params, 0.0, resume)


def test_only_an_unfinished_folder_of_the_same_configuration_is_gone_on_with(tmp_path):
    params = params_of(tmp_path, learning_rate=0.1, text="1e-3", width=None, path=Path("a"))
    first = open_run(params)
    second = open_run(params)
    assert first.path != second.path
    assert open_run(params, resume=True).path == second.path
    assert open_run({**params, "learning_rate": 0.2}, resume=True).path not in (first.path, second.path)
    (second.path / "result.json").write_text("{}")
    assert open_run(params, resume=True).path == first.path
    (first.path / "result.json").write_text("{}")
    assert open_run(params, resume=True).path not in (first.path, second.path)


def test_runs_of_one_second_get_numbers(tmp_path, monkeypatch):
    class Clock(callbacks.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 2, 3, 4, 5, 6)

    monkeypatch.setattr(callbacks, "datetime", Clock)
    names = [open_run(params_of(tmp_path)).path.name for _ in range(11)]
    assert names[:3] == ["20260203-040506-seed1", "20260203-040506-seed1-2", "20260203-040506-seed1-3"]
    assert [run.run for run in find_runs(tmp_path)] == names[::-1]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "d").write_text("a file")
    with raises_naming(ConfigError, "d/X", "model_root"):
        open_run(params_of(tmp_path))


def test_a_full_disk_leaves_no_folder_and_ends_a_run(tmp_path, monkeypatch):
    def full(*_):
        raise UserError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "write_beside", full)
        with raises_naming(UserError, "no room"):
            open_run(params_of(tmp_path))
    assert find_runs(tmp_path) == []
    record = open_run(params_of(tmp_path))
    record.begin(0)
    record.close()

    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            self.write("")  # what is buffered is tried again

    record._metrics = Full()
    with raises_naming(UserError, "metrics.jsonl", "No space left on device"):
        record.add_evaluation(1, 5, {"loss": 0.5}, {"AUC": 0.6})
    record.close()


def test_where_there_are_no_links_weights_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_bytes(b"weights")
    callbacks._link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"weights"
    assert not (tmp_path / "a").samefile(tmp_path / "b")


def test_commit_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert callbacks.commit() == {"commit": None, "dirty": None}
    if callbacks._git("init", "--quiet", ".") is None:
        pytest.skip("no git")
    for arguments in (("config", "user.email", "a@b"), ("config", "user.name", "a")):
        callbacks._git(*arguments)
    (tmp_path / "a").write_text("1")
    callbacks._git("add", "a")
    callbacks._git("commit", "--quiet", "-m", "first")
    found = callbacks.commit()
    assert len(found["commit"]) == 40
    assert found["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert callbacks.commit()["dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert callbacks.commit() == {"commit": None, "dirty": None}


@pytest.mark.slow
def test_torchrun_makes_one_folder(tmp_path, monkeypatch):
    from torch.distributed.run import main as torchrun

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "run.py").write_text(SCRIPT.format(config=str(ROOT)))
    options = ["--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
    options += ["--rdzv-endpoint", "localhost:0"]
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # torchrun sets its own
    handlers = [signal.getsignal(number) for number in signals]
    try:
        torchrun([*options, str(tmp_path / "run.py"), str(tmp_path / "runs"), "--resume"])
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
    (run,) = find_runs(tmp_path / "runs")
    assert run.environment["processes"] == 2
    assert run.finished
    assert json.loads((tmp_path / "runs" / "tiny_mm" / "DIN_tiny.json").read_text())["valid"] == run.valid
    label, prediction, _ = run.predictions()
    assert len(label) == run.valid_rows == 3000
    assert evaluate_metrics(label, prediction, ["AUC"])["AUC"] == pytest.approx(run.valid["AUC"])
