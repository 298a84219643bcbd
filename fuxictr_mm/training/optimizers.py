"""Optimisers by name, in their fastest form."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fuxictr_mm.checking import nearest
from fuxictr_mm.errors import ConfigError

#: The base class, one that needs the loss as a function, one for sparse gradients only.
_UNFIT = ("Optimizer", "LBFGS", "SparseAdam")


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the class of ``torch.optim`` of this name, whatever its case.

    Raises
    ------
    ConfigError
        There is none.
    """
    classes = {
        key: value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and key not in _UNFIT
    }
    key = next((k for k in classes if k.lower() == name.lower()), None)
    if key is None:
        raise ConfigError(f"optimizer: there is no '{name}'{nearest(name, classes)} (there are: {', '.join(classes)})")
    return classes[key]


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Return an optimiser of ``torch.optim``, fused where torch has a fused form.

    Raises
    ------
    ConfigError
        There is no optimiser of this name, or a learning rate it cannot take.
    """
    chosen: Any = optimizer_class(name)
    if not 0 < learning_rate < float("inf"):
        raise ConfigError(f"learning_rate is {learning_rate}, expected a number above 0 such as 1.e-3")
    trainable = [p for p in parameters if p.requires_grad]
    # torch.optim has a fused kernel for these on CPU and CUDA: one pass over memory instead of a dozen.
    fused: dict[str, Any] = {"fused": True} if chosen.__name__ in ("Adam", "AdamW", "SGD") else {}
    try:
        return chosen(trainable, lr=learning_rate, **fused)
    except ValueError as error:
        raise ConfigError(
            f"optimizer: {chosen.__name__} does not take this model ({error}); use another such as adam"
        ) from error


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Scale all gradients down to a common L2 norm of at most ``max_norm``, as ``nn.utils.clip_grad_norm_`` does.

    On the CPU, gradients that are small enough are not written again: for large tables that is a tenth of a step.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    coefficient = max_norm / (norm + 1e-6)
    if norm.device.type != "cpu":
        torch._foreach_mul_(gradients, coefficient.clamp(max=1.0))  # without waiting for the device
    elif not coefficient >= 1:  # also where it is not a number
        torch._foreach_mul_(gradients, coefficient)
