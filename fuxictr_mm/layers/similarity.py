"""Similarity of the target to its history in a frozen embedding, or in ids such as a category or tags.

Shape letters: I items, D dim, K ids of an item, B rows, N history items of a batch, S statistics. M candidates and L
history items of one user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged

#: History items that are compared at a time, which bounds the memory for their embeddings.
CHUNK = 2**16


@dataclass(frozen=True)
class Compared:
    """What is compared of items: ``rows`` of a column, and one over their lengths ``(N,)``, None where those are 1."""

    rows: Tensor
    inverse_lengths: Tensor | None

    def take(self, items: Tensor) -> Compared:
        """Return that of some of the items."""
        inverse = self.inverse_lengths
        return Compared(self.rows.index_select(0, items), None if inverse is None else inverse.index_select(0, items))

    def cosines(self, other: Compared) -> Tensor:
        """Return the cosines ``(N,)`` of pairs."""
        products, one, two = products_of(self.rows, other.rows), self.inverse_lengths, other.inverse_lengths
        return products if one is None or two is None else products * (one * two)

    def all_cosines(self, other: Compared) -> Tensor:
        """Return the cosine ``(M, L)`` of each of these with each of the others."""
        products, one, two = all_products(self.rows, other.rows), self.inverse_lengths, other.inverse_lengths
        return products if one is None or two is None else products * (one.unsqueeze(1) * two)


class HistorySimilarity(nn.Module):
    r"""Statistics of the cosines between what the target has in a column of the items and what its history has.

    Sheng et al., "Enhancing Taobao Display Advertising with Multimodal Representations", CIKM 2024 (SimTier),
    https://arxiv.org/abs/2407.19467

    .. math:: c_n = \frac{t_b \cdot s_n}{\|t_b\| \|s_n\|}, \qquad n \in b

    Nothing is learned and no gradient flows. The column is read from the item table where it is, which is not copied;
    only the inverse length of each row is kept. Ids are compared as vectors of counts, with a dim for each id: an id
    that an item has twice counts twice. Of one id, the cosine is 1 if both items have it, and the mean is the fraction
    of the history that has the target's. An item without an embedding or ids has cosine 0, an empty history zeros.

    Parameters
    ----------
    table : Tensor
        ``(I, D)`` frozen embeddings; those of 8-bit integers are compared as float32, whatever their factor. Or ids,
        ``(I,)`` or ``(I, K)`` integers of more bits, 0 as padding.
    statistics : sequence of str
        Each ``mean``, ``max``, ``newest_K`` (the mean of the newest K) or ``histogram_K``: the logarithm of one plus
        the number of cosines in each of K equal bins from -1 to 1.

    Examples
    --------
    >>> table = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    >>> similarity = HistorySimilarity(table, ["mean", "max", "newest_1"])
    >>> similarity(table, torch.tensor([1, 1]), Jagged(torch.tensor([1, 2]), torch.tensor([0, 2, 2]))).tolist()
    [[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """

    inverse_lengths: Tensor

    def __init__(self, table: Tensor, statistics: Sequence[str]) -> None:
        super().__init__()
        self.statistics = tuple(statistics)
        inverse = torch.cat([inverse_lengths(part) for part in table.split(CHUNK)])
        self.register_buffer("inverse_lengths", inverse, persistent=False)

    @torch.no_grad()
    def forward(self, table: Tensor, target: Tensor, history: Jagged) -> Tensor:
        """Return the statistics of each row.

        Parameters
        ----------
        table : Tensor
            ``(I, D)``, the table of the constructor.
        target : Tensor
            ``(B,)`` item ids.
        history : Jagged
            ``(N,)`` item ids, oldest first.

        Returns
        -------
        Tensor
            ``(B, S)``, in the order of ``statistics``.
        """
        targets, values = target.long().index_select(0, history.rows), history.values.long()
        items = Compared(table, self.inverse_lengths)
        parts = zip(targets.split(CHUNK), values.split(CHUNK), strict=True)
        return self.of_cosines(history, torch.cat([items.take(one).cosines(items.take(other)) for one, other in parts]))

    def of_cosines(self, history: Jagged, cosines: Tensor) -> Tensor:
        """Return the statistics ``(B, S)`` of cosines ``(N,)`` in the order of the history."""
        return torch.cat([_statistic(name, history, cosines) for name in self.statistics], dim=1)

    def of_user(self, cosines: Tensor) -> Tensor:
        """Return the statistics ``(M, S)`` of the cosines ``(M, L)`` of candidates with one history, oldest first."""
        return torch.cat([_statistic_of_user(name, cosines) for name in self.statistics], dim=1)


def has_ids(table: Tensor) -> bool:
    """Whether a column of the items holds ids, not an embedding, which may have integers of 8 bits."""
    return not table.is_floating_point() and table.dtype != torch.int8


def inverse_lengths(rows: Tensor) -> Tensor:
    """Return one over the length of embeddings ``(N, D)``, or of counts of ids ``(N, K)``; 0 for a length of 0."""
    lengths = products_of(rows, rows).sqrt() if has_ids(rows) else torch.linalg.vector_norm(_floating(rows), dim=1)
    return torch.where(lengths > 0, lengths.reciprocal(), 0)


def products_of(one: Tensor, other: Tensor) -> Tensor:
    """Return the inner products ``(N,)`` of embeddings ``(N, D)``, or the number of equal pairs of ids ``(N, K)``."""
    if not has_ids(one):
        return (_floating(one) * _floating(other)).sum(1)
    one, other = _as_lists(one), _as_lists(other)
    equal = [((ids == other) & (ids != 0)).sum(1) for ids in one.split(1, dim=1)]
    return torch.stack(equal).sum(0).to(torch.get_default_dtype())


def all_products(one: Tensor, other: Tensor) -> Tensor:
    """Return ``products_of`` each of ``(M, D)`` or ``(M, K)`` with each of ``(L, D)`` or ``(L, K)``, ``(M, L)``."""
    if not has_ids(one):
        return _floating(one) @ _floating(other).t()
    one, other = _as_lists(one), _as_lists(other)
    values = other.masked_fill(other == 0, -1).flatten()  # padding equals nothing
    equal = reduce(torch.add, [(ids == values).to(torch.get_default_dtype()) for ids in one.split(1, dim=1)])
    return equal.view(one.shape[0], *other.shape).sum(2)


def _as_lists(ids: Tensor) -> Tensor:
    return ids.unsqueeze(1) if ids.dim() == 1 else ids


def _floating(rows: Tensor) -> Tensor:
    return rows if rows.is_floating_point() else rows.float()


def _statistic(name: str, history: Jagged, cosines: Tensor) -> Tensor:
    """Return one statistic ``(B, 1)``, or the histogram ``(B, K)``, of the cosines ``(N,)``."""
    kind, _, text = name.partition("_")
    rows, lengths, count = history.rows, history.lengths, int(text or 1)
    if kind == "histogram":
        bins = _bins(cosines, count)
        counts = rows.new_zeros(history.num_rows * count).index_add(0, rows * count + bins, torch.ones_like(bins))
        return counts.view(-1, count).to(cosines.dtype).log1p()
    if kind == "max":
        largest = cosines.new_full((history.num_rows,), -torch.inf).scatter_reduce(0, rows, cosines, "amax")
        return largest.where(lengths > 0, 0).unsqueeze(1)
    if kind == "newest":
        from_end = history.offsets[1:].index_select(0, rows) - torch.arange(rows.shape[0], device=rows.device)
        cosines, lengths = cosines.where(from_end <= count, 0), lengths.clamp(max=count)
    return (history.with_values(cosines).sum() / lengths.clamp(min=1)).unsqueeze(1)


def _statistic_of_user(name: str, cosines: Tensor) -> Tensor:
    """Return one statistic ``(M, 1)``, or the histogram ``(M, K)``, of the cosines ``(M, L)``."""
    kind, _, text = name.partition("_")
    length, count = cosines.shape[1], int(text or 1)
    if kind == "histogram":
        counts = cosines.new_zeros(cosines.shape[0], count)
        return counts.scatter_add(1, _bins(cosines, count), torch.ones_like(cosines)).log1p()
    if kind == "max":
        largest = F.pad(cosines, (1, 0), value=-torch.inf).amax(dim=1, keepdim=True)
        return largest.where(largest > -torch.inf, 0)
    places = torch.arange(length, device=cosines.device)
    is_read = (places >= length - count if kind == "newest" else places >= 0).to(cosines.dtype)
    return (cosines * is_read).sum(dim=1, keepdim=True) / is_read.sum().clamp(min=1)


def _bins(cosines: Tensor, count: int) -> Tensor:
    """Return in which of equal bins from -1 to 1 each cosine is."""
    return ((cosines + 1) * (count / 2)).long().clamp(0, count - 1)
