"""Optimizers of tables with sparse gradients: rows that no gradient reaches keep weights and state.

Shape letters: R rows of a table, D its dim, U touched rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fuxictr_mm.errors import UserError
from fuxictr_mm.tables.gradients import touched_rows

#: State ``(R, 1)``: the update of the table in which each row was reached last, from 1; 0 for never. It has the type of
#: the table, which ``Optimizer.load_state_dict`` gives to it. From 2**24 updates on, float32 rounds it: what a row has
#: missed is then right on average.
LAST = "last_update"

#: See ``TouchedOptimizer``.
Penalize = Callable[[nn.Parameter, Tensor, Tensor, float], Tensor]


class TouchedOptimizer(torch.optim.Optimizer):
    r"""Adam, Adagrad, row-wise Adagrad or gradient descent over the rows that a gradient reaches.

    ``adam`` is ``torch.optim.Adam`` with the rule of ``SparseAdam``: moments of other rows do not decay, and the bias
    is corrected by the number of updates of the table. ``eps`` is added after the correction, as in ``Adam``, so that a
    table of which every step reaches all rows is trained as a dense one. ``adagrad`` is ``torch.optim.Adagrad``.
    ``rowwise_adagrad`` has one number of state per row, the sum of the mean squares of its gradients, as in DLRM
    (Naumov et al., 2019, https://arxiv.org/abs/1906.00091):

    .. math:: s_r \leftarrow s_r + \frac{1}{D} \lVert g_r \rVert^2, \qquad
        w_r \leftarrow w_r - \eta \frac{g_r}{\sqrt{s_r} + \epsilon}

    Weight decay is decoupled, of touched rows: they are multiplied by one minus the learning rate times the decay, once
    for every update of the table since their last one, and regularized as many times. A rare row is so regularized as
    much as a frequent one, as in a dense table, but with its own updates only. All of these take the learning rate of
    the present update: those of the updates that a row has missed are not kept.

    Parameters
    ----------
    params : iterable of Parameter
        Tables ``(R, D)`` with sparse gradients.
    lr : float
        Learning rate.
    rule : {"adam", "adagrad", "rowwise_adagrad", "sgd"}
        How a row is updated.
    weight_decay : float
        Decoupled weight decay.
    betas : (float, float)
        Decay of Adam's moments.
    eps : float, optional
        By default 1e-8 for ``adam``, else 1e-10, as in torch.
    penalty : callable, optional
        From a table, its rows ``(U, D)``, the number of updates ``(U, 1)`` and the learning rate, to the gradient of a
        regularizer ``(U, D)``.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        rule: str = "adam",
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        penalty: Penalize | None = None,
    ) -> None:
        self.penalty = penalty
        eps = (1e-8 if rule == "adam" else 1e-10) if eps is None else eps
        defaults = {"lr": lr, "rule": rule, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        super().__init__(params, defaults)

    @property
    def notes_updates(self) -> bool:
        """Whether a number of state per row says when it was updated last."""
        return self.penalty is not None or any(group["weight_decay"] for group in self.param_groups)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update the touched rows of every table."""
        with torch.no_grad():
            for group in self.param_groups:
                for table in [p for p in group["params"] if p.grad is not None]:
                    self._update(table, group)

    def _update(self, table: nn.Parameter, group: dict[str, Any]) -> None:
        rows, gradient = touched_rows(table)
        state, rate = self._state_of(table, group), group["lr"]
        state["step"] += 1
        weights = table.index_select(0, rows)
        if LAST in state:
            missed = state["step"] - state[LAST].index_select(0, rows)
            state[LAST].index_fill_(0, rows, state["step"])
            if self.penalty is not None:
                gradient = gradient + self.penalty(table, weights, missed, rate)
            if group["weight_decay"]:
                weights *= (1 - rate * group["weight_decay"]) ** missed
        change, rate = self._change(state, group, rows, gradient)
        # Rows are distinct: index_add_, which allows for repeated ones, takes three times as long.
        table.index_copy_(0, rows, weights.add_(change, alpha=-rate))

    def _state_of(self, table: nn.Parameter, group: dict[str, Any]) -> dict[str, Any]:
        state, rule = self.state[table], group["rule"]
        if not state:
            names = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ()}.get(rule, ("sum",))
            dim = 1 if rule == "rowwise_adagrad" else table.shape[1]
            state.update({name: table.new_zeros(len(table), dim) for name in names}, step=0)
        if self.notes_updates and LAST not in state:
            # From now on, where a training checkpoint of an earlier version has none.
            state[LAST] = table.new_full((len(table), 1), state["step"])
        return state

    def _change(
        self, state: dict[str, Any], group: dict[str, Any], rows: Tensor, gradient: Tensor
    ) -> tuple[Tensor, float]:
        """Return what is subtracted from the rows ``(U, D)``, and its factor."""
        rule, rate = group["rule"], group["lr"]
        if rule == "sgd":
            return gradient, rate
        if rule == "adam":
            first, second = group["betas"]
            mean, square = (state[name].index_select(0, rows) for name in ("exp_avg", "exp_avg_sq"))
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            state["exp_avg"].index_copy_(0, rows, mean)
            state["exp_avg_sq"].index_copy_(0, rows, square)
            scale = math.sqrt(1 - second ** state["step"])
            return mean.div_(square.sqrt_().div_(scale).add_(group["eps"])), rate / (1 - first ** state["step"])
        square = gradient.square()
        total = state["sum"].index_select(0, rows)
        total += square.mean(1, keepdim=True) if rule == "rowwise_adagrad" else square
        state["sum"].index_copy_(0, rows, total)
        return gradient / total.sqrt_().add_(group["eps"]), rate


class Optimizers:
    """Optimizers that take their steps together, in the place of one: of dense parameters, and of kinds of tables.

    The parameter groups of ``dense``, ``touched`` and ``sharded`` follow each other.
    """

    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add a group of dense parameters."""
        self.parts["dense"].add_param_group(group)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts.values():
            part.zero_grad()

    def step(self) -> None:
        """Update all parameters."""
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` restores."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises
        ------
        UserError
            It is of other kinds of tables.
        """
        if state.keys() != self.parts.keys():
            raise UserError(
                "the training checkpoint has another kind of tables than this run (table: dense, touched, sharded or "
                "auto); restore that setting, or start again without --resume"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
