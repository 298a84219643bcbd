"""Averages and stacks of runs: their numbers, that fitted weights are honest, and what is refused."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import fuxictr_mm as fm
from fuxictr_mm.cli import main
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError
from fuxictr_mm.evaluation.combine import greedy_weights, transform
from fuxictr_mm.evaluation.compare import compare
from fuxictr_mm.evaluation.ensemble import describe_ensemble, ensemble, refuse_ensemble
from fuxictr_mm.evaluation.intervals import Ranking
from fuxictr_mm.metrics import evaluate_metrics
from fuxictr_mm.runs import find_runs
from tests.errors import exits_naming, raises_naming
from tests.evaluation.conftest import change_data, change_rows, change_settings
from tests.lightgbm import needs_lightgbm
from tests.paths import ROOT


def plant(root, scores):
    """Give each run of DIN_tiny with another seed other scores; of the same seed the newest is taken."""
    for run in find_runs(root, expid="DIN_tiny"):
        change_rows(run, prediction=lambda _, seed=run.seed: scores[seed - 1].astype("f"))


def ranks(values):
    """Mean ranks by counting, over n."""
    return np.array([((values < v).sum() + ((values == v).sum() + 1) / 2) / len(values) for v in values])


@pytest.mark.parametrize("average", ["rank", "logit", "mean"])
def test_an_average_is_the_mean_over_seeds(average, copy):
    found = ensemble(["DIN_tiny"], copy, average=average)
    assert (found.expid, found.model, found.seed, found.state) == ("DIN_tiny_ensemble", "Ensemble", None, "finished")
    members = {run.seed: run for run in reversed(find_runs(copy, expid="DIN_tiny"))}.values()
    assert len(found.config["members"]) == len(members) == 3
    for split in ("valid", "test"):
        values = np.stack([run.predictions(split)[1].astype(float) for run in members])
        if average == "rank":
            expected = np.mean([ranks(row) for row in values], axis=0)
        elif average == "mean":
            expected = values.mean(axis=0)
        else:
            expected = 1 / (1 + np.exp(-np.log(values / (1 - values)).mean(axis=0)))
        label, prediction, group = found.predictions(split)
        np.testing.assert_allclose(prediction, expected, atol=1e-6)
        assert (label is None) == (split == "test")
        np.testing.assert_array_equal(group, next(iter(members)).predictions(split)[2])
    label, prediction, group = found.predictions()
    names = ["AUC", "gAUC"] if average == "rank" else ["AUC", "gAUC", "logloss"]
    assert found.valid == pytest.approx(evaluate_metrics(label, prediction, names, group))
    assert {run.run for run in find_runs(copy, expid="DIN_tiny_ensemble")} == {found.run}


def test_an_ensemble_is_compared_by_its_name(copy):
    ensemble(["DIN_tiny"], copy, name="mine")
    found = compare(["mine", "DIN_tiny"], copy, samples=100)
    assert [side.name for side in found.sides] == ["mine", "DIN_tiny"]
    assert found.sides[0].mean == pytest.approx(find_runs(copy, expid="mine")[0].valid["AUC"])


def test_an_export_names_the_best_experiment_of_an_ensemble(copy, monkeypatch, capsys):
    best = max(find_runs(copy, expid="DIN_tiny"), key=lambda run: run.valid["AUC"])
    found = ensemble(["DIN_tiny"], copy, name="mine")
    for path in found.config["members"]:
        environment = json.loads((Path(path) / "environment.json").read_text())
        command = ["train", "--config", "of all" if Path(path) != best.path else "of the best"]
        (Path(path) / "environment.json").write_text(json.dumps({**environment, "command": command}))
    (copy.parent / "checkpoints").symlink_to(copy)
    monkeypatch.chdir(copy.parent)
    words = ["export", "--config", str(ROOT), "--out", "out", "--expid"]
    with exits_naming(capsys, "--expid DIN_tiny --config 'of the best'"):
        main([*words, "mine"])
    with exits_naming(capsys, "'miner'"):
        main([*words, "miner"])


def test_greedy_weights():
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 4000)
    good = np.stack([label + generator.normal(size=4000) for _ in range(2)])
    noise = generator.normal(size=(1, 4000))
    weights = greedy_weights(label, np.concatenate([noise, good]))
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert weights[0] < 0.1
    assert Ranking(label, weights @ np.concatenate([noise, good])).value > max(
        Ranking(label, row).value for row in good
    )
    np.testing.assert_array_equal(greedy_weights(label, good[:1]), [1.0])
    few = np.array([[0.1, 0.3, 0.2, 0.4], [0.0, 0.1, 0.8, 0.9]])
    assert greedy_weights(np.array([0, 0, 1, 1]), few).tolist() == [0, 1]  # the first would only do no harm


@pytest.mark.parametrize("how", [{"fit_weights": True}, pytest.param({"stack": True}, id="stack")])
def test_what_is_fitted_to_noise_is_measured_as_noise(how, copy):
    """The AUC of weights on the rows that they were fitted to would be above 0.5."""
    if "stack" in how:
        needs_lightgbm()
    generator = np.random.default_rng(1)
    plant(copy, generator.random((3, 3000)))
    found = ensemble(["DIN_tiny"], copy, **how)
    assert abs(found.valid["AUC"] - 0.5) < 0.02
    lines = "\n".join(describe_ensemble(found))
    assert "cross-fitted by users" in lines


def test_fitted_weights_leave_noise_out(copy):
    generator = np.random.default_rng(1)
    label = find_runs(copy, expid="DIN_tiny")[0].predictions()[0]
    good = 1 / (1 + np.exp(-(label + generator.normal(size=3000))))
    plant(copy, np.stack([good, generator.random(3000), generator.random(3000)]))
    plain, fitted = (ensemble(["DIN_tiny"], copy, fit_weights=fit) for fit in (False, True))
    assert fitted.valid["AUC"] > plain.valid["AUC"] + 0.02
    weights = json.loads((fitted.path / "result.json").read_text())["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert min(weights.values()) >= 0
    assert max(weights.values()) > 0.9
    tests = np.stack([fm.load_run(path).predictions("test")[1] for path in weights])
    of_test = np.array(list(weights.values())) @ transform(tests, "rank")
    np.testing.assert_allclose(fitted.predictions("test")[1], of_test, atol=1e-6)


def test_weights_are_not_fitted_to_one_class(make_run, tmp_path):
    """All positives are of one user; without it, no AUC is defined."""
    generator = np.random.default_rng(0)
    label, group = np.repeat([1, 0], [20, 180]), np.repeat(np.arange(10), 20)
    for expid in "AB":
        make_run(expid, (label, generator.random(200), group))
    with raises_naming(DataError, "classes"):
        ensemble(["A", "B"], tmp_path / "runs", fit_weights=True)
    assert not find_runs(tmp_path / "runs", expid="ensemble")


def test_metrics_that_are_undefined_of_the_test_rows_are_left_out(make_run, tmp_path, caplog):
    """As training leaves them out, here where every user has one test row; labels of one class are a placeholder."""
    generator = np.random.default_rng(0)
    label, group = generator.integers(0, 2, 200), np.arange(200) // 10
    for of_test in (label, 0 * label):
        for expid in "AB":
            rows = (label, generator.random(200), group), (of_test, generator.random(200), np.arange(200))
            make_run(expid, *rows, metrics=["AUC", "gAUC", "logloss"], test_data=tmp_path / "gone.parquet")
        found = ensemble(["A", "B"], tmp_path / "runs", average="logit")
        assert set(found.valid) == {"AUC", "gAUC", "logloss"}
        assert set(found.test) == ({"AUC", "logloss"} if of_test is label else set())
    assert "gAUC" in caplog.text


def test_ranks_of_runs_with_logloss_alone_have_an_auc(make_run, tmp_path):
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 200)
    for expid in "AB":
        make_run(expid, (label, generator.random(200), None), metrics=["logloss"])
    found = ensemble(["A", "B"], tmp_path / "runs")
    assert found.valid == {"AUC": pytest.approx(Ranking(label, found.predictions()[1]).value)}
    assert "AUC" in describe_ensemble(found)[0]


def test_folds_do_not_share_users(copy):
    """One user's rows are all in a fold: a run that knows the labels of every user but its own is of no use."""
    from fuxictr_mm.evaluation.calibration import folds

    group = np.repeat(np.arange(50), 4)
    label = np.arange(200) % 2
    fold = folds(label, group)
    assert sorted(set(fold)) == [0, 1, 2, 3, 4]
    assert all(len(set(fold[group == user])) == 1 for user in range(50))
    assert len(set(folds(label, None))) == 5


