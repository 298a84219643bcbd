"""Results belong to a model file and to data: where the model's code or a data file changed, it is trained again."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fuxictr_mm.errors import UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.files import read_json, write_json
from fuxictr_mm.registry import code_hash, load_model_class
from fuxictr_mm.training.resume import Progress, TrainingCheckpoint
from fuxictr_mm.tuning.trial import Trial
from tests.paths import ROOT


@pytest.fixture
def zoos(tmp_path):
    """Two folders with a file of the same model; the second one differs in its code."""
    for name, change in (("first", ""), ("second", "\nTEMPERATURE = 2.0\n")):
        (tmp_path / name).mkdir()
        text = (ROOT / "model_zoo" / "DIN.py").read_text() + change
        (tmp_path / name / "DIN.py").write_text(text)
    return tmp_path


def load(zoos, name, **settings):
    settings = {"model_root": str(zoos / "runs"), "verbose": 0, "epochs": 1, "dnn_hidden_units": [4], **settings}
    return Experiment.load("DIN_tiny", zoos, model_zoo=zoos / name, **settings)


@pytest.fixture
def config(zoos, small_project):
    """The folders in a working directory with data."""
    return zoos


def test_comments_do_not_count_and_code_does(zoos, monkeypatch):
    before = code_hash(load_model_class("DIN", zoos / "first"))
    assert before != code_hash(load_model_class("DIN", zoos / "second"))
    (zoos / "third").mkdir()
    (zoos / "third" / "DIN.py").write_text("# a comment\n\n" + (zoos / "first" / "DIN.py").read_text())
    assert before == code_hash(load_model_class("DIN", zoos / "third"))
    (zoos / "fourth").mkdir()
    (zoos / "fourth" / "scale.py").write_text("SCALE = 1.0\n")
    (zoos / "fourth" / "DIN.py").write_text((zoos / "first" / "DIN.py").read_text() + "\nimport json, scale\n")
    (zoos / "fifth").mkdir()
    (zoos / "fifth" / "scale.py").write_text("SCALE = 2.0\n")
    (zoos / "fifth" / "DIN.py").write_text((zoos / "fourth" / "DIN.py").read_text())
    monkeypatch.syspath_prepend(zoos / "fourth")
    hashes = [code_hash(load_model_class("DIN", zoos / name)) for name in ("fourth", "fifth")]
    assert len({before, *hashes}) == 3
    assert code_hash(type("Made", (), {"__module__": "nowhere"})) == ""


def test_a_result_of_another_model_file_is_not_taken(config):
    first, second = load(config, "first"), load(config, "second")
    run = first.fit()
    trials = [Trial("DIN_tiny", e) for e in (first, second)]
    assert [trial.result() is not None for trial in trials] == [True, False]
    assert [len(e.finished.all()) for e in (first, second)] == [1, 0]
    assert first.fit(resume=True).run == run.run
    assert second.fit(resume=True).run != run.run
    assert [e.finished.result() is None for e in (first, second)] == [True, False]
    # A result of an older version says nothing of the file, and is taken.
    found = read_json(first.paths.result)
    del found["model_code"]
    write_json(first.paths.result, found)
    assert first.finished.result() is not None


@pytest.mark.parametrize("name", ["train", "item_info", "test"])
def test_a_result_of_other_data_is_not_taken(config, name):
    first = load(config, "first", record=True)
    run = first.fit()
    trial = Trial("DIN_tiny", first)
    assert trial.result() is not None
    paths = {"item_info": first.config.dataset.item_files[0], "train": first.config.dataset.train_data}
    path = Path(paths.get(name) or str(first.config.dataset.test_data))
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 1) if name != "item_info" else table[::-1], path)
    assert trial.result() is None
    assert first.finished.result() is None
    assert first.finished.result(paths=False) is not None  # whose weights may score
    assert first.finished.all() == []
    assert str(path) in str(first.finished.outdated())
    assert first.fit(resume=True).run != run.run
    assert trial.result() is not None


def test_a_warning_names_the_run_of_the_data_as_it_is_now(config, caplog):
    """After a change that was undone the newest weights are of the changed data, and diagnose takes the older run."""
    first = load(config, "first")
    run, path = load(config, "first", seed=20242026).fit(), Path(str(first.config.dataset.train_data))
    before = path.read_bytes()
    pq.write_table(pq.read_table(path).slice(0, 150), path)
    newest = first.fit()
    caplog.clear()
    assert first.find_weights().samefile(newest.weights)
    assert caplog.text == ""
    path.write_bytes(before)
    assert first.find_weights().samefile(newest.weights)
    assert all(part in caplog.text for part in (newest.run, f"predict --runs {run.path}", path.name))


def test_a_training_checkpoint_of_another_model_file_is_refused(config):
    experiment = load(config, "first")
    model = experiment.build_model(experiment.load_dataset({"train": True, "valid": True}))
    path = config / "run.snapshot"
    TrainingCheckpoint(path, "hash", "code").save(model, Progress(None, None, step=3))
    with pytest.raises(UserError, match=str(path)):
        TrainingCheckpoint(path, "hash", "other").load(model)
    found = TrainingCheckpoint(path, "hash", "code").load(model)
    assert found is not None
    assert found.step == 3
