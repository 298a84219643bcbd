r"""Exponential moving average of a table whose update costs only the rows of a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class RowAverage:
    r"""Average of the rows of a table, computed for a row when the row changes.

    While a row keeps its weight w, its average moves towards it in closed form, so that the average is that of all
    rows at every update, up to rounding:

    .. math:: a_u = w + (a_v - w) \prod_{k=v+1}^{u} d_k

    Parameters
    ----------
    weight : Tensor
        ``(R, D)`` the table, whose storage is that of the parameter.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.average = weight.clone()
        #: ``(R,)`` sum of the logarithms of the decays at the last change of each row; float64.
        self.logs = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)
        self._log = 0.0

    @torch.no_grad()
    def before(self, rows: Tensor) -> None:
        """Bring the average of ``rows`` ``(U,)`` up to date, before an update changes their weights."""
        weight, average = self.weight.index_select(0, rows), self.average.index_select(0, rows)
        share = torch.exp(self._log - self.logs.index_select(0, rows)).to(weight.dtype)
        self.average.index_copy_(0, rows, torch.lerp(weight, average, share.unsqueeze(1)))
        self.logs.index_fill_(0, rows, self._log)

    @torch.no_grad()
    def after(self, rows: Tensor, decay: float) -> None:
        """Take in an update of ``rows`` ``(U,)``; the others have kept their weights."""
        self._log += math.log(decay)
        average = self.average.index_select(0, rows)
        average.lerp_(self.weight.index_select(0, rows), 1 - decay)
        self.average.index_copy_(0, rows, average)
        self.logs.index_fill_(0, rows, self._log)

    @torch.no_grad()
    def complete(self) -> Tensor:
        """Return the average ``(R, D)``, all rows up to date."""
        share = torch.exp(self._log - self.logs).to(self.weight.dtype)
        torch.lerp(self.weight, self.average, share.unsqueeze(1), out=self.average)
        self.logs.fill_(self._log)
        return self.average

    def state(self) -> dict[str, Tensor | float]:
        """Return what ``load`` restores."""
        return {"average": self.average, "logs": self.logs, "log": self._log}

    def load(self, state: dict[str, Tensor | float]) -> None:
        """Restore a state; the table has its weights already."""
        average, logs = state["average"], state["logs"]
        assert isinstance(average, Tensor)
        assert isinstance(logs, Tensor)
        self.average.copy_(average)
        self.logs.copy_(logs)
        self._log = float(state["log"])
