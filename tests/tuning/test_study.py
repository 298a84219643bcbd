"""Random search and TPE, with a stand-in for run_expid.py."""

import json
import math
import os
import threading
import time
from pathlib import Path

import pytest

from fuxictr_mm import tuning
from fuxictr_mm.config import list_experiments, load_config
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.runs import read_evaluations
from fuxictr_mm.tuning import ownership, pruning, run_study, run_tuner, study_trials
from fuxictr_mm.tuning.space import point_key
from fuxictr_mm.tuning.study_trials import StudyTrials
from tests.errors import raises_naming
from tests.paths import ROOT
from tests.tuning.grids import HEAD
from tests.tuning.points import draw_all

optuna = pytest.importorskip("optuna")

SCRIPT = """
import argparse, json, os, signal, sys, time
from pathlib import Path
from fuxictr_mm.config import config_hash, load_config

parser = argparse.ArgumentParser()
for flag in ("--config", "--expid", "--gpu", "--model_zoo"):
    parser.add_argument(flag)
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()
params = load_config(args.config, args.expid)
width = params["width"]
folder = Path(params["model_root"]) / params["dataset_id"]
run = folder / args.expid / "20250101-000000-seed1"
run.mkdir(parents=True, exist_ok=True)
if Path("stubborn").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def note(what):
    with open("runs.txt", "a") as stream:
        stream.write(f"{what} {args.expid} {os.getpid()}\\n")


note("begin")
if Path(f"broken{width}").exists():
    sys.exit(f"ValueError: width {width}")
auc = 0.5 + width / 1000 - params["learning_rate"]
ended = Path("runs.txt").read_text().count("end ")
while Path("slow").exists() or Path(f"slow{ended}").exists():
    time.sleep(0.02)
with (run / "metrics.jsonl").open("w") as stream:
    for epoch in range(1, params["epochs"] + 1):
        late = epoch <= 2 and Path(f"late{width}").exists()
        reached = 0.1 if late else auc
        line = {"epoch": epoch, "step": epoch * 10, "loss": 0.5, "AUC": reached, "logloss": 1, "seconds": epoch}
        print(json.dumps(line), file=stream, flush=True)
        if late and epoch == 2:
            time.sleep(2)
        if epoch == 3 and Path(f"endless{width}").exists() and len(list(folder.glob("*.json"))) >= 5:
            time.sleep(100)
(folder / f"{args.expid}.json").write_text(json.dumps({
    "expid": args.expid, "config_hash": config_hash(params), "valid": {"AUC": auc, "logloss": 1.0}, "test": None,
    "seconds": 1.5, "finished_at": "2025-01-01T00:00:00",
}))
note("end")
"""

SPACE = "width: {low: 1, high: 60}\nlearning_rate: {low: 1.e-4, high: 1.e-2, log: True}\nepochs: 2\nmax_len: [5, 9]"


