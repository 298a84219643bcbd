"""Trials that are ended early."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from fuxictr_mm.tuning import pruning, run_tuner
from tests.tuning.points import draw_all
from tests.tuning.studies import hunt, noted, tuner_file

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("quick_trials")


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


def test_the_evaluation_of_initial_weights_does_not_count(monkeypatch, tmp_path):
    """Trials are compared after as many evaluations of their own training, whatever they start with."""
    lines = [{"epoch": n, "step": n * 10, "AUC": 0.7 + n / 100, "seconds": n} for n in range(3)]
    monkeypatch.setattr(pruning, "read_evaluations", lambda _: lines)
    params = {"monitor": "AUC", "monitor_mode": "max", "metrics": ["AUC"]}
    trial = SimpleNamespace(paths=SimpleNamespace(runs=tmp_path), params=params, number=0)
    reported, judged = {}, []
    stored = SimpleNamespace(report=lambda number, step, value: reported.update({step: value}))
    pruner = SimpleNamespace(ends=lambda trial, line, count: judged.append(line["epoch"]))
    watch = pruning.Watch(trial, stored, pruner)
    watch.report()
    assert reported == {1: 0.71, 2: 0.72}
    assert judged == [1, 2]
    assert watch.last().valid == {"AUC": 0.72}
    again = pruning.Watch(trial, stored, pruner)
    again.go_on(1)
    assert judged[2:] == [1]
    assert again.reported == 1
    monkeypatch.setattr(pruning, "read_evaluations", lambda _: lines[:1])
    assert pruning.Watch(trial, stored, pruner).last() is None
