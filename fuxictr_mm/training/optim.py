"""Optimizers by name in their fastest form, gradient clipping, and regularization by added gradients."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from torch import Tensor, nn

from fuxictr_mm.config import Regularizer
from fuxictr_mm.errors import ConfigError, nearest

#: The base class, one that needs a closure, one for sparse gradients only.
_UNFIT = ("Optimizer", "LBFGS", "SparseAdam")
#: Methods of every optimizer that import torch's compiler when they are first called, besides ``step``.
_WRAPPED_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


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
    """Return an optimizer of ``torch.optim``, fused where torch has a fused form.

    Raises
    ------
    ConfigError
        There is no optimizer of this name, or it does not take the learning rate.
    """
    chosen: Any = optimizer_class(name)
    if not 0 < learning_rate < float("inf"):
        raise ConfigError(f"learning_rate is {learning_rate}, expected a number above 0 such as 1.e-3")
    trainable = [p for p in parameters if p.requires_grad]
    # Fused kernels of torch.optim on CPU and CUDA: one pass over memory instead of a dozen.
    fused: dict[str, Any] = {"fused": True} if chosen.__name__ in ("Adam", "AdamW", "SGD") else {}
    try:
        return _uncompiled(chosen)(trainable, lr=learning_rate, **fused)
    except ValueError as error:
        raise ConfigError(
            f"optimizer: {chosen.__name__} does not take this model ({error}); use another such as adam"
        ) from error


@functools.cache
def _uncompiled(kind: Any) -> Any:
    """Return an optimizer class whose methods are the same, but do not import torch's compiler, which takes a second.

    In torch they are wrapped to behave well inside compiled code, where an optimizer is never called here. What a later
    version of torch does not wrap is called as it is.
    """
    step = inspect.unwrap(kind.step)
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED_METHODS}

    def step_without_gradients(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return step(self, closure)

    return type(kind.__name__, (kind,), {"step": step_without_gradients, "__module__": kind.__module__, **methods})


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Clip the total L2 norm of all gradients to ``max_norm``, as ``nn.utils.clip_grad_norm_`` does.

    On the CPU, gradients below it are not written again: for large tables that is a tenth of a step.
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


def parse_regularizer(value: Regularizer, name: str) -> list[tuple[int, float]]:
    """Return ``(norm, weight)`` pairs of a regularizer written as FuxiCTR does.

    FuxiCTR takes an integer (``embedding_regularizer: 1``) for no regularizer; here it is L2 with that weight.

    Raises
    ------
    ConfigError
        Not a number, ``l1(x)``, ``l2(x)`` or ``l1_l2(x, y)``; a weight below zero.

    Examples
    --------
    >>> parse_regularizer("l1_l2(1e-4, 1e-5)", "net_regularizer")
    [(1, 0.0001), (2, 1e-05)]
    """
    if value is None:
        return []
    try:
        if isinstance(value, str):
            kind, _, rest = value.strip().partition("(")
            norms = {"l1": (1,), "l2": (2,), "l1_l2": (1, 2)}[kind.strip()]
            weights = [float(part) for part in rest.removesuffix(")").split(",")]
        else:
            norms, weights = (2,), [float(value)]
        pairs = list(zip(norms, weights, strict=True))
    except (KeyError, ValueError):
        raise ConfigError(f"{name} is {value!r}, expected a number, 'l1(x)', 'l2(x)' or 'l1_l2(x, y)'") from None
    if any(not 0 <= weight < float("inf") for _, weight in pairs):
        raise ConfigError(f"{name} is {value!r}, expected weights of 0 or more")
    return [(norm, weight) for norm, weight in pairs if weight]


class Penalty:
    """Sum over parameters of ``weight / p * ||w||_p^p``, as in FuxiCTR.

    Parameters of the feature embedding take ``embedding_regularizer``, all others ``net_regularizer``. The gradient,
    ``weight * sign(w)`` for p = 1 and ``weight * w`` for p = 2, is added after the backward pass, so that no norm of a
    whole table enters the graph.

    Parameters
    ----------
    model : nn.Module
        Its trainable parameters are regularized.
    embedding_regularizer, net_regularizer : float or str, optional
        See ``parse_regularizer``.
    tables : nn.Module, optional
        Holds embeddings that FuxiCTR's feature embedding does not.
    """

    def __init__(
        self,
        model: nn.Module,
        embedding_regularizer: Regularizer,
        net_regularizer: Regularizer,
        tables: nn.Module | None = None,
    ) -> None:
        embeddings = [m for m in model.modules() if isinstance(m, FeatureEmbeddingDict) or m is tables]
        inside = {id(p) for module in embeddings for p in module.parameters()}
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._groups = [
            (
                [p for p in trainable if id(p) in inside],
                parse_regularizer(embedding_regularizer, "embedding_regularizer"),
            ),
            ([p for p in trainable if id(p) not in inside], parse_regularizer(net_regularizer, "net_regularizer")),
        ]

    def _terms(self) -> Iterator[tuple[list[nn.Parameter], int, float]]:
        for parameters, pairs in self._groups:
            for norm, weight in pairs:
                if parameters:
                    yield parameters, norm, weight

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the gradient of the penalty to every parameter's ``grad``."""
        for parameters, norm, weight in self._terms():
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [p.grad for p in parameters if p.grad is not None]
            weights = [p.data for p in parameters]
            torch._foreach_add_(gradients, torch._foreach_sign(weights) if norm == 1 else weights, alpha=weight)

    def value(self) -> Tensor:
        """Return the penalty as a scalar that can be differentiated."""
        total = torch.zeros(())
        for parameters, norm, weight in self._terms():
            for parameter in parameters:
                total = total.to(parameter.device) + weight / norm * parameter.abs().pow(norm).sum()
        return total
