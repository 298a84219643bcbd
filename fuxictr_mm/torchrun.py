"""What ``torchrun`` tells each of its processes, by environment variables; alone, a process is the main one.

Light to import: used before torch is.
"""

from __future__ import annotations

import os


def is_one_of_several() -> bool:
    """Whether ``torchrun`` started other processes beside this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_number() -> int:
    """Return the number of this process among all, from 0."""
    return int(os.environ["RANK"]) if is_one_of_several() else 0


def is_main() -> bool:
    """Whether this is the process that writes files, logs and draws progress bars."""
    return process_number() == 0


def local_gpu(gpu: int) -> int:
    """Return the GPU of this process: ``gpu`` if it is alone or on the CPU, else one for each process of a machine."""
    return int(os.environ["LOCAL_RANK"]) if gpu >= 0 and is_one_of_several() else gpu
