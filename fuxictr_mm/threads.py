"""Threads of torch's operations on the CPU: how they wait for each other, and how many there are.

Light to import: the wait policy has to be set before torch is.
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

#: Environment variables by which users choose how threads wait; the last two are of GNU's and LLVM's OpenMP.
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")

#: Environment variables by which users choose how many threads there are; torch reads them itself.
COUNT_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

#: Environment variable with the cores that a process may use; the tuner sets it for its trials.
CORES_VARIABLE = "FUXICTR_MM_CORES"

#: Operations of a step for which two threads are barely slower than one: each is woken up for each parallel operation.
_WORK = 6e8

#: Whether torch was loaded before its threads could be told how to wait.
_spinning = False


def set_wait_policy() -> None:
    """Let threads that wait for others sleep (``OMP_WAIT_POLICY=PASSIVE``), unless the user has chosen how they wait.

    By default they spin, and keep a core from the very thread that they wait for if another process is busy. OpenMP
    reads the variable when torch is imported, so this is called when the package is. Child processes inherit it.
    """
    global _spinning
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        _spinning = "torch" in sys.modules


def use_threads(model: nn.Module, setting: int | Literal["auto"], batch_size: int, gpu: int = -1) -> int:
    """Set the number of torch's threads for a model, as ``threads`` of its experiment says.

    ``auto`` depends on the model, its batch size and the number of cores, never on how busy they are: the number
    decides in which order sums are taken, and with it the last digits of a result. The user's ``OMP_NUM_THREADS`` comes
    first.

    Parameters
    ----------
    model : nn.Module
        The model.
    setting : int or "auto"
        ``threads`` of the experiment.
    batch_size : int
        Rows per batch.
    gpu : int
        Index of the GPU, -1 for the CPU; ``auto`` leaves the threads beside a GPU as they are.

    Returns
    -------
    int
        The number of threads in use.
    """
    import torch

    cores = _cores()
    if any(name in os.environ for name in COUNT_VARIABLES):
        # torchrun sets OMP_NUM_THREADS=1 for its processes, whose number is no choice of the user's.
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
    """Set torch's number of threads back at the end."""
    import torch

    _cores()  # before it is changed
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def step_work(model: nn.Module, batch_size: int) -> float:
    """Estimate the operations of a training step, and of what takes as long as operations would.

    A weight matrix takes part in three products, of two operations each, with every example; updating a parameter, rows
    of embedding tables included, takes as long as about 100 operations.
    """
    from torch import nn

    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = sum(p.numel() for p in trainable if p.dim() > 1 and id(p) not in tables)
    return 6.0 * batch_size * weights + 100.0 * sum(p.numel() for p in trainable)


def choose_threads(work: float, cores: int) -> int:
    """Return how many threads a step of so many operations is worth.

    The time of a step is ``work / n`` and a cost of waking up threads that grows with their number ``n``; the sum is
    least at an ``n`` proportional to the square root of the work.
    """
    return max(1, min(cores, math.isqrt(int(work / _WORK))))


@functools.cache
def _cores() -> int:
    """Return how many threads there may be: those that torch would take, or fewer for a trial of the tuner."""
    import torch

    cores = torch.get_num_threads()
    return max(1, min(cores, int(os.environ.get(CORES_VARIABLE, cores))))


@functools.cache
def _warn_of_spinning() -> None:
    if _spinning:
        logger.warning(
            "torch was imported before fuxictr_mm: its threads spin while they wait, which is several times slower if "
            "another process is busy; import fuxictr_mm first, or set OMP_WAIT_POLICY=PASSIVE or threads: 1"
        )
