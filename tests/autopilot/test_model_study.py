"""The study of one model in an autopilot."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fuxictr_mm.autopilot import model_study
from fuxictr_mm.autopilot.folder import Request
from fuxictr_mm.autopilot.model_study import ModelStudy
from fuxictr_mm.autopilot.plans import Plan
from fuxictr_mm.tuning import read_tuner
from fuxictr_mm.tuning.study import StudyResult
from fuxictr_mm.tuning.trial import TrialResult

PLAN = Plan(
    "DIN", "", {"model": "DIN", "dataset_id": "X", "epochs": 20}, {"net_dropout": [0.0, 0.1]}, {"net_dropout": 0.1}
)


@pytest.fixture
def tuners(monkeypatch):
    """The tuners and scripts of the studies that would have run."""
    started = []
    trials = [TrialResult(f"X{n}", {"monitor": "AUC", "monitor_mode": "max"}, {"AUC": n / 9}) for n in (5, 7, 6)]
    trials += [replace(trials[0], pruned=True), replace(trials[0], error="ValueError: a")]
    monkeypatch.setattr(
        model_study,
        "run_study",
        lambda tuner, gpus, script, *_, **__: (started.append((tuner, script)), StudyResult(trials, {}))[1],
    )
    return started


def test_trials_are_of_this_library_where_another_one_has_a_script(tmp_path, monkeypatch, tuners):
    """FuxiCTR's models each have a run_expid.py beside them."""
    monkeypatch.chdir(tmp_path)
    Path("run_expid.py").write_text("raise SystemExit('of another library')")
    study = ModelStudy(Request("X", tmp_path, jobs=1, quiet=True), PLAN)
    study.write_tuner({})
    study.run(3, 0.0)
    ((tuner, script),) = tuners
    assert script is None
    assert (tuner.trials, tuner.first) == (3, PLAN.first)
    assert [trial.expid for trial in study.finished] == ["X7", "X6", "X5"]
    assert study.error == "ValueError: a"


def test_a_study_that_has_begun_keeps_its_space(tmp_path, tuners):
    """That of another version; the dataset is that of now, whose change the study refuses."""
    request = Request("X", tmp_path)
    before = replace(PLAN, settings={**PLAN.settings, "epochs": 8}, space={"net_dropout": [0.0, 0.2]})
    ModelStudy(request, before).write_tuner({"label_col": {"name": "a"}})
    study = ModelStudy(request, PLAN)
    study.folder.mkdir()
    study.write_tuner({"label_col": {"name": "b"}})
    tuner = read_tuner(study.tuner_file)
    assert (tuner.space, tuner.model["epochs"]) == ({"net_dropout": [0.0, 0.2]}, 8)
    assert tuner.dataset["label_col"] == {"name": "b"}
    study.run(1, 0.0)
    assert tuners[0][0].first is None  # no point of that space
    study.folder.rmdir()
    study.write_tuner({})
    assert read_tuner(study.tuner_file).model["epochs"] == 20


def test_a_trial_that_fails_is_not_repeated_at_a_later_stage_of_a_start(tmp_path, monkeypatch):
    monkeypatch.setattr(model_study, "open_trials", lambda *given: SimpleNamespace(failures=given[3] or {0: None}))
    given = []
    run = lambda *_, failures, **__: (given.append(failures), StudyResult([], {}))[1]  # noqa: E731
    monkeypatch.setattr(model_study, "run_study", run)
    study = ModelStudy(Request("X", tmp_path, jobs=1), PLAN)
    study.write_tuner({})
    first, second = study.trials(1), study.trials(3)
    study.run(5, 0.0)
    assert first.failures is second.failures is given[0]
