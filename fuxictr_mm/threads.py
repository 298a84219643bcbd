"""Threads of torch's operations on the CPU: their wait policy and their number.

Imports little: the wait policy must be set before torch is imported.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from fuxictr_mm.runtime import is_one_of_several

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

#: Environment variables that set the wait policy; the last two are of GNU's and LLVM's OpenMP.
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

#: Environment variables that set the number of threads; torch reads them itself.
COUNT_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

#: Environment variable with the number of cores of a process; the tuner sets it for its trials.
CORES_VARIABLE = "FUXICTR_MM_CORES"

#: Operations of a step for which two threads are barely slower than one: each is woken up for each parallel operation.
_WORK = 6e8

#: Whether torch was imported before the wait policy was set.
_spinning = False


def set_wait_policy() -> None:
    """Let waiting threads sleep (``OMP_WAIT_POLICY=PASSIVE``), unless the user has set a wait policy.

    By default they spin, and block a core that the thread they wait for needs if another process is busy. OpenMP
    reads the variable when torch is imported, so this is called when the package is. Child processes inherit it.
    """
    global _spinning
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        _spinning = "torch" in sys.modules


def use_threads(model: nn.Module, setting: int | Literal["auto"], batch_size: int, gpu: int = -1) -> int:
    """Set the number of torch's threads for a model by ``threads`` of its experiment, and return it.

    ``auto`` depends on the model, its batch size and the number of cores, never on their load: the number of threads
    decides the order of sums, and with it the last digits of a result. With a GPU, it does not change the number.
    ``OMP_NUM_THREADS`` has precedence.
    """
    import torch

    cores = _cores()
    if any(name in os.environ for name in COUNT_VARIABLES):
        # torchrun sets OMP_NUM_THREADS=1 for its processes, so it is not the user's choice.
        by_torchrun = is_one_of_several() and os.environ.get("OMP_NUM_THREADS") == "1"
        threads = setting if by_torchrun and setting != "auto" else torch.get_num_threads()
    elif setting == "auto":
        threads = cores if gpu >= 0 else choose_threads(step_work(model, batch_size), cores)
    else:
        threads = setting
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
        logger.info(f"Threads: {threads} of {cores} cores")
    if threads > 1:
        _warn_of_spinning()
    return threads


@contextmanager
def restored_threads() -> Iterator[None]:
    """Restore torch's number of threads at the end."""
    import torch

    _cores()  # before it is changed
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def step_work(model: nn.Module, batch_size: int) -> float:
    """Estimate the work of a training step in operations.

    A weight matrix takes part in three products, of two operations each, with every example; updating a parameter, rows
    of embedding tables with ``table: dense`` included, takes as long as about 100 operations.
    """
    from torch import nn

    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    touched = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and m.sparse}
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in touched]
    weights = sum(p.numel() for p in trainable if p.dim() > 1 and id(p) not in tables)
    return 6.0 * batch_size * weights + 100.0 * sum(p.numel() for p in trainable)


def choose_threads(work: float, cores: int) -> int:
    """Return the number of threads for a step of this many operations.

    The time of a step is ``work / n`` and a cost of waking up threads that grows with their number ``n``; the sum is
    least at an ``n`` proportional to the square root of the work.
    """
    return max(1, min(cores, math.isqrt(int(work / _WORK))))


@functools.cache
def _cores() -> int:
    """Return the largest number of threads: that of torch, or fewer for a trial of the tuner."""
    import torch

    cores = torch.get_num_threads()
    return max(1, min(cores, int(os.environ.get(CORES_VARIABLE, cores))))


@functools.cache
def _warn_of_spinning() -> None:
    if _spinning:
        logger.warning(
            "torch was imported before fuxictr_mm: its threads busy-wait, which is several times slower if "
            "another process uses the cores; import fuxictr_mm first, or set OMP_WAIT_POLICY=PASSIVE or threads: 1"
        )
