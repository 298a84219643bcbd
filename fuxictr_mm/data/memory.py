"""Choice of the splits that are kept in memory; the others are streamed from disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from fuxictr_mm.data.interaction_files import InteractionFiles

logger = logging.getLogger(__name__)

#: Fraction of the free memory that interactions may take; the rest is for model, optimizer, items and batches.
MEMORY_FRACTION = 0.5

#: Splits of this size on are announced before they are read.
LOGGED_BYTES = 100_000_000


def choose_in_memory(
    splits: Mapping[str, InteractionFiles], resident: bool | Literal["auto"], device: torch.device
) -> set[str]:
    """Return the names of the splits to keep in memory.

    Parameters
    ----------
    splits : mapping of str to InteractionFiles
        The splits in use.
    resident : bool or "auto"
        The setting of this name. True keeps every split in memory. ``"auto"`` keeps those that fit into half of the
        free memory; ``train`` is considered last. False does the same, but always streams ``train``.
    device : torch.device
        Where the splits would be kept.
    """
    if resident is True:
        return set(splits)
    free = free_memory(device)
    budget = MEMORY_FRACTION * free
    chosen = set()
    for name in sorted(splits, key=lambda name: name == "train"):
        if name == "train" and resident is False:
            continue
        size = estimate_bytes(splits[name])
        if size <= budget:
            if size >= LOGGED_BYTES:
                logger.info(f"{name}: about {size / 1e9:.2f} GB in memory, of {free / 1e9:.2f} GB free")
            chosen.add(name)
            budget -= size
        else:
            logger.info(
                f"{name}: about {size / 1e9:.2f} GB in memory, more than the {max(budget, 0) / 1e9:.2f} GB left of "
                f"{MEMORY_FRACTION:.0%} of {free / 1e9:.2f} GB of free memory: streamed"
            )
    return chosen


def estimate_bytes(files: InteractionFiles) -> int:
    """Return the estimated size in memory in bytes, extrapolated from the first chunk."""
    sample = next(files.chunks(), None)
    if sample is None:  # a rank without rows
        return 0
    return sample.num_bytes * len(files) // len(sample)


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes; for a GPU the minimum of its own and the host's.

    Processes that ``torchrun`` started on a host have equal parts of its memory. Where the operating system reports no
    free memory, all of it counts as free.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # Linux; the page cache counts as free there
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():  # of a container
        free = min(free, int(text))
    free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(free, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free
