"""Workers end with the process that started them, and by it alone."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from fuxictr_mm_serving.processes import start

CODE = """
import os, sys, time
from multiprocessing import get_context
from fuxictr_mm_serving.processes import end_with_parent

def work(pipe):
    end_with_parent()
    pipe.send(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    here, there = get_context("spawn").Pipe()
    get_context("spawn").Process(target=work, args=(there,)).start()
    print(here.recv(), flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_a_killed_parent_leaves_no_worker(tmp_path):
    (tmp_path / "parent.py").write_text(CODE)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        worker = Path("/proc", parent.stdout.readline().decode().strip())
        assert worker.exists()
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not worker.exists() or "State:\tZ" in (worker / "status").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the worker is still there")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be blocked")
def test_a_terminal_interrupts_no_process_while_it_imports_modules(capfd):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    process = start(get_context("spawn").Process(target=print, args=("done",), daemon=True))
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 0
    assert capfd.readouterr() == ("done\n", "")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