def test_a_test_file_that_has_changed_is_scored_again(copy, tmp_path, caplog):
    """Saved predictions are of its old rows; runs keep them."""
    runs = find_runs(copy, expid="DIN_tiny")
    file = tmp_path / "test.parquet"
    rows = pq.read_table(runs[0].config["test_data"])
    pq.write_table(rows, file)
    for run in runs:
        change_settings(run, test_data=str(file))
    runs = find_runs(copy, expid="DIN_tiny")
    before = [run.predictions("test")[1] for run in runs]
    first = ensemble(["DIN_tiny"], copy, average="mean")
    pq.write_table(rows.take(np.arange(len(rows))[::-1]), file)
    found = ensemble(["DIN_tiny"], copy, average="mean")
    np.testing.assert_allclose(found.predictions("test")[1], first.predictions("test")[1][::-1], atol=1e-6)
    single = ensemble([runs[0].run], copy, average="mean", name="one")
    np.testing.assert_allclose(single.predictions("test")[1], before[0][::-1], atol=1e-6)
    for run, kept in zip(runs, before, strict=True):
        np.testing.assert_array_equal(run.predictions("test")[1], kept)
    with raises_naming(ConfigError, "DIN_tiny_ensemble", "no weights"):  # the average of the old rows
        ensemble([first.path, found.path], copy, name="two")
    other = tmp_path / "other.parquet"
    pq.write_table(rows, other)
    change_settings(runs[0], test_data=str(other))
    ensemble([run.path for run in runs[:2]], copy)
    assert [r for r in caplog.records if "other.parquet" in r.message and r.levelname == "WARNING"]


