"""The embedding that all items share of which training shows no row.

Shape letters: I items (padding included), U items, D dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UnknownItem(nn.Module):
    """One trained embedding for dropped ids, and in evaluation for the ids that no training batch had.

    The zeros of a missing id are where the embeddings of rare items begin, so that a model cannot tell the two apart
    and carries over to unknown items what it has learned of users with known ones.

    Parameters
    ----------
    num_items : int
        I.
    dim : int
        D.
    """

    seen: Tensor

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(dim))
        # Not of floats, so that no average of weights changes it.
        self.register_buffer("seen", torch.zeros(num_items, dtype=torch.bool))

    def known(self, ids: Tensor) -> Tensor:
        """Return ids ``(U,)`` with 0 in place of those that training has not shown; in training these are shown."""
        if self.training:
            self.seen[ids] = True
            return ids
        return ids * self.seen.index_select(0, ids)

    def fill(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Return embeddings ``(U, D)`` with the shared one where the id is 0."""
        return torch.where((ids == 0).unsqueeze(1), self.embedding.to(embeddings.dtype), embeddings)
