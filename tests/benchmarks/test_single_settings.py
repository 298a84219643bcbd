"""Changes of one setting: each is accepted, and finished runs are not trained again."""

import sys

import pytest

from benchmarks import single_settings
from fuxictr_mm.datasets.experiments import first_experiments
from fuxictr_mm.datasets.summary import SplitSummary, Summary
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.runs.paths import METRICS
from tests.paths import ROOT

REAL = ROOT / "benchmarks" / "real"


@pytest.fixture
def written(monkeypatch, tmp_path):
    monkeypatch.setenv("ML100K_MM", str(tmp_path))
    return lambda model: Experiment.load(f"{model}_written_ml100k", REAL)


@pytest.mark.parametrize("change", [*single_settings.FEATURES, *single_settings.CHANGES])
def test_a_change_is_accepted_and_changes_the_configuration(written, change):
    experiment = written("DIN" if change == "no_softmax" else "DIN_MM")
    settings = single_settings.settings_of(change, experiment.config.use_features)
    assert experiment.with_settings(**settings).config.fingerprint() != experiment.config.fingerprint()


@pytest.mark.parametrize("model", ["DIN", "DIN_MM"])
def test_the_experiments_without_a_change_are_those_that_prepare_log_writes(written, model):
    config = written(model).config.to_dict()
    rows = {"train": SplitSummary(rows=80_024), "test": SplitSummary(rows=9_988, cold=50)}
    entry = first_experiments(Summary(1_682, 943, rows, {"item_emb_d128": 1.0}), 100, users=True)[model]
    defaults = {"optimizer": "adam", "group_id": "user_id", "max_len": 100}
    assert {name: config.get(name, defaults.get(name)) for name in entry} == entry


@pytest.mark.slow
def test_a_second_start_trains_nothing_and_prints_the_same_differences(tmp_path, monkeypatch, capsys):
    root = ["--config", str(ROOT), "--root", str(tmp_path)]
    words = ["single_settings", "--expid", "DIN_tiny", "--changes", "label_smoothing", "--seeds", "1", "2", *root]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(ROOT)
    single_settings.main()
    first, runs = capsys.readouterr().out, sorted(tmp_path.rglob(METRICS))
    assert len(runs) == 4
    single_settings.main()
    assert capsys.readouterr().out == first
    assert sorted(tmp_path.rglob(METRICS)) == runs
    names = [line.split("|")[1].strip() for line in first.splitlines()[2:]]
    assert names == ["none", "label_smoothing"]
