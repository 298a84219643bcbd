"""The device that a ``--gpu`` number means."""

from __future__ import annotations

import torch

from fuxictr_mm.errors import ConfigError


def device_of(gpu: int) -> torch.device:
    """Return the GPU of this index, or the CPU for -1.

    Raises
    ------
    ConfigError
        There is no such GPU; FuxiCTR would take the CPU without a word.
    """
    if not -1 <= gpu < torch.cuda.device_count():
        raise ConfigError(
            f"--gpu {gpu}: there are {torch.cuda.device_count()} CUDA devices here; --gpu -1 uses the CPU"
        )
    return torch.device("cpu" if gpu < 0 else f"cuda:{gpu}")
