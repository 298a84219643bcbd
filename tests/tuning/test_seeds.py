"""Seeds side by side: the same weights as one by one, a run each, and what is left after a failure."""

import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.cli import main
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.experiment import Experiment
from fuxictr_mm.files import read_json
from fuxictr_mm.runs import find_runs
from fuxictr_mm.tuning.seeds import Processes, train_seeds
from tests.errors import raises_naming
from tests.paths import ROOT

#: Stands for run_expid.py and fails with seed 2 while there is a file "broken".
SCRIPT = f"""
import runpy, sys
from pathlib import Path
with open("started.txt", "a") as stream:
    stream.write(sys.argv[sys.argv.index("--seed") + 1] + "\\n")
if "2" in sys.argv and Path("broken").exists():
    sys.exit("ValueError: broken")
sys.argv[0] = {str(ROOT / "run_expid.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def project(small_project):
    """A working directory with tiny_mm of few rows, and a script that may fail."""
    (small_project / "script.py").write_text(SCRIPT)
    return small_project


def test_seeds_side_by_side(project, capsys):
    main(["train", "--expid", "DIN_tiny", "--seeds", "1", "2", "--jobs", "2"])
    captured = capsys.readouterr()
    assert "fuxictr-mm predict --runs DIN_tiny" in captured.out
    numbers = re.findall(r"^seed (\d) of 2: DIN_tiny.seed[12] finished, AUC 0.\d+", captured.err, flags=re.M)
    assert numbers == ["1", "2"]
    runs = {run.seed: run for run in find_runs("checkpoints")}
    assert sorted(runs) == [1, 2]
    folder = project / "checkpoints" / "tiny_mm"
    assert {path.name for path in folder.iterdir() if path.suffix != ".lock"} == {
        "DIN_tiny",
        "DIN_tiny.model",
        "DIN_tiny.log",
        "DIN_tiny.json",
        "logs",
    }
    newest = read_json(folder / "DIN_tiny.json")
    assert any((folder / "DIN_tiny.model").samefile(run.weights) for run in runs.values())
    assert newest["valid"] in [run.valid for run in runs.values()]
    alone = Experiment.load("DIN_tiny", project, seed=2, model_root="alone", verbose=0).fit()
    np.testing.assert_array_equal(alone.predictions()[1], runs[2].predictions()[1])


@pytest.mark.slow
def test_after_a_failure_the_missing_seeds_are_trained(project, capsys):
    experiment = Experiment.load("DIN_tiny", project, verbose=0)
    (project / "broken").touch()
    processes = Processes(project, project / "script.py")
    with raises_naming(UserError, "1 of 2", "DIN_tiny.seed2", "ValueError: broken"):
        train_seeds(experiment, [1, 2], processes)
    assert [run.seed for run in find_runs("checkpoints")] == [1]
    (project / "broken").unlink()
    first = find_runs("checkpoints")[0]
    runs = train_seeds(experiment, [1, 2], replace(processes, resume=True))
    assert [run.seed for run in runs] == [1, 2]
    assert runs[0].run == first.run
    assert sorted((project / "started.txt").read_text().split()) == ["1", "2", "2"]
    capsys.readouterr()
    path = Path(experiment.config.dataset.item_files[0])
    pq.write_table(pq.read_table(path)[::-1], path)
    again = train_seeds(experiment, [1, 2], replace(processes, resume=True))
    assert str(path) in capsys.readouterr().err
    assert [run.seed for run in again] == [1, 2]
    assert not {run.run for run in again} & {run.run for run in runs}


@pytest.mark.parametrize(
    ("seeds", "options", "settings", "found"),
    [
        ([1, 2, 1], {}, {}, "1 is given twice"),
        ([1, 2], {"jobs": 0}, {}, "--jobs is 0"),
        ([1, 2], {}, {"record": False}, "record is False"),
    ],
)
def test_what_cannot_be_done_is_refused(seeds, options, settings, found, project):
    experiment = Experiment.load("DIN_tiny", project, **settings)
    with pytest.raises(ConfigError, match=found):
        train_seeds(experiment, seeds, Processes(project, project / "script.py", **options))
    assert not (project / "checkpoints").exists()


def test_seed_and_seeds_exclude_each_other(project, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_expid.py", "--expid", "DIN_tiny", "--seed", "1", "--seeds", "2"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "run_expid.py"), run_name="__main__")
    assert stopped.value.code == 2
    assert "--seeds" in capsys.readouterr().err


def test_the_files_of_a_seed_that_was_killed_at_its_end_are_deleted(project):
    experiment = Experiment.load("DIN_tiny", project, verbose=0, seed=3)
    run = experiment.fit()
    paths = experiment.of_seed(3).paths
    (paths.checkpoint / "step1").mkdir(parents=True)
    for path in (paths.weights, paths.log):
        path.touch()
    paths.runs.joinpath("20990101-000000-seed3").mkdir()  # one that is to be resumed
    processes = Processes(project, project / "script.py", resume=True)
    assert [run.run for run in train_seeds(experiment, [3], processes)] == [run.run]
    assert paths.checkpoint.exists()
    paths.runs.joinpath("20990101-000000-seed3").rmdir()
    train_seeds(experiment, [3], processes)
    assert [path.name for path in paths.folder.glob("*.seed3.*") if path.suffix != ".lock"] == []
    assert experiment.paths.weights.exists()
    assert not (project / "started.txt").exists()
