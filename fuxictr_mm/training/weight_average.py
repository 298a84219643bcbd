"""Averages of weights during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fuxictr_mm.tables import RowAverage, touched_parameters, touched_rows

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
