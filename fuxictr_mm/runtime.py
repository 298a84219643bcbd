"""The process and its machine: device, torchrun's ranks, signals, precision, the allocator.

Light to import: used before torch is.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from fuxictr_mm.errors import ConfigError, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)


def device_of(gpu: int) -> torch.device:
    """Return the GPU of this index, or the CPU for -1.

    Raises
    ------
    ConfigError
        The GPU does not exist; FuxiCTR would silently use the CPU.
    """
    import torch

    if not -1 <= gpu < torch.cuda.device_count():
        raise ConfigError(
            f"--gpu {gpu}: there are {torch.cuda.device_count()} CUDA devices here; --gpu -1 uses the CPU"
        )
    return torch.device("cpu" if gpu < 0 else f"cuda:{gpu}")


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list instead of letting them raise.

    An exception during a write, an update of the weights or inside a lock would leave them inconsistent.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def is_one_of_several() -> bool:
    """Whether ``torchrun`` started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_number() -> int:
    """Return the number of this process among all, from 0."""
    return int(os.environ["RANK"]) if is_one_of_several() else 0


def is_main() -> bool:
    """Whether this is the process that writes files, logs and draws progress bars."""
    return process_number() == 0


def local_gpu(gpu: int) -> int:
    """Return the GPU of this process: ``gpu`` for a single process or the CPU, else one per process of a machine."""
    return int(os.environ["LOCAL_RANK"]) if gpu >= 0 and is_one_of_several() else gpu


# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def set_precision(precision: str, device: torch.device) -> None:
    """Set the precision of float32 matrix products of this process.

    ``tf32`` lets CUDA round the factors to TF32, and the CPU take oneDNN's kernels: on AMD processors plain float32 at
    twice the rate of MKL's, on Intel's with AMX bfloat16 factors. ``bf16`` does the same for what autocast leaves in
    float32.
    """
    import torch

    if precision == "bf16" and device.type == "cpu" and not _has_fast_bfloat16():
        logger.warning(
            "precision: bf16: this processor has no fast bfloat16, so training may be 100 times slower; "
            "use precision: tf32 or fp32"
        )
    faster = "high" if device.type == "cuda" else "medium"
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else faster)


def _has_fast_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 in less than many times the time of float32."""
    import torch

    return not torch.backends.mkldnn.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


#: Environment variable with the number of matrix products whose code torch keeps, beside oneDNN's own cache.
CODE_CACHE = "LRU_CACHE_CAPACITY"


def bound_code_cache() -> None:
    """Let torch keep the code of 64 matrix products, unless the user has set another number.

    In bfloat16, oneDNN generates code for every shape. It keeps that of 1,024 shapes, and torch keeps as much again,
    0.3 MB each. The numbers of items differ from batch to batch, so most of it is never used again. oneDNN's own cache
    is left as it is: a model may have hundreds of shapes in a step, whose code would be generated in every step. The
    variable is read when torch is imported, so this is called when the package is.
    """
    os.environ.setdefault(CODE_CACHE, "64")


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step, instead of returning it and clearing every page again.

    Return whether the C library is a glibc that accepted the settings.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**28}
    return sum(mallopt(option, value) for option, value in settings.items()) == len(settings)


def return_freed_memory() -> None:
    """Return what reading files left free, which Arrow and glibc keep; a hundred megabytes or more."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


#: Held by the experiment that trains or predicts, because random numbers, precision and signals belong to the process.
_process = threading.Lock()


@contextmanager
def only_one(expid: str) -> Iterator[None]:
    """Raise an error for a second experiment at the same time, which would share the process's random numbers.

    The experiment trains in float32 and with gradients, whatever the process has set; afterwards all is restored,
    random numbers included.
    """
    if not _process.acquire(blocking=False):
        raise UserError(
            f"{expid}: another experiment is running in this process and shares its random numbers; wait "
            "until it ends, or use one process for each"
        )
    try:
        with _own_state():
            yield
    finally:
        _process.release()


@contextmanager
def _own_state() -> Iterator[None]:
    import random

    import numpy as np
    import torch

    python, numbers, dtype = random.getstate(), np.random.get_state(), torch.get_default_dtype()
    hash_seed, precision = os.environ.get("PYTHONHASHSEED"), torch.get_float32_matmul_precision()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus), torch.inference_mode(False), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_float32_matmul_precision(precision)
            random.setstate(python)
            np.random.set_state(numbers)
            os.environ.pop("PYTHONHASHSEED", None)
            if hash_seed is not None:
                os.environ["PYTHONHASHSEED"] = hash_seed


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function of batches of any size."""
    import torch
    import torch._inductor

    # An analysis of torch 2.11 that fails for jagged rows on a GPU.
    analysis = "triton.coalesce_tiling_analysis"
    options: dict[str, Any] = {analysis: False} if analysis in torch._inductor.list_options() else {}
    return torch.compile(function, dynamic=True, options=options)
