"""Optimizers by name in their fastest form, schedules, averages of weights, clipping, and regularization."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fuxictr_mm.config import Regularizer
from fuxictr_mm.config.model import DECOUPLED_DECAY, optimizer_name, parse_regularizer
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.fuxictr_imports import FeatureEmbeddingDict
from fuxictr_mm.tables import (
    Optimizers,
    Penalize,
    RowAverage,
    ShardedOptimizer,
    TouchedOptimizer,
    sharded_parameters,
    sharded_tables,
    touched_parameters,
    touched_rows,
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
    decays: list[float | None] = [weight_decay, table_weight_decay]
    touched_decay = table_weight_decay
    if touched_decay is None:
        touched_decay = 1e-2 if chosen is torch.optim.AdamW else 0.0  # as in torch
    with_decay = any(decay is not None for decay in decays)
    if with_decay:
        default = inspect.signature(chosen).parameters["weight_decay"].default
        decays = [default if decay is None else decay for decay in decays]
        chosen = getattr(torch.optim, DECOUPLED_DECAY[chosen.__name__])
    if with_decay or table_learning_rate is not None:
        inside = {id(p) for p in tables} - apart
        groups: list[dict[str, Any]] = [{"params": [p for p in trainable if id(p) not in inside]}]
        groups += [{"params": [p for p in trainable if id(p) in inside], "lr": table_learning_rate or learning_rate}]
        for group, decay in zip(groups, decays, strict=True):
            group |= {} if decay is None else {"weight_decay": decay}
        trainable = [group for group in groups if group["params"]]
    # Fused kernels of torch.optim on CPU and CUDA: one pass over memory instead of many.
    fused: dict[str, Any] = {"fused": True} if chosen.__name__ in ("Adam", "AdamW", "SGD") else {}
    try:
        dense = _uncompiled(chosen)(trainable, lr=learning_rate, **fused)
    except ValueError as error:
        raise ConfigError(
            f"optimizer: {chosen.__name__} does not support this model ({error}); use another such as adam"
        ) from error
    if not touched:
        return dense
    rule = touched_rule(name, table_optimizer)
    rate = table_learning_rate or learning_rate
    sparse = _uncompiled(TouchedOptimizer)(touched, rate, rule=rule, weight_decay=touched_decay, penalty=penalty)
    return Optimizers(dense=dense, touched=sparse)


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


def embedding_tables(model: nn.Module, more: nn.Module | None = None) -> list[nn.Parameter]:
    """Return the embedding tables of features, those in ``more`` included; linear projections are none."""
    inside = [m for m in model.modules() if isinstance(m, FeatureEmbeddingDict) or m is more]
    tables = [m for module in inside for m in module.modules() if isinstance(m, nn.Embedding)]
    weights: dict[int, Any] = {id(table.weight): table.weight for table in tables}
    return list(weights.values())


@torch.no_grad()
def set_initial_std(model: nn.Module, std: float, last: int = 0, zeros: int = 0) -> None:
    """Give the embedding tables of features another standard deviation than FuxiCTR's 1e-4, or their last numbers.

    The first ``zeros`` of these numbers become 0: biases that begin at random rank rows by noise in the first steps.
    """
    tables = [*embedding_tables(model, nn.ModuleDict()), *(table.weight for table in sharded_tables(model))]
    for table in tables:
        part = table[:, -last:] if last else table
        part.mul_(std / 1e-4)
        part[:, :zeros] = 0


class Schedule:
    r"""Learning rate by the number of batches done: a linear warmup, then linear or cosine decay to zero.

    .. math:: \eta_s = \eta \min(1, s / w) f(x), \quad x = \frac{s - 1 - w}{S - w}, \quad
        f_{linear} = 1 - x, \quad f_{cosine} = \frac{1 + \cos \pi x}{2}

    at batch s of S, with w batches of warmup. It has no state but the base learning rate, which the optimizer's state
    holds, so that a resumed run takes the same steps.

    ``plateau``, ``constant`` and None leave the learning rates of the optimizer as they are after the warmup.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | Optimizers, kind: str | None, warmup_steps: int) -> None:
        self.optimizer = optimizer
        self.kind = kind
        self.warmup_steps = warmup_steps
        self.is_constant = kind not in ("linear", "cosine") and warmup_steps == 0
        if not self.is_constant:
            for group in optimizer.param_groups:
                group["base_lr"] = group["lr"]

    def factor(self, step: int, total: int) -> float:
        """Return what the base learning rate is multiplied by at batch ``step``, from 1, of ``total``."""
        warmup = self.warmup_steps
        rise = min(1.0, step / warmup) if warmup else 1.0
        done = min(max((step - 1 - warmup) / max(total - warmup, 1), 0.0), 1.0)
        return rise * {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}.get(str(self.kind), 1.0)

    def set_rates(self, step: int, total: int) -> None:
        """Set the learning rates of batch ``step``, from 1, of ``total``."""
        if not self.is_constant:
            factor = self.factor(step, total)
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor

    def decay(self, factor: float, least: float) -> float:
        """Multiply the learning rates by ``factor``, down to ``least``, and return the last one, as FuxiCTR does.

        A learning rate below ``least`` is not changed; FuxiCTR would increase it.
        """
        for group in self.optimizer.param_groups:
            for key in {"lr", "base_lr"} & group.keys():
                group[key] = max(group[key] * factor, min(least, group[key]))
        return float(self.optimizer.param_groups[-1]["lr"])


