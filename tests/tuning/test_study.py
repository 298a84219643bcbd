"""Random search and TPE, with a stand-in for run_expid.py."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fuxictr_mm import tuning
from fuxictr_mm.config import list_experiments, load_config
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.runs import read_evaluations
from fuxictr_mm.tuning import run_study, run_tuner
from fuxictr_mm.tuning.runner import run_trials
from fuxictr_mm.tuning.study import open_trials
from tests.errors import raises_naming
from tests.paths import ROOT
from tests.tuning.studies import SPACE, hunt, noted, summary, tuner_file

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("quick_trials")


# ---- trials are experiments --------------------------------------------------------------------------------------


def test_every_trial_is_an_experiment_of_its_own(folder, capsys):
    path = tuner_file(folder, search="tpe", trials=3)
    run_tuner(path, [-1], Path("fake_run.py"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:8] == ["rank", "expid", "valid", "AUC", "valid", "logloss", "width", "learning_rate"]
    experiments = list_experiments(folder / "hunt")
    assert [name.rsplit("_", 1)[0] for name in experiments] == [f"Fake_tiny_tpe_000{n}" for n in range(3)]
    for name, entry in experiments.items():
        params = load_config(folder / "hunt", name)
        assert (params["width"], params["model"], params["epochs"]) == (entry["width"], "Fake", 2)
        assert (folder / "hunt/logs" / f"{name}.out").is_file()
        assert (folder / f"checkpoints/tiny/{name}.json").is_file()
    assert sorted(noted(folder, "end")) == sorted(experiments)
    assert (folder / "hunt/results.csv").read_text().splitlines()[0].startswith("rank,expid,valid AUC")
    run_tuner(path, [-1], Path("fake_run.py"), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert [row["rank"] for row in document["trials"]] == [1, 2, 3]
    assert len(noted(folder, "begin")) == 3


def test_settings_of_the_dataset_and_values_that_are_lists(folder):
    space = "ids: [auto, as_is]\ndnn_hidden_units: [[8, 4]]\nembedding_regularizer: ['l2(1e-3)', null]"
    results = hunt(tuner_file(folder, space, trials=100))
    assert len(results) == 4  # all there are
    points = {json.dumps(load_config(folder / "hunt", r.expid), sort_keys=True, default=str) for r in results}
    assert len(points) == 4
    assert {load_config(folder / "hunt", r.expid)["ids"] for r in results} == {"auto", "as_is"}
    assert all(r.params["embedding_regularizer"] in ("l2(1e-3)", None) for r in results)
    assert len(list((folder / "hunt/dataset_config").iterdir())) == 2


def test_more_trials_go_on_where_fewer_stopped(folder):
    first = hunt(tuner_file(folder, trials=2))
    more = hunt(tuner_file(folder, trials=3))
    assert summary(more[:2]) == summary(first)
    assert [result.skipped for result in more] == [True, True, False]
    assert len(noted(folder, "begin")) == 3


@pytest.mark.slow
def test_the_importance_finds_what_matters(folder):
    space = "width: {low: 1, high: 90}\nmax_len: [5, 9]"
    found = run_study(tuning.read_tuner(tuner_file(folder, space, trials=10)), [-1] * 4, Path("fake_run.py"))
    assert len(found.finished) == 10
    assert found.finished[0].params["width"] == max(result.params["width"] for result in found.trials)
    assert list(found.importance) == ["width", "max_len"]
    assert found.importance["width"] > 0.8


def test_a_failed_trial_is_run_again_at_the_next_start_only(folder, capsys):
    path = tuner_file(folder, "width: [1, 2, 3]", trials=3)
    (folder / "broken2").touch()
    with raises_naming(UserError, "1 of 3", "Fake_tiny_random_", "ValueError: width 2"):
        run_tuner(path, [-1], Path("fake_run.py"))
    assert capsys.readouterr().out.splitlines()[3].endswith("failed    ValueError: width 2")
    (folder / "broken2").unlink()
    results = hunt(path)
    assert [result.state for result in results] == ["finished"] * 3
    assert (len(noted(folder, "begin")), len(noted(folder, "end"))) == (4, 3)


def test_a_trial_that_has_failed_in_this_start_is_not_run_again_by_its_next_stage(folder):
    """The autopilot opens a study several times."""
    tuner = tuning.read_tuner(tuner_file(folder, "width: [1, 2, 3]", trials=1))
    for width in (1, 2, 3):
        (folder / f"broken{width}").touch()

    def run(trials, failures=None):
        opened = open_trials(replace(tuner, trials=trials), failures=failures)
        run_trials(opened, [-1], Path("fake_run.py"), ["--resume"], quiet=True)
        assert all(result.error is not None for result in opened.results())
        return opened.failures, noted(folder, "begin")

    failures, begun = run(1)
    assert len(begun) == 1
    _, begun = run(3, failures)
    assert len(begun) == len(set(begun)) == 3
    _, begun = run(3, failures)
    assert len(begun) == 3
    later, begun = run(1)  # another start, which knows of the failures of all trials
    assert (set(later), len(begun)) == ({0, 1, 2}, 4)
    _, begun = run(3, later)  # the others have their turn in it as well
    assert len(begun) == 6
    _, begun = run(3, later)
    assert len(begun) == 6


def test_evaluations_of_the_newest_run(tmp_path):
    assert read_evaluations(tmp_path) == []
    for age, name, lines in ((100, "old", '{"step": 1}\n'), (1, "new", '{"step": 2}\n{"step": 4}\n{"step": 4}\n{"st')):
        path = tmp_path / name / "metrics.jsonl"
        path.parent.mkdir()
        path.write_text(lines)
        os.utime(path, (time.time() - age,) * 2)
    assert [evaluation["step"] for evaluation in read_evaluations(tmp_path)] == [2, 4]


# ---- what is wrong is said before anything runs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "keys", "names"),
    [
        (SPACE, {"search": "tpee"}, ["search is 'tpee'", "'tpe'"]),
        (SPACE, {"search": "grid", "trials": 3}, ["trials", "search: grid"]),
        (SPACE, {"trails": 3}, ["'trails'", "'trials'"]),
        (SPACE, {"trials": 0}, ["trials is 0", "1"]),
        (SPACE, {"trials": "9"}, ["trials is '9'"]),
        (SPACE, {"seed": -1}, ["seed is -1"]),
        (SPACE, {"study": "a/b"}, ["study is 'a/b'"]),
        (SPACE, {"pruning": {"warmpu": 1}}, ["pruning", "'warmpu'", "'warmup'"]),
        (SPACE, {"pruning": {"warmup": -1}}, ["warmup is -1"]),
        (SPACE, {"storage": "nonsense"}, ["storage", "postgresql://"]),
        (SPACE, {"storage": "sqlite:////nowhere/x.db"}, ["storage", "nowhere/x.db"]),
        (SPACE, {"storage": "mysql+nodriver://me:secret@host/db"}, ["storage", "host/db"]),
        ("width: {low: 4, high: 4}", {}, ["width", "low is 4", "high is 4"]),
        ("width: {low: 1}", {}, ["width", "high is missing"]),
        ("width: {low: 1, hihg: 4}", {}, ["'hihg'", "'high'"]),
        ("width: {low: 0.5, high: 4}", {}, ["low is 0.5"]),
        ("width: {low: 1, high: 4, step: 2}", {}, ["width", "4", "1", "2"]),
        ("width: {low: 1, high: 4, step: 0.5}", {}, ["step is 0.5"]),
        ("learning_rate: {low: 0, high: 1, log: True}", {}, ["low is 0"]),
        ("learning_rate: {low: 1, high: .inf}", {}, ["high is inf"]),
        ("learning_rate: {low: 0.1, high: 1, log: True, step: 0.1}", {}, ["learning_rate", "step", "log"]),
        ("learning_rate: {low: 0.1, high: 1, log: 1}", {}, ["log is 1"]),
        ("learning_rate: {low: -1, high: 1}", {}, ["low is -1", "0"]),
        ("batch_size: [8, 16, -8]", {}, ["Fake_tiny_random_check2", "batch_size is -8"]),
        ("monitor: [AUC, logloss]", {}, ["tuner_space: monitor"]),
    ],
)
def test_bad_settings(folder, space, keys, names):
    with raises_naming(ConfigError, *names) as raised:
        run_tuner(tuner_file(folder, space, **keys), [-1], Path("fake_run.py"))
    assert "secret" not in str(raised.value)
    assert noted(folder, "begin") == []


def test_a_range_is_no_grid(folder):
    path = tuner_file(folder, "width: {low: 1, high: 4}")
    path.write_text(path.read_text().replace('search: "random"\ntrials: 6\n', ""))
    with raises_naming(ConfigError, "width", "search: tpe"):
        run_tuner(path, [-1], Path("fake_run.py"))


def test_a_study_stays_the_same(folder):
    hunt(tuner_file(folder, "width: [1, 2, 3]", trials=1))
    for space, keys, what in [
        ("width: [1, 2]", {}, "tuner_space: width"),
        ("width: [1, 2, 3]\nmax_len: 3", {}, "tuner_space: max_len"),
        ("width: [1, 2, 3]", {"seed": 4}, "seed"),
        ("width: [1, 2, 3]", {"search": "tpe"}, "search"),
    ]:
        with raises_naming(ConfigError, "'hunt'", what):
            hunt(tuner_file(folder, space, **{"trials": 1, **keys}))
    (folder / "other").mkdir()
    (folder / "other" / "Fake.py").write_text((folder / "model_zoo" / "Fake.py").read_text() + "CHANGED = True\n")
    with raises_naming(ConfigError, "Fake"):
        run_tuner(
            tuner_file(folder, "width: [1, 2, 3]", trials=1),
            [-1],
            Path("fake_run.py"),
            source=tuning.Source(model_zoo=folder / "other"),
        )
    assert len(hunt(tuner_file(folder, "width: [1, 2]", trials=1, study="other"))) == 1
    with raises_naming(ConfigError, "--tag"):
        run_tuner(tuner_file(folder), [-1], Path("fake_run.py"), tag="1")
    optuna.create_study(study_name="foreign", storage=f"sqlite:///{folder}/x.db").ask()
    with raises_naming(ConfigError, "foreign"):
        hunt(tuner_file(folder, study="foreign", storage=f"sqlite:///{folder}/x.db"))


def test_the_folder_of_a_grid_is_left_alone(folder):
    (folder / "hunt").mkdir()
    (folder / "hunt/model_config.yaml").write_text("{}")
    with raises_naming(ConfigError, "hunt"):
        hunt(tuner_file(folder))


def test_without_optuna_one_line_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with raises_naming(ConfigError, "search: random", "fuxictr-mm[tuning]"):
        hunt(tuner_file(folder))


# ---- the real thing ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_trial_on_tiny_mm(folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = (
        f"DIN: {{model: DIN, dataset_id: tiny_mm, model_root: {folder}/checkpoints, epochs: 1, batch_size: 1024, "
        "max_len: 5, embedding_dim: 4, dnn_hidden_units: [8], attention_hidden_units: [4], verbose: 0, "
        "tensorboard: False}"
    )
    path = folder / "real.yaml"
    path.write_text(
        f"base_config: {ROOT}\nbase_expid: DIN\nmodel_config: {{{model}}}\nsearch: tpe\ntrials: 1\nseed: 1\n"
        "tuner_space:\n    learning_rate: {low: 1.e-3, high: 1.e-2, log: True}\n"
    )
    monkeypatch.chdir(ROOT)
    results = run_study(
        tuning.read_tuner(path), [-1], ROOT / "run_expid.py", tuning.Source(ROOT / "data", ROOT / "model_zoo")
    ).trials
    assert [result.state for result in results] == ["finished"]
    assert 0.4 < results[0].valid["AUC"] < 1
    loaded = optuna.load_study(study_name="real", storage=f"sqlite:///{folder}/real/study.db")
    assert [list(trial.intermediate_values) for trial in loaded.trials] == [[1]]


@pytest.mark.slow
def test_a_study_on_other_data_is_refused(folder):
    train = folder / "data" / "tiny" / "train.parquet"
    train.parent.mkdir(parents=True)
    train.write_bytes(b"before")
    path = tuner_file(folder, "width: [7, 8]", trials=1)
    hunt(path)
    train.write_bytes(b"after")
    with pytest.raises(ConfigError, match="train_data"):
        hunt(path)
    train.write_bytes(b"before")
    assert len(hunt(path)) == 1
