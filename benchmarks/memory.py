"""Bytes in use and their peak: of the process on a CPU, of torch's allocator on a GPU."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import torch

from fuxictr_mm.runtime import keep_freed_memory

__all__ = ["in_use", "keep_freed_memory", "peak", "reset_peak", "return_freed_memory"]

#: glibc's M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD and M_MMAP_MAX, with what a program that frees large blocks has
#: without asking: glibc raises the thresholds to these by itself.
_DEFAULTS = {-1: 64 * 2**20, -2: 128 * 2**10, -3: 32 * 2**20, -4: 65536}
STATUS = Path("/proc/self/status")
#: Writing 5 here sets the peak back to what is in use now.
CLEAR = Path("/proc/self/clear_refs")


def return_freed_memory() -> None:
    """Undo ``keep_freed_memory``, and give back what is free now."""
    library = ctypes.CDLL(None)
    for option, value in _DEFAULTS.items():
        library.mallopt(option, value)
    library.malloc_trim(0)


def in_use(device: str) -> int:
    """Return the bytes in use; 0 if the system does not report it."""
    return torch.cuda.memory_allocated() if device == "cuda" else _status("VmRSS")


def reset_peak(device: str) -> int:
    """Reset the peak, if the system can; return the one so far."""
    so_far = peak(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        CLEAR.write_text("5")
    return so_far


def peak(device: str) -> int:
    """Return the most bytes in use since ``reset_peak``, or since the start where that does nothing."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss where it can be helped: a new process starts with that of the one that started it.
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(key: str) -> int:
    if not STATUS.exists():
        return 0
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[key].split()[0]) * 1024
