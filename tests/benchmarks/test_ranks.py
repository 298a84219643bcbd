"""The benchmark of processes trains alone and together in turn."""

import json
import os
import subprocess
import sys

import pytest

from tests.paths import ROOT


@pytest.mark.slow
def test_figures(tmp_path):
    path = tmp_path / "figures.json"
    words = ["--rows", "2000", "--users", "300", "--items", "500", "--batch_size", "128"]
    words += ["--steps", "1", "--pairs", "2", "--table", "touched", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.ranks", *words, str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    assert figures["ratio"]["median"] > 0
    assert figures["samples_per_second"].keys() == {"alone", "together"}
    assert "2 processes: " in done.stdout