@pytest.fixture(autouse=True)
def quick(folder, monkeypatch):
    (folder / "fake_run.py").write_text(SCRIPT)
    monkeypatch.setattr(study_trials, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(pruning, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(tuning.runner, "POLL_SECONDS", 0.05)


def tuner_file(folder, space=SPACE, name="hunt.yaml", **keys):
    keys = {"search": "random", "trials": 6, **keys}
    text = HEAD + "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())
    path = folder / name
    path.write_text(text + "tuner_space:\n" + "".join(f"    {line}\n" for line in space.splitlines()))
    return path


def hunt(path, gpus=(-1,)):
    return run_study(tuning.read_tuner(path), gpus, Path("fake_run.py"), quiet=True).trials


def tune(path, gpus=(-1,)):
    return lambda: run_tuner(path, gpus, Path("fake_run.py"), quiet=True)


def noted(folder, what):
    path = folder / "runs.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[1] for line in lines if line.split()[0] == what]


def summary(results):
    return [(result.expid, result.params, result.valid) for result in results]


def undisturbed(path):
    """The points of a study of the stand-in."""
    tuner = tuning.read_tuner(path)
    auc = lambda point: 0.5 + point["width"] / 1000 - point["learning_rate"]  # noqa: E731
    return draw_all(tuner.space, tuner.search, tuner.seed, tuner.trials, auc)


def points_of(results):
    return [{k: v for k, v in result.params.items() if not k.startswith("monitor")} for result in results]


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
    space = "ids: [auto, as_is]\ndnn_hidden_units: [[8, 4]]\nembedding_regularizer: ['l2(1e-3)', 1e-3, null]"
    results = hunt(tuner_file(folder, space, trials=100))
    assert len(results) == 6  # all there are
    points = {json.dumps(load_config(folder / "hunt", r.expid), sort_keys=True, default=str) for r in results}
    assert len(points) == 6
    assert {load_config(folder / "hunt", r.expid)["ids"] for r in results} == {"auto", "as_is"}
    assert all(r.params["embedding_regularizer"] in ("l2(1e-3)", 1e-3, None) for r in results)
    assert len(list((folder / "hunt/dataset_config").iterdir())) == 2


def test_more_trials_go_on_where_fewer_stopped(folder):
    first = hunt(tuner_file(folder, trials=3))
    more = hunt(tuner_file(folder, trials=5))
    assert summary(more[:3]) == summary(first)
    assert [result.skipped for result in more] == [True] * 3 + [False] * 2
    assert len(noted(folder, "begin")) == 5


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


# ---- kills, and several processes ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("search", "trials", "kills"), [("random", 6, (2, 4)), ("tpe", 12, (3, 11))])
def test_killed_twice_in_the_middle_it_ends_the_same(folder, forked, wait_for, search, trials, kills):
    path = tuner_file(folder, search=search, trials=trials)
    for killed, finished in enumerate(kills):
        (folder / f"slow{finished}").touch()  # the next trial after so many waits
        tuner = forked(tune(path))
        begun = finished + killed + 1
        wait_for(lambda begun=begun: len(noted(folder, "begin")) == begun)
        tuner.kill()
        tuner.join()
        (folder / f"slow{finished}").unlink()
    results = hunt(path)
    assert [result.state for result in results] == ["finished"] * trials
    ended = noted(folder, "end")
    assert len(ended) == len(set(ended)) == trials  # none lost, none twice
    assert len(noted(folder, "begin")) == trials + 2  # the two that were killed began again
    assert len({point_key(result.params) for result in results}) == trials
    assert points_of(results) == undisturbed(path)


@pytest.mark.slow
def test_two_tuners_on_one_study(folder, forked):
    path = tuner_file(folder, trials=7)
    other = forked(tune(path, [-1, -1]))
    results = hunt(path)
    other.join(60)
    assert other.exitcode == 0
    ended = noted(folder, "end")
    assert len(ended) == len(set(ended)) == len(noted(folder, "begin")) == 7
    assert len(list_experiments(folder / "hunt")) == 7
    assert {result.skipped for result in results} == {True, False}  # each had its part
    assert points_of(results) == undisturbed(path)


@pytest.mark.slow
def test_of_two_tuners_one_is_killed(folder, forked, wait_for):
    path = tuner_file(folder, search="tpe", trials=5)
    (folder / "slow").touch()
    other = forked(tune(path, [-1, -1]))
    wait_for(lambda: len(noted(folder, "begin")) == 2)
    other.kill()
    (folder / "slow").unlink()
    results = hunt(path)
    assert [result.state for result in results] == ["finished"] * 5
    assert len(set(noted(folder, "end"))) == len(noted(folder, "end")) == 5


def test_a_child_that_outlives_its_tuner_is_waited_for(folder, forked, wait_for):
    path = tuner_file(folder, "width: [7]", trials=1)
    (folder / "slow").touch()
    (folder / "stubborn").touch()
    other = forked(tune(path))
    wait_for(lambda: noted(folder, "begin"))
    other.kill()
    other.join()
    threading.Timer(1, (folder / "slow").unlink).start()
    results = hunt(path)
    assert [result.valid["AUC"] for result in results] == [0.5 + 7 / 1000 - 1e-3]
    assert len(noted(folder, "begin")) == 1


def test_stopped_it_gives_its_trials_back(folder, forked, wait_for):
    path = tuner_file(folder, "width: [7]", trials=1)
    (folder / "slow").touch()
    tuner = forked(tune(path))
    wait_for(lambda: noted(folder, "begin"))
    tuner.terminate()
    tuner.join(60)
    assert tuner.exitcode == 143
    loaded = optuna.load_study(study_name="hunt", storage=f"sqlite:///{folder}/hunt/study.db")
    assert [trial.state.name for trial in loaded.trials] == ["WAITING"]
    (folder / "slow").unlink()
    assert [result.state for result in hunt(path)] == ["finished"]


def test_a_machine_that_is_silent_loses_its_trial(folder, monkeypatch):
    url = f"sqlite:///{folder}/shared.db"
    here = StudyTrials(
        tuning.read_tuner(tuner_file(folder, "width: [7, 8]", trials=2, storage=url)), tuning.Source(), {}
    )
    trial = here.take()
    (folder / "there").mkdir()
    path = tuner_file(folder / "there", "width: [7, 8]", trials=2, storage=url)
    path.write_text(path.read_text().replace("base_config: base", f"base_config: {folder}/base"))
    there = StudyTrials(tuning.read_tuner(path), tuning.Source(), {})
    second = there.take()
    assert second.number == 1
    assert there._claim() is None
    assert not there.done
    assert here.may_continue(trial)
    monkeypatch.setattr(ownership, "STALE_SECONDS", 0.2)
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.05)
    for _ in range(5):  # it beats, and keeps its trial
        time.sleep(0.1)
        assert here.may_continue(trial)
        assert there._claim() is None
    time.sleep(0.3)
    taken, lock = there._claim()
    assert taken == 0
    lock.release()
    assert not here.may_continue(trial)
    here.finish(trial, "too late")
    assert there.stored.get(0).error is None
    assert there.stored.get(0).is_running


def test_a_trial_that_ended_elsewhere_while_this_machine_slept_is_left(folder, monkeypatch):
    here = StudyTrials(tuning.read_tuner(tuner_file(folder, "width: [7]", trials=1)), tuning.Source(), {})
    trial = here.take()
    here.stored.study.tell(0, 0.5)
    monkeypatch.setattr(pruning, "read_evaluations", lambda _: [{"epoch": 1, "step": 10, "AUC": 0.6}])
    assert here.may_continue(trial)  # the clock of heartbeats stood still
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0)
    assert not here.may_continue(trial)
    here.finish(trial, "too late")
    assert [result.error for result in here.results()] == [None]