def test_runs_with_and_without_a_test_file_are_not_averaged(copy):
    """Before anything is written: an average without test predictions could not be scored again."""
    run, other = find_runs(copy, expid="DIN_tiny")[:2]
    change_settings(run, test_data=None)
    with raises_naming(ConfigError, run.path, other.path, "test_data"):
        ensemble([run.path, other.path], copy, name="both")
    assert not find_runs(copy, expid="both")
    alone = ensemble([run.path], copy)
    assert not alone.config["test_data"]


def test_missing_test_predictions_are_computed_and_kept(copy):
    runs = find_runs(copy, expid="DIN_tiny")
    before = runs[0].predictions("test")[1]
    (runs[0].path / "test_predictions.parquet").unlink()
    found = ensemble(["DIN_tiny"], copy)
    np.testing.assert_allclose(runs[0].predictions("test")[1], before, atol=1e-6)
    assert found.predictions("test")[2] is not None


def test_members_of_different_files_are_named(copy, caplog):
    ensemble(["DIN_tiny"], copy, name="same")
    assert "contents" not in caplog.text
    run = find_runs(copy, expid="DIN_MM_none_tiny")[0]
    change_data(run, **{**run.data, "train_data": "other", "valid_data": "other"})
    found = ensemble(["DIN_tiny", "DIN_MM_none_tiny"], copy, name="both")
    trained, evaluated = [message for message in caplog.messages if "contents" in message]
    assert all(part in trained for part in ("DIN_tiny", "DIN_MM_none_tiny", "train_data", run.config["train_data"]))
    assert "valid_data" in evaluated
    assert "item_info" in found.data
    assert found.data.keys().isdisjoint({"train_data", "valid_data"})  # no one file is that of all members


def test_a_single_run_is_itself(copy):
    (run,) = find_runs(copy, expid="DIN_MM_none_tiny")
    assert ensemble(["DIN_MM_none_tiny"], copy).path == run.path
    assert describe_ensemble(run) == []


def test_a_single_run_is_refused_before_it_is_scored(copy, monkeypatch, capsys):
    (run,) = find_runs(copy, expid="DIN_MM_none_tiny")
    (run.path / "test_predictions.parquet").unlink()
    for options in (["--average", "logit"], ["--name", "both"]):
        monkeypatch.setattr(sys, "argv", ["prediction.py", "--runs", run.expid, "--root", str(copy), *options])
        with exits_naming(capsys, run.path, "--average"):
            runpy.run_path(str(ROOT / "prediction.py"), run_name="__main__")
    assert not (run.path / "test_predictions.parquet").exists()


def test_an_ensemble_of_ranks_is_averaged_with_others_by_rank_only(copy):
    found = ensemble(["DIN_tiny"], copy)
    for average in ("logit", "mean"):
        with raises_naming(ConfigError, found.path, *found.config["members"]):
            ensemble([found.path, "DIN_MM_none_tiny"], copy, name="more", average=average)
    assert ensemble([found.path, "DIN_MM_none_tiny"], copy, name="more").valid
    logits = ensemble(["DIN_tiny"], copy, average="logit", name="logits")
    assert ensemble([logits.path, "DIN_MM_none_tiny"], copy, average="mean", name="most").valid
    assert ensemble([logits.path], copy).path == logits.path


