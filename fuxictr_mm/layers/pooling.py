"""Pooling of jagged rows.

Shape letters: B rows, N history items of a batch, U distinct items, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fuxictr_mm.layers.jagged import Jagged


def weighted_sum(history: Jagged, weights: Tensor) -> Tensor:
    r"""Weighted sum of each row's entries.

    .. math:: o_{b, h} = \sum_{n \in b} w_{n, h} \, s_n

    Reads the distinct entries in place: the ``(N, D)`` entries are never written out, nor their ``(N, H, D)``
    products with the weights.

    Parameters
    ----------
    history : Jagged
        Entries of shape ``(.., D)``.
    weights : Tensor
        ``(N,)`` or ``(N, H)``, one weight per entry, or per entry and head.

    Returns
    -------
    Tensor
        ``(B, D)`` or ``(B, H, D)``, zero for an empty row; in the wider of the two types.

    Examples
    --------
    >>> history = Jagged(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 3, 3]), torch.tensor([0, 1, 1]))
    >>> weighted_sum(history, torch.tensor([1.0, 0.5, 0.5])).tolist()
    [[4.0, 6.0], [0.0, 0.0]]
    """
    dtype = torch.promote_types(history.distinct.dtype, weights.dtype)
    entries = history.distinct.to(dtype)
    index = history.index
    if index is None:
        index = torch.arange(history.num_values, device=entries.device)
    num_heads = 1 if weights.dim() == 1 else weights.shape[1]
    # One bag per head and row, head after head, so that the gradients of all heads meet in one table.
    first = torch.arange(num_heads, device=entries.device).unsqueeze(1) * history.num_values
    pooled_HBD = F.embedding_bag(
        index.repeat(num_heads),
        entries,
        (first + history.offsets[:-1]).flatten(),
        mode="sum",
        per_sample_weights=weights.t().flatten().to(dtype),
    ).view(num_heads, history.num_rows, -1)
    return pooled_HBD[0] if weights.dim() == 1 else pooled_HBD.transpose(0, 1)


def mean_pooling(history: Jagged) -> Tensor:
    """Mean of each row's entries of shape ``(.., D)``, ``(B, D)``; zero for an empty row.

    Examples
    --------
    >>> mean_pooling(Jagged(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 2, 2]))).tolist()
    [[1.5], [0.0]]
    """
    shares = history.lengths.clamp(min=1).to(history.distinct.dtype).reciprocal()
    return weighted_sum(history, shares.index_select(0, history.rows))
