"""The search of every model: the same budget for each, and a second start that repeats nothing."""

import pytest

from benchmarks import zoo
from fuxictr_mm.data import parquet
from fuxictr_mm.datasets.experiments import first_experiments
from fuxictr_mm.datasets.summary import SplitSummary, Summary
from fuxictr_mm.runs.paths import METRICS
from fuxictr_mm.yaml_files import load_yaml
from tests.paths import ROOT


def test_every_model_of_the_zoo_is_searched():
    models = load_yaml(ROOT / "benchmarks" / "real" / "model_config.yaml")
    found = {models[expid]["model"] for expid in zoo.experiments(ROOT / "benchmarks" / "real")}
    others = {path.stem for path in (ROOT / "model_zoo").glob("*.py")} - found
    assert others == {"ESMM"}  # with one label it is DIN


def test_every_model_has_an_experiment_on_each_set():
    on_real = load_yaml(ROOT / "benchmarks" / "real" / "model_config.yaml")
    others = load_yaml(ROOT / "model_config.yaml")
    for name in (path.stem for path in (ROOT / "model_zoo").glob("*.py")):
        assert others[f"{name}_tiny"]["model"] == others[f"{name}_MicroLens"]["model"] == name
        if name != "ESMM":
            assert on_real[f"{name}_ml100k"]["model"] == name


@pytest.mark.parametrize("rows", [12_000, 398_262])
@pytest.mark.parametrize("model", ["DIN", "LightFM"])
def test_a_study_begins_with_what_prepare_log_writes(tmp_path, monkeypatch, model, rows):
    monkeypatch.setattr(parquet, "count_rows", lambda path: rows)
    space, first = zoo.trials_of(zoo.Job(f"{model}_tiny", ROOT, "tiny_mm", 40, (1,), tmp_path, -1))
    summary = Summary(9, 10, {"train": SplitSummary(rows=rows)})
    written = first_experiments(summary, 100, users=True)[model]
    assert first == {name: written[name] for name in first}
    assert space.get("swa_start", [None])[0] == written.get("swa_start")
    assert set(space) <= set(first)
    assert {"batch_size", "epochs", "early_stop_patience"} <= set(first)


@pytest.mark.slow
def test_a_second_start_repeats_no_trial(tmp_path):
    job = zoo.Job("DIN_tiny", ROOT, "tiny_mm", 0.01, (1,), tmp_path, -1)
    score, row = zoo.search(job)
    runs = sorted(tmp_path.rglob(METRICS))
    assert len(runs) == 2  # a trial and a seed
    assert zoo.search(job) == (score, row)
    assert sorted(tmp_path.rglob(METRICS)) == runs
    model, trials, *_ = [cell.strip() for cell in row.split("|")[1:-1]]
    assert (model, trials) == ("DIN_tiny", "1 (0)")
    assert 0.5 < score < 1
