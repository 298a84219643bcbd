"""The whole way on few rows, resumed."""

import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fuxictr_mm.autopilot import model_study, stages
from fuxictr_mm.autopilot.folder import Request
from fuxictr_mm.cli import main
from fuxictr_mm.config import sizes as config_sizes
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.runs import find_runs
from tests.errors import raises_naming
from tests.paths import ROOT, TINY


def test_missing_packages_are_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with raises_naming(ConfigError, "optuna", "jinja2"):
        stages.run(Request("X", tmp_path))


def fail(*args, **kwargs):
    raise UserError("the training loss is nan")


@pytest.mark.slow
def test_from_a_dataset_to_a_submission(tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    pytest.importorskip("matplotlib")
    data = tmp_path / "data" / "tiny_mm"
    shutil.copytree(TINY, data)
    for name, rows in (("train", 600), ("valid", 500), ("test_labelled", 400)):
        pq.write_table(pq.read_table(data / f"{name}.parquet").slice(0, rows), data / f"{name}.parquet")
    shutil.copytree(ROOT / "data" / "tiny_mm_derived", tmp_path / "data" / "tiny_mm_derived")
    text = (ROOT / "dataset_config.yaml").read_text().replace("tiny_mm/test.parquet", "tiny_mm/test_labelled.parquet")
    (tmp_path / "dataset_config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sizes = tuple(replace(size, epochs=2) for size in config_sizes.SIZES)
    monkeypatch.setattr(config_sizes, "SIZES", sizes)
    arguments = ["autopilot", "--dataset_id", "tiny_mm", "--budget", "1s", "--jobs", "1", "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(model_study, "train_seeds", fail)  # the trial is enough
        main(arguments)
    alone = json.loads(capsys.readouterr().out)
    assert alone["name"].startswith("AUTO_DIN_MM_local_0000")
    assert Path(alone["submission"]).exists()
    main(arguments)
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["name"] == "AUTO_tiny_mm"
    runs = find_runs("checkpoints")
    trained = {run.run for run in runs if run.model != "Ensemble"}
    assert {run.model for run in runs} == {"DIN_MM", "Ensemble"}
    assert len(trained) == 3  # a trial and two seeds
    ensemble = next(run for run in runs if run.model == "Ensemble")
    assert found["valid"] == pytest.approx(ensemble.valid)
    assert found["test"] == pytest.approx(ensemble.test)
    with zipfile.ZipFile(found["submission"]) as archive:
        assert archive.read("prediction.csv").count(b"\n") == 401
    page = Path(found["page"]).read_text()
    assert "What was tried, and why" in page
    assert "DIN_MM is tried: target attention" in page
    assert any("not tried" in line for line in found["told"])
    main(arguments)  # goes on from where it ended, so trains nothing
    again = {run.run for run in find_runs("checkpoints") if run.model != "Ensemble"}
    assert again == trained
    assert json.loads(capsys.readouterr().out)["valid"] == pytest.approx(found["valid"])