# ---- pruning -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_trials_below_the_median_are_pruned(folder, capsys):
    bad = range(1, 5)
    for width in bad:
        (folder / f"endless{width}").touch()  # such a trial ends by being pruned, or not at all
    path = tuner_file(
        folder, "width: [1, 2, 3, 4, 11, 12, 13, 14, 15, 16]\nepochs: 6", trials=10, pruning={"warmup": 2}, seed=1
    )
    run_tuner(path, [-1], Path("fake_run.py"))
    results = hunt(path)
    pruned = [result for result in results if result.pruned]
    assert pruned
    assert all(result.params["width"] in bad and result.state == "pruned" for result in pruned)
    assert all(result.params["width"] > 4 for result in results[5:] if not result.pruned)
    assert all(result.valid["AUC"] == 0.5 + result.params["width"] / 1000 - 1e-3 for result in results)
    loaded = optuna.load_study(study_name="hunt", storage=f"sqlite:///{folder}/hunt/study.db")
    for trial in loaded.trials:
        assert list(trial.intermediate_values) == list(range(1, 4 if trial.state.name == "PRUNED" else 7))
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[-1] == "state"
    assert [line.split()[-1] for line in lines[:10]] == ["finished"] * (10 - len(pruned)) + ["pruned"] * len(pruned)
    assert len(noted(folder, "begin")) == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pruning", "cut"),
    [(True, False), ({}, False), ({"epochs": 2}, False), ({"epochs": 1}, True), ({"warmup": 1}, True)],
)
def test_a_slow_starter_gets_a_third_of_the_epochs(folder, pruning, cut):
    (folder / "late20").touch()
    widths = [11, 12, 13, 14, 15, 20]
    space = {"width": widths, "epochs": [6]}
    # The pruner judges from the sixth trial on.
    seed = next(s for s in range(200) if draw_all(space, "random", s, 6, len)[-1]["width"] == 20)
    results = hunt(tuner_file(folder, f"width: {widths}\nepochs: 6", trials=6, pruning=pruning, seed=seed))
    (late,) = [result for result in results if result.params["width"] == 20]
    assert late.pruned == cut
    assert not any(result.pruned for result in results if result is not late)


@pytest.mark.slow
def test_evaluations_of_a_failed_try_prune_no_other(folder):
    widths = [11, 12, 13, 14, 15, 20]
    seed = next(
        s for s in range(200) if draw_all({"width": widths, "epochs": [6]}, "random", s, 6, len)[-1]["width"] == 20
    )
    path = tuner_file(folder, f"width: {widths}\nepochs: 6", trials=6, pruning={"warmup": 1}, seed=seed)
    (folder / "broken20").touch()
    (failed,) = [result for result in hunt(path) if result.state == "failed"]
    loaded = optuna.load_study(study_name="hunt", storage=f"sqlite:///{folder}/hunt/study.db")
    lines = [{"epoch": n, "step": n * 10, "AUC": 0.1, "logloss": 1, "seconds": n} for n in range(1, 9)]
    for line in lines:
        loaded._storage.set_trial_intermediate_value(loaded.trials[-1]._trial_id, line["epoch"], line["AUC"])
    (file,) = folder.glob(f"**/{failed.expid}/*/")
    (file / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "broken20").unlink()
    assert {result.state for result in hunt(path)} == {"finished"}
    values = list(loaded.trials[-1].intermediate_values.values())
    assert values[:6] == pytest.approx([0.519] * 6)
    assert all(math.isnan(value) for value in values[6:])


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
    hunt(tuner_file(folder, "width: [1, 2, 3]", trials=2))
    for space, keys, what in [
        ("width: [1, 2]", {}, "tuner_space: width"),
        ("width: [1, 2, 3]\nmax_len: 3", {}, "tuner_space: max_len"),
        ("width: [1, 2, 3]", {"seed": 4}, "seed"),
        ("width: [1, 2, 3]", {"search": "tpe"}, "search"),
    ]:
        with raises_naming(ConfigError, "'hunt'", what):
            hunt(tuner_file(folder, space, **{"trials": 2, **keys}))
    (folder / "other").mkdir()
    (folder / "other" / "Fake.py").write_text((folder / "model_zoo" / "Fake.py").read_text() + "CHANGED = True\n")
    with raises_naming(ConfigError, "Fake"):
        run_tuner(
            tuner_file(folder, "width: [1, 2, 3]", trials=2),
            [-1],
            Path("fake_run.py"),
            source=tuning.Source(model_zoo=folder / "other"),
        )
    assert len(hunt(tuner_file(folder, "width: [1, 2]", trials=2, study="other"))) == 2
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