#: A decay that keeps nothing; its logarithm is finite.
NOTHING = 1e-30


class WeightAverage:
    r"""Exponential moving average of weights and of running statistics, or their plain average from an update on.

    Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992,
    https://doi.org/10.1137/0330046; the decay is smaller at the beginning, so that the initial weights are forgotten.
    The plain average is that of Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
    UAI 2018, https://arxiv.org/abs/1803.05407, over every update from s on; until then it is the weights.

    .. math:: a_u = d_u a_{u-1} + (1 - d_u) w_u, \qquad d_u = \min\Big(d, \frac{1 + u}{10 + u}\Big)
        \quad \text{or} \quad d_u = \max\Big(0, \frac{u - s}{u - s + 1}\Big)

    with the ``decay`` d of an exponential average, or the ``start`` s of a plain one. Floating-point parameters and
    buffers, as in the state dict of the model, are averaged; of tables with sparse gradients, an update costs as much
    as its rows (``RowAverage``).
    """

    def __init__(self, model: nn.Module, decay: float | None = None, start: int = 1) -> None:
        self.model = model
        self.decay, self.start = decay, start
        self.begin()

    def begin(self) -> None:
        """Start from the current weights."""
        self.updates = 0
        # Views of the weights, which optimizer and load_state_dict change in place.
        self._weights = {k: v for k, v in self.model.state_dict().items() if v.is_floating_point()}
        self._touched = {p.data_ptr(): p for p in touched_parameters(self.model)}
        self._rows = {k: RowAverage(v) for k, v in self._weights.items() if v.data_ptr() in self._touched}
        self._average = {k: v.clone() for k, v in self._weights.items() if k not in self._rows}
        self._reached: dict[str, Tensor] = {}

    @property
    def of_dense(self) -> dict[str, Tensor]:
        """The averages that change in place, by name: of all but tables with sparse gradients."""
        return self._average

    def before_update(self) -> None:
        """Record the rows of sparse gradients before the optimizer step."""
        self._reached = {}
        for name, rows in self._rows.items():
            table = self._touched[rows.weight.data_ptr()]
            if table.grad is not None:
                self._reached[name] = touched_rows(table)[0]
                rows.before(self._reached[name])

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights."""
        self.updates += 1
        if self.decay is not None:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        else:
            more = self.updates - self.start
            decay = more / (more + 1) if more > 0 else NOTHING
        dense = [self._weights[name] for name in self._average]
        torch._foreach_lerp_(list(self._average.values()), dense, 1 - decay)
        for name, rows in self._rows.items():
            rows.after(self._reached.get(name, torch.zeros(0, dtype=torch.int64, device=rows.weight.device)), decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights by the average within a context."""
        weights = {k: v.clone() for k, v in self._weights.items()}
        self._copy(self._average | {name: rows.complete() for name, rows in self._rows.items()}, self._weights)
        try:
            yield
        finally:
            self._copy(weights, self._weights)

    def state(self) -> dict[str, Any]:
        """Return what ``load`` restores."""
        rows = {name: rows.state() for name, rows in self._rows.items()}
        return {"updates": self.updates, "average": self._average, "rows": rows}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state; the model has its weights already."""
        self.begin()
        self.updates = state["updates"]
        self._copy(state["average"], self._average)
        for name, rows in self._rows.items():
            rows.load(state["rows"][name])

    @staticmethod
    @torch.no_grad()
    def _copy(values: dict[str, Tensor], into: dict[str, Tensor]) -> None:
        for name, tensor in into.items():
            tensor.copy_(values[name])


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


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """Clip the total L2 norm of all gradients to ``max_norm``, as ``nn.utils.clip_grad_norm_`` does.

    A sparse gradient counts with the rows that it reaches; it is zero in the others. On the CPU, gradients below the
    norm are not written again: for large tables that is a tenth of a step.
    """
    gradients = [
        touched_rows(p)[1] if p.grad.layout is torch.sparse_coo else p.grad for p in parameters if p.grad is not None
    ]
    if not gradients:
        return
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    coefficient = max_norm / (norm + 1e-6)
    if norm.device.type != "cpu":
        torch._foreach_mul_(gradients, coefficient.clamp(max=1.0))  # without waiting for the device
    elif not coefficient >= 1:  # also for NaN
        torch._foreach_mul_(gradients, coefficient)


#: Parts of parameters by id: dim, start and length, as ``Tensor.narrow`` takes them.
Parts = dict[int, tuple[int, int, int]]


class Penalty:
    """Sum over parameters of ``weight / p * ||w||_p^p``, as in FuxiCTR.

    Parameters of the feature embedding take ``embedding_regularizer``, all others ``net_regularizer``. The gradient,
    ``weight * sign(w)`` for p = 1 and ``weight * w`` for p = 2, is added after the backward pass, so that no norm of a
    whole table enters the graph. The optimizer of tables with sparse gradients asks for that of the rows it updates.

    ``tables`` holds embeddings that FuxiCTR's feature embedding does not. Of every field's embedding, the last
    ``apart`` numbers take L2 of the weight ``weight_apart`` instead.
    """

    def __init__(
        self,
        model: nn.Module,
        embedding_regularizer: Regularizer,
        net_regularizer: Regularizer,
        tables: nn.Module | None = None,
        apart: int = 0,
        weight_apart: float = 0.0,
    ) -> None:
        embeddings = [m for m in model.modules() if isinstance(m, FeatureEmbeddingDict) or m is tables]
        inside = {id(p) for module in embeddings for p in module.parameters()}
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._touched = {id(p) for p in touched_parameters(model)}
        first, last = _embedding_parts(embeddings, apart) if apart else ({}, {})
        self._groups: list[tuple[list[nn.Parameter], list[tuple[int, float]], Parts]] = [
            (
                [p for p in trainable if id(p) in inside],
                parse_regularizer(embedding_regularizer, "embedding_regularizer"),
                first,
            ),
            ([p for p in trainable if id(p) not in inside], parse_regularizer(net_regularizer, "net_regularizer"), {}),
            ([p for p in trainable if id(p) in last], [(2, weight_apart)] if weight_apart else [], last),
        ]

    def _terms(self) -> Iterator[tuple[list[nn.Parameter], int, float, Parts]]:
        for parameters, pairs, parts in self._groups:
            for norm, weight in pairs:
                if parameters:
                    yield parameters, norm, weight, parts

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Add the gradient of the penalty to every parameter's ``grad``."""
        for parameters, norm, weight, parts in self._terms():
            parameters = [p for p in parameters if id(p) not in self._touched]
            if not parameters:
                continue
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [_part(p, p.grad, parts) for p in parameters if p.grad is not None]
            weights = [_part(p, p.data, parts) for p in parameters]
            torch._foreach_add_(gradients, torch._foreach_sign(weights) if norm == 1 else weights, alpha=weight)

    @property
    def of_rows(self) -> Penalize | None:
        """Return the regularizer of tables with sparse gradients, None if they have none."""
        regularized = {id(p) for parameters, *_ in self._terms() for p in parameters}
        return self._of_rows if regularized & self._touched else None

    def _of_rows(self, table: nn.Parameter, weights: Tensor, updates: Tensor, rate: float) -> Tensor:
        """Return the gradient ``(U, D)`` of rows that is due for several updates at a learning rate.

        It moves a weight by gradient descent as that many updates would, and by L1 to zero at most, or as one update.
        """
        gradient = torch.zeros_like(weights)
        # L2 first: L1 then takes what is left of a weight.
        for parameters, norm, weight, parts in sorted(self._terms(), key=lambda term: -term[1]):
            if not any(p is table for p in parameters):
                continue
            kept, due = (_part(table, values, parts) for values in (weights, gradient))
            if norm == 2:
                due += weight * _sum_of_decays(updates, rate * weight) * kept
            else:
                left = kept.abs() / max(rate, 1e-30) - due.abs()  # it may be zero at the end of a schedule
                due += weight * torch.minimum(updates, (left / weight).clamp_(min=1)) * kept.sign()
        return gradient

    def value(self) -> Tensor:
        """Return the penalty of all weights, as a scalar that can be differentiated."""
        total = torch.zeros(())
        for parameters, norm, weight, parts in self._terms():
            for parameter in parameters:
                part = _part(parameter, parameter, parts)
                total = total.to(parameter.device) + weight / norm * part.abs().pow(norm).sum()
        return total


