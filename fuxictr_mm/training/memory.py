"""Warning about parameters that are too large for the free memory, logged while the model is built."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from fuxictr_mm.data.memory import free_memory

logger = logging.getLogger(__name__)


@contextmanager
def warn_of_large_parameters(name: str, device: torch.device, plan: str) -> Iterator[None]:
    """Log a warning once the parameters made in a block, with their gradients, exceed the free memory of a device.

    It comes before most of them are initialised, and so before the operating system kills the process: until then they
    take no memory. ``plan`` is the command line that shows the memory of all parts.
    """
    free = free_memory(device)
    seen = WeakIdKeyDictionary()
    needed, is_logged = 0, False

    def add(module: nn.Module, key: str, parameter: nn.Parameter | None) -> None:
        nonlocal needed, is_logged
        if parameter is None or parameter.is_meta or parameter in seen:
            return
        seen[parameter] = True
        # The gradient of an embedding table may be sparse.
        copies = 1 + (parameter.requires_grad and not isinstance(module, nn.Embedding))
        needed += copies * parameter.nbytes
        if needed > free and not is_logged:
            is_logged = True
            logger.warning(
                f"{name}: parameters and gradients take more than the {free / 1e9:.1f} GB of free memory, {key} of "
                f"{type(module).__name__} alone {parameter.nbytes / 1e9:.1f} GB, and the state of the optimizer is not "
                f"counted; {plan} shows all parts"
            )

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()
