"""The command prints the plan; its total is what a run takes."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from fuxictr_mm.cli import main
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.plan.footers import measure_data
from fuxictr_mm.plan.memory import make_plan
from tests.paths import ROOT
from tests.projects import write_project

SHOP = {
    "data_root": "./", "data_format": "csv", "train_data": "./train.csv", "valid_data": "./valid.csv",
    "feature_cols": [
        {"name": "asin", "dtype": "str", "type": "categorical"},
        {"name": "seen", "dtype": "str", "type": "sequence", "splitter": "^", "share_embedding": "asin"},
    ],
    "label_col": {"name": "click", "dtype": "float"}, "roles": {"target": "asin", "history": "seen"},
}  # fmt: skip


def plan(capsys, *words):
    main(["plan", "--config", str(ROOT), *words])
    return capsys.readouterr().out


def test_text_and_json(capsys):
    text = plan(capsys, "--expid", "DIN_MM_tiny", "--memory", "1")
    assert "table item_id" in text
    assert "1,001 x 16, dense" in text
    assert "1,000: fits" in text
    document = json.loads(plan(capsys, "--expid", "DIN_MM_tiny", "--gpus", "8", "--memory", "0.3", "--json"))
    assert document["processes"] == 8
    assert document["fits"] is False
    assert document["total"] == sum(part["bytes"] for part in document["parts"])
    assert document["limit"] == 300_000_000


def test_a_table_of_a_thousand_million_rows():
    """Nothing is made: 1 B x 64 in float32 is 256 GB, with Adam 768 GB."""
    specs = [{"name": "item_id", "vocab_size": 1_000_000_000, "embedding_dim": 64, "table": "touched"}]
    found = make_plan(Experiment.load("DIN_tiny", ROOT, feature_specs=specs), gpus=8, memory=80)
    table = next(t for t in found.tables if t["feature"] == "item_id")
    assert table["weights"] == 256e9
    assert table["optimizer"] == 512e9 + 4e9  # Adam, and the last update of each row
    assert table["gradient"] < 1e7
    assert found.sent < 1e8
    assert not found.fits
    specs[0]["table"] = "dense"
    dense = make_plan(Experiment.load("DIN_tiny", ROOT, feature_specs=specs), gpus=8, memory=80)
    specs[0]["table"] = "sharded"
    settings = {"table_optimizer": "rowwise_adagrad", "embedding_regularizer": 0}
    sharded = make_plan(Experiment.load("DIN_tiny", ROOT, feature_specs=specs, **settings), gpus=8, memory=80)
    table = next(t for t in sharded.tables if t["feature"] == "item_id")
    assert table["weights"] + table["optimizer"] == 32e9 + 0.5e9
    assert table["sharding"] == "row"
    assert sharded.sent < found.sent
    assert sharded.total < found.total / 5
    # A ring sends each of the weights' gradients twice, but for a rank's own part.
    assert dense.sent - found.sent == pytest.approx(2 * 256e9 * 7 / 8, rel=1e-3)


def test_batch_norm_of_own_rows_sends_nothing():
    sent = [
        make_plan(Experiment.load("DIN_MM_tiny", ROOT, sync_batch_norm=sync), gpus=4).sent for sync in (True, False)
    ]
    channels = sum(Experiment.load("DIN_MM_tiny", ROOT).config.model_settings["dnn_hidden_units"])
    assert sent[0] - sent[1] == 8 * channels * 3 + 2 * 8 * channels * 3 / 4


def test_a_streamed_split_leaves_its_memory_to_train(monkeypatch):
    """As ``choose_in_memory``: of half of 0.1 GB, valid takes nothing, so train may take all of it."""
    experiment = Experiment.load("DIN_tiny", ROOT)
    sizes = measure_data(experiment.config)
    rows = {"train": 16_000, "valid": 2_000_000}
    changed = replace(sizes, split_rows=rows, split_bytes={"train": 40_000_000, "valid": 60_000_000})
    monkeypatch.setattr("fuxictr_mm.plan.footers.measure_data", lambda config: changed)
    notes = {part.part: part.note for part in make_plan(experiment, memory=0.1).parts}
    assert notes["rows of valid"].endswith("streamed")
    assert notes["rows of train"].endswith("in memory")


def test_a_dataset_without_item_files_is_refused(tmp_path, capsys):
    """Its roles do not help: the sizes of the tables are those of item files."""
    write_project(tmp_path, {"X": {"model": "DIN", "dataset_id": "shop"}}, {"shop": SHOP})
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--config", str(tmp_path), "--expid", "X", "--model_zoo", str(ROOT / "model_zoo")])
    assert stopped.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "item_info" in error
    assert "roles target" not in error


@pytest.mark.parametrize(
    "words",
    [
        ("--expid", "nothing"),
        ("--expid", "DIN_MM_tiny", "--gpus", "0"),
        ("--expid", "DIN_MM_tiny", "--memory", "-1"),
        ("--expid", "DIN_MM_tiny", "--memory", "nan"),
        ("--expid", "DIN_MM_tiny", "--memory", "inf"),
    ],
)
def test_errors_are_one_line(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "--config", str(ROOT), *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words[-1].strip("-") in error or words[1].removesuffix("_tiny") in error


MEASURE = """
from benchmarks import memory
from fuxictr_mm.experiment import Experiment
experiment = Experiment.load("DIN_MM_tiny", {root!r}, model_root={folder!r}, **{settings!r})
experiment.fit()
print(memory.peak("cpu"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}, {"table_optimizer": "rowwise_adagrad"}])
@pytest.mark.parametrize("table", ["dense", "touched"])
def test_the_total_is_what_a_run_takes(tmp_path, table, settings):
    specs = [{"name": "item_id", "vocab_size": 2_000_000, "table": table}]
    settings = {**settings, "feature_specs": specs, "epochs": 1, "batch_size": 1024, "record": False, "verbose": 0}
    expected = make_plan(Experiment.load("DIN_MM_tiny", ROOT, **settings)).total
    code = MEASURE.format(root=str(ROOT), folder=str(tmp_path), settings=settings)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    measured = int(done.stdout.split()[-1])
    assert expected == pytest.approx(measured, rel=0.1)
