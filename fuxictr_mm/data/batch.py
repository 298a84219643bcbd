"""One batch of interactions.

Shape letters: B rows, N history items of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fuxictr_mm.layers.jagged import Jagged


@dataclass(frozen=True)
class Batch:
    """Rows that are trained on or scored together.

    Parameters
    ----------
    context : dict of str to Tensor
        ``(B,)`` each: what is known of the request.
    target : Tensor
        ``(B,)`` ids of the items shown.
    history : Jagged
        ``(N,)`` item ids, oldest first; an empty history is an empty row.
    label : Tensor, optional
        ``(B,)`` float, 1 for a click.
    group : Tensor, optional
        ``(B,)`` group of each row.
    """

    context: dict[str, Tensor]
    target: Tensor
    history: Jagged
    label: Tensor | None = None
    group: Tensor | None = None

    def __len__(self) -> int:
        return self.target.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move every tensor to a device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        return Batch(
            {name: column.to(device, non_blocking=non_blocking) for name, column in self.context.items()},
            self.target.to(device, non_blocking=non_blocking),
            self.history.to(device, non_blocking=non_blocking),
            move(self.label),
            move(self.group),
        )
