"""Threads of torch: the wait policy, and the number that an experiment gets."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from fuxictr_mm import threads
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.experiment import Experiment
from tests.errors import raises_naming
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """Let torch and the user's environment be those of a machine with two cores, and reset what is set."""
    for name in (*threads.COUNT_VARIABLES, threads.CORES_VARIABLE, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    for function in (threads._cores, threads._warn_of_spinning):
        function.cache_clear()
    yield
    torch.set_num_threads(before)
    threads._cores.cache_clear()
    threads._warn_of_spinning.cache_clear()


def python(code, **variables):
    """Run code in a new process, with these of the variables of OpenMP; return what it wrote."""
    names = (*threads.WAIT_VARIABLES, *threads.COUNT_VARIABLES)
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment.update(variables, PYTHONPATH=str(ROOT))
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


TWICE = """
from fuxictr_mm.threads import use_threads
for number in {numbers}:
    assert use_threads(torch.nn.Linear(1, 1), number, 1) == torch.get_num_threads() == number
    print(number, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="how OpenMP shows its settings")
def test_threads_sleep_where_they_wait():
    code = "import sys, fuxictr_mm, torch" + TWICE.format(numbers=[2, 2])
    shown = python(code, OMP_DISPLAY_ENV="TRUE").stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.replace("='", " = '")
    assert "imported before" not in shown


def test_a_torch_that_was_imported_before_is_said_once_where_threads_wait():
    code = "import sys, torch, fuxictr_mm" + TWICE.format(numbers=[1, 1, 2, 2])
    lines = python(code).stderr.splitlines()
    assert [line for line in lines if line.isdigit()] == ["1", "1", "2", "2"]
    (warning,) = [place for place, line in enumerate(lines) if "torch was imported before fuxictr_mm" in line]
    assert 1 < warning < lines.index("2")


@pytest.mark.parametrize("variable", threads.WAIT_VARIABLES)
def test_how_threads_wait_is_the_users_choice(variable):
    code = f"import os, fuxictr_mm; print([os.environ.get(name) for name in {threads.WAIT_VARIABLES}])"
    expected = ["7" if name == variable else None for name in threads.WAIT_VARIABLES]
    assert python(code, **{variable: "7"}).stdout == f"{expected}\n"


def test_the_work_of_a_step():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3), nn.Linear(3, 1))
    model[2].weight.requires_grad = False
    trainable = 40 + 12 + 3 + 1
    assert threads.step_work(model, 5) == 2 * 3 * 5 * 12 + 100 * trainable


def test_threads_for_the_work():
    found = [threads.choose_threads(work, 4) for work in (0, 2e9, 3e9, 6e9, 1e10, 1e12)]
    assert found == [1, 1, 2, 3, 4, 4]


def wide(width):
    return nn.Linear(width, width, bias=False)


@pytest.mark.parametrize(
    ("setting", "width", "variables", "gpu", "expected"),
    [
        ("auto", 10, {}, -1, 1),
        ("auto", 1000, {}, -1, 2),
        ("auto", 1000, {"FUXICTR_MM_CORES": "1"}, -1, 1),
        ("auto", 10, {}, 0, 2),
        (1, 1000, {}, -1, 1),
        (3, 10, {"FUXICTR_MM_CORES": "1"}, -1, 3),
        # What the user set in the environment, torch has taken before.
        ("auto", 10, {"OMP_NUM_THREADS": "2"}, -1, 2),
        (1, 10, {"MKL_NUM_THREADS": "2"}, -1, 2),
        # torchrun sets OMP_NUM_THREADS=1 by itself.
        (3, 10, {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}, -1, 3),
        (3, 10, {"OMP_NUM_THREADS": "2", "WORLD_SIZE": "2"}, -1, 2),
        ("auto", 1000, {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}, -1, 2),
    ],
)
def test_the_number_of_threads(setting, width, variables, gpu, expected, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert threads.use_threads(wide(width), setting, 1000, gpu) == expected
    assert torch.get_num_threads() == expected


def test_auto_is_of_the_cores_not_of_the_model_before():
    with threads.restored_threads():
        for width, expected in ((10, 1), (1000, 2), (10, 1)):
            assert threads.use_threads(wide(width), "auto", 1000) == expected
    assert torch.get_num_threads() == 2


def test_an_experiment_gets_them_and_gives_them_back(tmp_path):
    experiment = Experiment.load("DIN_MM_tiny", ROOT, epochs=1, model_root=str(tmp_path), verbose=0)
    run = experiment.fit()
    assert torch.get_num_threads() == 2
    assert json.loads((run.path / "environment.json").read_text())["threads"] == 1
    experiment.predict()
    assert torch.get_num_threads() == 2


def test_the_setting_decides_no_result():
    def load(**settings):
        return Experiment.load("DIN_MM_tiny", ROOT, **settings).config

    assert load().threads == "auto"
    assert load().fingerprint() == load(threads=2).fingerprint()
    for value in (0, "all", 1.5):
        with raises_naming(ConfigError, "threads"):
            load(threads=value)
