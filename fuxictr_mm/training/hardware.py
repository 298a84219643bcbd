"""What the machine is told before a run: how exact products are, and what becomes of freed memory."""

from __future__ import annotations

import ctypes
import sys

import torch

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def set_precision(precision: str, device: torch.device) -> None:
    """Choose the arithmetic of float32 matrix products for this process.

    Parameters
    ----------
    precision : {"fp32", "tf32", "bf16"}
        ``tf32`` lets CUDA round the factors to TF32, and the CPU take oneDNN's kernels: on AMD processors plain float32
        at twice the rate of MKL's, on Intel's with AMX bfloat16 factors. ``bf16`` does the same for what autocast
        leaves in float32.
    device : torch.device
        Where the model lives.
    """
    faster = "high" if device.type == "cuda" else "medium"
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else faster)


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step, instead of giving it back and having every page cleared again.

    Returns
    -------
    bool
        Whether this is a glibc that took the settings.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**28}
    return sum(mallopt(option, value) for option, value in settings.items()) == len(settings)
