"""A run on two hosts goes on when one of them is lost, and when it comes back."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from fuxictr_mm.experiment import Experiment
from tests.paths import ROOT
from tests.projects import write_project
from tests.tensors import read_tensors

SLOW = """
import os
import time
import sys
sys.path.insert(0, {folder!r})
from model_of_the_package import DIN_MM


class Slow(DIN_MM):
    '''Takes a while for a step, so that hosts come and go meanwhile.'''

    def batch_loss(self, batch):
        time.sleep(float(os.environ.get("SECONDS_A_STEP", 0)))
        return super().batch_loss(batch)
"""

SETTINGS = "{epochs: 2, batch_size: 256, net_dropout: 0, optimizer: sgd, learning_rate: 0.05, checkpoint_steps: 2}"


def host(folder, number, endpoint):
    """Start torchrun as on a host of its own, with one process; the first one has the rendezvous."""
    settings = "last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1"]
    command += ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "run"]
    command += ["--rdzv-conf", f"is_host={int(number == 0)},{settings}", "--local-addr", "localhost"]
    command += [str(ROOT / "run_expid.py"), "--config", str(folder), "--expid", "X", "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SECONDS_A_STEP": "0.4"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else torch 2.13 waits for ever when a host comes back
    with (folder / f"host{number}.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stderr=log, start_new_session=True)


def lose(process):
    """End torchrun and the processes that it started, without a word, as a host is lost."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    for number in [process.pid, *map(int, children.split())]:
        os.kill(number, signal.SIGKILL)
    process.wait()


def wait_for(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "torchrun has ended"
        assert time.monotonic() < deadline, "takes too long"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_lost_host_and_its_return(tmp_path):
    (tmp_path / "model_zoo").mkdir()
    (tmp_path / "model_zoo" / "Slow.py").write_text(SLOW.format(folder=str(tmp_path)))
    (tmp_path / "model_of_the_package.py").write_text((ROOT / "model_zoo" / "DIN_MM.py").read_text())
    entry = "\nX:\n    <<: *DIN_MM_tiny\n    model: Slow\n    use_features: [likes_level, item_id, txt_emb_pca8]\n"
    entry += "".join(f"    {part}\n" for part in SETTINGS.strip("{}").split(", "))
    write_project(tmp_path, (ROOT / "model_config.yaml").read_text() + entry)
    options = {"model_zoo": tmp_path / "model_zoo", "model_root": str(tmp_path / "alone"), "record": False}
    alone = Experiment.load("X", tmp_path, batch_size=512, streams=24, verbose=0, **options).fit()
    expected = read_tensors(tmp_path / "alone" / "tiny_mm" / "X.model")

    with socket.create_server(("localhost", 0)) as free:
        endpoint = f"localhost:{free.getsockname()[1]}"
    checkpoints = tmp_path / "checkpoints" / "tiny_mm" / "X.snapshot"

    def is_beyond(step):
        return lambda: max((int(p.name[5:]) for p in checkpoints.glob("step-*")), default=0) >= step

    hosts = [host(tmp_path, 0, endpoint), host(tmp_path, 1, endpoint)]
    try:
        wait_for(is_beyond(6), hosts[0])
        lose(hosts[1])
        done = max(int(p.name[5:]) for p in checkpoints.glob("step-*"))
        wait_for(is_beyond(done + 4), hosts[0])  # with the host that is left
        hosts[1] = host(tmp_path, 1, endpoint)
        for process in hosts:
            assert process.wait(timeout=180) == 0, (tmp_path / "host0.txt").read_text()
    finally:
        for process in hosts:
            if process.poll() is None:
                lose(process)
    text = "".join(path.read_text() for path in tmp_path.glob("host*.txt"))
    assert text.count("Resumed at epoch") == 2
    assert text.count("2 processes with batches of 256") == 2
    assert "512 rows per step, as before" in text
    found = read_tensors(checkpoints.with_suffix(".model"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)
    metrics = json.loads(checkpoints.with_suffix(".json").read_text())["valid"]
    assert metrics == pytest.approx(dict(alone.valid), abs=1e-5)
