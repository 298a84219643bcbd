"""Cross-validation: every row is scored by a model that has not seen it, and stacks take these scores."""

import runpy
import sys

import numpy as np
import pytest

from fuxictr_mm.config import Fold
from fuxictr_mm.data.folds import fold_of_rows
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.evaluation.ensemble import ensemble
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.metrics import evaluate_metrics
from fuxictr_mm.runs import find_runs
from fuxictr_mm.tuning.seeds import Processes, train_side_by_side
from tests.errors import raises_naming
from tests.paths import ROOT


def run(*words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_expid.py", *words])
    runpy.run_path(str(ROOT / "run_expid.py"), run_name="__main__")


@pytest.mark.slow
def test_out_of_fold_predictions(small_project, monkeypatch, capsys):
    words = ["--expid", "LightFM_tiny", "--folds", "3", "--jobs", "2"]
    run(*words, monkeypatch=monkeypatch)
    assert "LightFM_tiny_folds" in capsys.readouterr().out
    runs = {found.expid: found for found in find_runs("checkpoints")}
    combined = runs["LightFM_tiny_folds"]
    label, prediction, group = combined.predictions()
    experiment = Experiment.load("LightFM_tiny", small_project, verbose=0)
    dataset = experiment.load_dataset({"train": True, "valid": True})
    rows = [dataset.splits[split] for split in ("train", "valid")]
    np.testing.assert_array_equal(label, np.concatenate([table.label.numpy() for table in rows]))
    np.testing.assert_array_equal(group, np.concatenate([table.group.numpy() for table in rows]))
    held_out = fold_of_rows(group, len(group), Fold(number=1, of=3))
    logits = 0.0
    for number in (1, 2, 3):
        one = runs[f"LightFM_tiny_fold{number}"]
        # Trained as one run with the setting is.
        fold = {"number": number, "of": 3, "by": "user"}
        alone = Experiment.load("LightFM_tiny", small_project, fold=fold, model_root="alone", verbose=0).fit()
        np.testing.assert_array_equal(one.predictions()[1], alone.predictions()[1])
        np.testing.assert_array_equal(prediction[held_out == number - 1], one.predictions()[1])
        of_test = one.predictions("test")[1].astype(float)
        logits = logits + np.log(of_test / (1 - of_test)) / 3
    np.testing.assert_allclose(combined.predictions("test")[1], 1 / (1 + np.exp(-logits)), rtol=1e-5)
    assert combined.valid["AUC"] == pytest.approx(evaluate_metrics(label, prediction, ["AUC"])["AUC"])
    before = {found.path for found in find_runs("checkpoints") if found.expid != "LightFM_tiny_folds"}

    run(*words, "--resume", monkeypatch=monkeypatch)
    assert {found.path for found in find_runs("checkpoints") if found.expid != "LightFM_tiny_folds"} == before

    run("--expid", "DIN_tiny", "--folds", "3", monkeypatch=monkeypatch)
    both = ensemble(["LightFM_tiny_folds", "DIN_tiny_folds"], average="logit", fit_weights=True, name="both")
    np.testing.assert_array_equal(both.predictions()[0], label)
    with raises_naming(Exception, "LightFM_tiny_fold"):
        ensemble(["LightFM_tiny_fold1", "LightFM_tiny_fold2"])


def test_the_checkpoint_of_a_fold_that_was_killed_at_its_end_is_deleted(small_project):
    fold = Experiment.load("LightFM_tiny", small_project, verbose=0).of_fold(Fold(number=1, of=3))
    run = fold.fit()
    (fold.paths.checkpoint / "step1").mkdir(parents=True)
    newest = fold.paths.runs / f"20990101-000000-seed{run.seed}"
    newest.mkdir()  # one that is to be resumed

    def resume():
        nothing = small_project / "dataset_config.yaml"  # no script is started
        processes = Processes(small_project, nothing, jobs=1, resume=True, quiet=True)
        return train_side_by_side({"fold1": (fold, ())}, fold, processes, "fold")

    assert [found.run for found in resume()] == [run.run]
    assert fold.paths.checkpoint.exists()
    newest.rmdir()
    assert [found.run for found in resume()] == [run.run]
    assert not fold.paths.checkpoint.exists()
    assert all(path.exists() for path in (fold.paths.weights, fold.paths.log, fold.paths.result))


def test_what_cannot_be_folded(small_project, monkeypatch, capsys):
    for words, named in (
        (["--folds", "1"], "--folds"),
        (["--folds", "3", "--seeds", "1", "2"], "--seeds"),
        (["--folds", "3", "--jobs", "0"], "--jobs"),
        (["--fold_by", "time"], "--folds"),
        (["--jobs", "2"], "--jobs"),
    ):
        with pytest.raises((SystemExit, ConfigError)) as stopped:
            run("--expid", "LightFM_tiny", *words, monkeypatch=monkeypatch)
        assert named in str(stopped.value) + capsys.readouterr().err
