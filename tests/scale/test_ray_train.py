"""A local Ray of two workers trains as torchrun does."""

import os
import subprocess
import sys

import pytest

from tests.paths import ROOT
from tests.projects import write_project
from tests.tensors import assert_equal_tensors, read_tensors
from tests.torchrun import start


@pytest.mark.slow
def test_two_workers_train_as_two_processes_of_torchrun(tmp_path):
    entry = "\nX:\n    <<: *DIN_MM_tiny\n    epochs: 1\n"
    write_project(tmp_path, (ROOT / "model_config.yaml").read_text() + entry)
    checkpoints = tmp_path / "checkpoints"
    done = start(ROOT / "run_expid.py", "--config", str(tmp_path), "--expid", "X", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checkpoints.rename(tmp_path / "torchrun")

    # Relative paths, such as that of model_root, are those of the working directory.
    code = "import ray; ray.init(num_cpus=2, include_dashboard=False); import fuxictr_mm.scale.ray_train as r; r.main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_worker_niceness"] = "0"  # on a busy machine, workers of low priority hardly run
    command = [sys.executable, "-c", code, "--expid", "X", "--workers", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    assert "valid: AUC: " in done.stdout
    ours, theirs = (read_tensors(folder / "tiny_mm" / "X.model") for folder in (checkpoints, tmp_path / "torchrun"))
    assert_equal_tensors(ours, theirs)


@pytest.mark.slow
def test_a_wrong_experiment_is_refused_before_ray_starts(tmp_path):
    command = [sys.executable, "-m", "fuxictr_mm.scale.ray_train", "--expid", "no_such", "--config", str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no_such" in done.stderr.splitlines()[-1]
