"""fp32, or bf16 where the arithmetic of the model is."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from fuxictr_mm.embeddings.encoding.choices import PRECISIONS
from fuxictr_mm.errors import ConfigError


def check_precision(precision: str, batch_size: int) -> None:
    """Raise ConfigError for a precision that is not known or a batch of nothing."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}', expected one of {', '.join(PRECISIONS)}")
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}, expected 1 or more")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return a context in which matrix products are taken in bfloat16, for ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