def test_labels_of_test_are_only_reported(copy):
    run = find_runs(copy, expid="DIN_MM_none_tiny")[0]
    label = run.predictions("test")[0]
    assert run.test
    found = ensemble(["DIN_MM_none_tiny", "DIN_tiny"], copy)
    assert set(found.test) == {"AUC", "gAUC"}
    np.testing.assert_array_equal(found.predictions("test")[0], label)


def test_a_name_that_is_no_name_of_a_folder_is_refused(copy):
    with raises_naming(ConfigError, "--name", "'a/b'"):
        ensemble(["DIN_tiny"], copy, name="a/b")


def test_what_does_not_fit_is_refused(copy):
    with raises_naming(MissingFileError, "DIN_tinny"):
        ensemble(["DIN_tinny"], copy)
    with raises_naming(ConfigError, "ensemble"):
        ensemble([], copy)
    with raises_naming(ConfigError, "--average"):
        ensemble(["DIN_tiny"], copy, average="median")
    with raises_naming(ConfigError, "--fit-weights"):
        ensemble(["DIN_tiny"], copy, fit_weights=True, stack=True)
    with raises_naming(ConfigError, "--name"):
        ensemble(["DIN_tiny"], copy, name="DIN_MM_none_tiny")
    run = find_runs(copy, expid="DIN_tiny")[0]
    path = run.path / "test_predictions.parquet"
    pq.write_table(pq.read_table(path).slice(0, 99), path)
    with raises_naming(DataError, "99"):
        ensemble(["DIN_tiny"], copy)
    change_rows(run, label=lambda label: 1 - label)
    with raises_naming(DataError, "row 0"):
        ensemble(["DIN_tiny"], copy)
    assert not find_runs(copy, expid="DIN_tiny_ensemble")


def test_a_regression_is_not_averaged_with_a_classification(make_run, tmp_path):
    rows = (np.arange(100) % 2, np.linspace(-1, 2, 100), None)
    make_run("A", rows)
    make_run("B", rows, task="regression")
    with raises_naming(ConfigError, "/A/", "/B/", "regression"):
        ensemble(["A", "B"], tmp_path / "runs")


def test_values_of_a_regression_are_refused_as_a_submission_before_they_are_averaged(make_run, tmp_path, capsys):
    rows = (np.linspace(-1, 1, 100), np.linspace(-1, 2, 100), None)
    for name in "AB":
        make_run(name, rows, task="regression", test_data="test.parquet")
    with exits_naming(capsys, "regression", "--out"):
        main(["predict", "--runs", "A", "B", "--root", str(tmp_path / "runs")])
    assert not find_runs(tmp_path / "runs", expid="ensemble")


def test_no_probabilities_no_logits():
    with raises_naming(DataError, "--average rank"):
        transform(np.array([[0.5, 1.5]]), "logit")


def test_stack_without_its_package_says_what_to_install(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with raises_naming(ConfigError, "fuxictr-mm[stack]"):
        ensemble(["DIN_tiny"], copy, stack=True)


def test_an_ensemble_has_no_weights(copy):
    found = ensemble(["DIN_tiny"], copy)
    with raises_naming(ConfigError, "DIN_tiny"):
        found.predict()
    assert fm.ensemble is ensemble
    assert Path(found).is_dir()


def test_an_ensemble_has_no_weights_to_predict_with(copy, monkeypatch, capsys):
    """The advice is an experiment of the configuration; a fold is none, but has weights for one."""
    monkeypatch.chdir(copy.parent)
    copy.rename("checkpoints")
    ensemble(["DIN_tiny"], "checkpoints", name="mine")
    with raises_naming(ConfigError, "mine", "no weights", "--expid DIN_tiny"):
        refuse_ensemble("mine")
    with exits_naming(capsys, "mine", "no weights"):
        main(["predict", "--expid", "mine", "--config", str(ROOT)])
    for run in find_runs("checkpoints", expid="DIN_tiny"):
        fold = {"number": 1, "of": 5, "by": "user"}
        change_settings(run, model_id="DIN_tiny_fold1", fold=fold)
    with raises_naming(ConfigError, "--expid DIN_tiny --weights checkpoints"):
        refuse_ensemble("mine")
    refuse_ensemble("DIN_tiny")
