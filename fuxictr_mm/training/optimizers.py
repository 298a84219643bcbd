"""Optimizers by name, in their fastest form."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, cast

import torch
from torch import nn

from fuxictr_mm.config.model import DECOUPLED_DECAY, optimizer_name
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.tables import (
    Optimizers,
    Penalize,
    ShardedOptimizer,
    TouchedOptimizer,
    sharded_parameters,
    sharded_tables,
)

#: Methods of every optimizer that import torch's compiler when they are first called, besides ``step``.
_WRAPPED_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the class of ``torch.optim`` of this name, whatever its case.

    Raises
    ------
    ConfigError
        torch has no such optimizer.
    """
    found = getattr(torch.optim, optimizer_name(name), None)
    if found is None:
        raise ConfigError(f"optimizer: torch {torch.__version__} has no optimizer '{name}'; use another such as adam")
    return cast(type[torch.optim.Optimizer], found)


#: Optimizers with a form for touched rows, and its name.
_TOUCHED_RULES = {"Adam": "adam", "AdamW": "adam", "SGD": "sgd", "Adagrad": "adagrad"}


def touched_rule(name: str, table_optimizer: str | None = None) -> str | None:
    """Return how an optimizer of this name updates touched rows, None if it cannot; ``table_optimizer`` replaces it."""
    return table_optimizer or _TOUCHED_RULES.get(optimizer_class(name).__name__)


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    *,
    weight_decay: float | None = None,
    tables: Iterable[nn.Parameter] = (),
    table_learning_rate: float | None = None,
    table_weight_decay: float | None = None,
    touched: Iterable[nn.Parameter] = (),
    table_optimizer: str | None = None,
    penalty: Penalize | None = None,
) -> torch.optim.Optimizer | Optimizers:
    """Return an optimizer of ``torch.optim``, fused where torch has a fused form.

    Parameters
    ----------
    name : str
        Name of its class, whatever its case.
    parameters : iterable of Parameter
        Those to train; frozen ones are left out.
    learning_rate : float
        Learning rate.
    weight_decay : float, optional
        Decoupled weight decay: a step multiplies weights by one minus this times the learning rate.
    tables : iterable of Parameter
        Those of ``parameters`` that ``table_learning_rate`` and ``table_weight_decay`` are meant for.
    table_learning_rate, table_weight_decay : float, optional
        The same for ``tables``.
    touched : iterable of Parameter
        Those of ``tables`` with sparse gradients; they have an optimizer of their own.
    table_optimizer : str, optional
        Its rule, see ``TouchedOptimizer``; that of the optimizer by default.
    penalty : callable, optional
        Regularizer of their rows, see ``TouchedOptimizer``.

    Raises
    ------
    ConfigError
        There is no optimizer of this name, or it does not support this model.
    """
    chosen: Any = optimizer_class(name)
    touched = list(touched)
    apart = {id(p) for p in touched}
    trainable: list[Any] = [p for p in parameters if p.requires_grad and id(p) not in apart]
    touched_decay = table_weight_decay
    if touched_decay is None:
        touched_decay = 1e-2 if chosen is torch.optim.AdamW else 0.0  # as in torch
    table_rate = table_learning_rate or learning_rate
    with_decay = weight_decay is not None or table_weight_decay is not None
    decays: list[float | None] = [None, None]
    if with_decay:
        chosen, decays = _with_decay(chosen, [weight_decay, table_weight_decay])
    if with_decay or table_learning_rate is not None:
        trainable = _groups(trainable, {id(p) for p in tables} - apart, table_rate, decays)
    dense = _dense_optimizer(chosen, trainable, learning_rate)
    if not touched:
        return dense
    rule = touched_rule(name, table_optimizer)
    sparse = _uncompiled(TouchedOptimizer)(touched, table_rate, rule=rule, weight_decay=touched_decay, penalty=penalty)
    return Optimizers(dense=dense, touched=sparse)


def _with_decay(chosen: Any, decays: Sequence[float | None]) -> tuple[Any, list[float | None]]:
    """Return the class with decoupled weight decay in place of another, and its default for a decay that is not set."""
    default = inspect.signature(chosen).parameters["weight_decay"].default
    decays = [default if decay is None else decay for decay in decays]
    return getattr(torch.optim, DECOUPLED_DECAY[chosen.__name__]), decays


def _groups(
    trainable: Iterable[nn.Parameter], tables: Collection[int], table_rate: float, decays: Sequence[float | None]
) -> list[dict[str, Any]]:
    """Return the groups of parameters that have any: the others, then those whose ``id`` is among ``tables``.

    ``decays`` are the weight decays of the two; None leaves that of the optimizer.
    """
    others: dict[str, Any] = {"params": []}
    of_tables: dict[str, Any] = {"params": [], "lr": table_rate}
    for parameter in trainable:
        (of_tables if id(parameter) in tables else others)["params"].append(parameter)
    groups = [others, of_tables]
    for group, decay in zip(groups, decays, strict=True):
        group |= {} if decay is None else {"weight_decay": decay}
    return [group for group in groups if group["params"]]


def _dense_optimizer(chosen: Any, trainable: list[Any], learning_rate: float) -> torch.optim.Optimizer:
    # Fused kernels of torch.optim on CPU and CUDA: one pass over memory instead of many.
    fused: dict[str, Any] = {"fused": True} if chosen.__name__ in ("Adam", "AdamW", "SGD") else {}
    try:
        return _uncompiled(chosen)(trainable, lr=learning_rate, **fused)
    except ValueError as error:
        raise ConfigError(
            f"optimizer: {chosen.__name__} does not support this model ({error}); use another such as adam"
        ) from error


def add_sharded(
    optimizer: torch.optim.Optimizer | Optimizers, model: nn.Module, group: dict[str, Any]
) -> torch.optim.Optimizer | Optimizers:
    """Return an optimizer that updates the sharded tables of a model as well, with the settings ``group``."""
    tables, whole = sharded_tables(model), sharded_parameters(model)
    if not tables and not whole:
        return optimizer
    sharded: Any = ShardedOptimizer(tables) if tables else _uncompiled(TouchedOptimizer)(whole, **group)
    parts = optimizer.parts if isinstance(optimizer, Optimizers) else {"dense": optimizer}
    return Optimizers(**parts, sharded=sharded)


@functools.cache
def _uncompiled(kind: Any) -> Any:
    """Return an optimizer class with the same methods, which do not import torch's compiler (that takes a second).

    torch wraps them for use inside compiled code, where no optimizer is called here. Methods that a later version of
    torch does not wrap are called directly.
    """
    step = inspect.unwrap(kind.step)
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED_METHODS}

    def step_without_gradients(self: torch.optim.Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return step(self, closure)

    return type(kind.__name__, (kind,), {"step": step_without_gradients, "__module__": kind.__module__, **methods})