def _part(parameter: nn.Parameter, values: Tensor, parts: Parts) -> Tensor:
    """Return the part of a parameter's values that is regularized."""
    return values.narrow(*parts[id(parameter)]) if id(parameter) in parts else values


def _sum_of_decays(updates: Tensor, decay: float) -> Tensor:
    r"""Return :math:`\sum_{k<m} (1 - decay)^k` of m ``updates``: by how much of its first step L2 moves a weight."""
    if decay < 1e-12:
        return updates
    if decay >= 1:  # the first update has taken the weight to zero, or beyond
        return torch.ones_like(updates)
    return torch.expm1(updates.double() * math.log1p(-decay)).div_(-decay).to(updates.dtype)


def _embedding_parts(embeddings: Iterable[nn.Module], apart: int) -> tuple[Parts, Parts]:
    """Return the parts of all but the last numbers of embeddings, and of these."""
    first: Parts = {}
    last: Parts = {}
    for module in embeddings:
        if isinstance(module, FeatureEmbeddingDict):
            for layer in [*module.embedding_layers.values(), *module.feature_encoders.values()]:
                if isinstance(layer, nn.Embedding | nn.Linear):
                    dim = 1 if isinstance(layer, nn.Embedding) else 0
                    length = layer.weight.shape[dim] - apart
                    first[id(layer.weight)], last[id(layer.weight)] = (dim, 0, length), (dim, length, apart)
    return first, last
