"""Scripts under torchrun, and an experiment of which a process dies."""

import os
import subprocess
import sys

from tests.paths import ROOT
from tests.tensors import read_tensors


def start(script, *arguments, processes=2, cwd=None):
    """Run a script under torchrun; return the finished process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


ON_RANKS = """
import torch
from fuxictr_mm.training import distributed
from {module} import {function}

with distributed.process_group(-1):
    torch.save({function}(*{arguments!r}), f"{folder}/rank{{distributed.rank()}}.pt")
"""


def call_on_ranks(function, *arguments, folder, processes, cwd=None):
    """Call a function of a test file in each of several processes; return what each has returned, and their stderr."""
    script = folder / "on_ranks.py"
    names = {"module": function.__module__, "function": function.__name__}
    script.write_text(ON_RANKS.format(arguments=arguments, folder=folder, **names))
    done = start(script, processes=processes, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [read_tensors(folder / f"rank{rank}.pt") for rank in range(processes)], done.stderr


DYING = """
import os
import signal
from pathlib import Path

from fuxictr_mm.errors import DataError
from fuxictr_mm.training import distributed
from model_of_the_package import DIN_MM


class Dying(DIN_MM):
    '''As the file `die` says, process 1 ends once: "kill 21" at step 21, "save 21" in the next checkpoint.'''

    def batch_loss(self, batch):
        path = Path("die")
        if distributed.rank() == 1 and path.exists():
            how, step = path.read_text().split()
            if self._total_steps == int(step):
                path.unlink()
                if how == "raise":
                    raise DataError("planted trouble")
                if how == "kill":
                    die()
                os.fsync = die  # its file is written then, and not yet complete
        return super().batch_loss(batch)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""
