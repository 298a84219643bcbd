"""Which splits are held in memory, and which are streamed because they do not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from fuxictr_mm.data.interactions import InteractionFiles

logger = logging.getLogger(__name__)

#: Share of the free memory that interactions may take; the rest is for model, optimiser, items and batches.
SHARE = 0.5


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device, for a GPU those of the machine if they are fewer.

    What the operating system does not tell counts as free.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    known = Path("/proc/meminfo")
    if known.is_file():  # Linux; memory that holds copies of files counts as free there
        lines = dict(line.split(":", 1) for line in known.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():  # of a container
        free = min(free, int(text))
    return min(free, torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free


def estimate_bytes(files: InteractionFiles) -> int:
    """Return about how many bytes the rows take in memory: as many as the first ones, each."""
    sample = next(files.pieces())
    return sample.num_bytes * len(files) // len(sample)


def choose_resident(
    splits: Mapping[str, InteractionFiles], resident: bool | Literal["auto"], device: torch.device
) -> set[str]:
    """Return the splits to hold in memory.

    Parameters
    ----------
    splits : mapping of str to InteractionFiles
        The splits that are used.
    resident : bool or "auto"
        True holds all. False holds all but ``train``, and ``"auto"`` all, as far as they fit in half of the free
        memory; ``train`` is the first to give way.
    device : torch.device
        Where they would be held.
    """
    if resident is True:
        return set(splits)
    free = free_memory(device)
    room = SHARE * free
    held = set()
    for name in sorted(splits, key=lambda name: name == "train"):
        if name == "train" and resident is False:
            continue
        size = estimate_bytes(splits[name])
        if size <= room:
            held.add(name)
            room -= size
        else:
            logger.info(
                f"{name}: about {size / 1e9:.2f} GB in memory, more than the {max(room, 0) / 1e9:.2f} GB left of "
                f"{SHARE:.0%} of the {free / 1e9:.2f} GB that are free: streamed"
            )
    return held
