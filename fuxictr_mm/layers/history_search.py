"""Search in long histories: the K best entries of each row.

Shape letters: B rows, N history entries of all rows, U distinct items, A dim of a key, M codes of an item, T categories
of an item, R rows of a block, L longest row of a block, F found entries of all rows. C candidates of one user.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from fuxictr_mm.jagged import Jagged, is_exporting
from fuxictr_mm.layers.transformer import Buckets

#: Entries that are scored at a time, which bounds the memory for their keys.
BLOCK = 2**16

#: Returns a value for entries given by their items ``(R, L)``, index into the distinct ones, and their rows ``(R,)``.
Score = Callable[[Tensor, Tensor], Tensor]

#: Where a matrix product with all distinct items has at most this many products per entry, it is the faster way.
DENSE = 8


class InnerProduct:
    r"""Score by the inner product of the query of a row with the key of an item, :math:`q_b \cdot k_n`.

    Costs A multiplications per entry. With keys of other kinds it is a projected score (both projected), one of hashes
    (both from ``signs``: the product is A minus twice the Hamming distance) or one of contents (from ``directions``).

    Parameters
    ----------
    keys : Tensor
        ``(U, A)``, of 8-bit integers or floating.
    queries : Tensor
        ``(B, A)``.
    """

    def __init__(self, keys: Tensor, queries: Tensor) -> None:
        self.keys, self.queries = keys, queries

    def __call__(self, items: Tensor, rows: Tensor) -> Tensor:
        """Return the scores ``(R, L)``."""
        dtype = self.queries.dtype if self.queries.is_floating_point() else torch.float32
        queries_RA = self.queries.index_select(0, rows).to(dtype)
        if is_exporting() or self.keys.shape[0] <= DENSE * items.shape[1]:
            return (queries_RA @ self.keys.to(dtype).t()).gather(1, items)
        keys_RLA = self.keys.index_select(0, items.flatten()).to(dtype).view(*items.shape, -1)
        return torch.bmm(keys_RLA, queries_RA.unsqueeze(2)).squeeze(2)


class EqualCodes:
    """Score by the number of equal codes of target and item, or by the sum of their weights.

    Costs M comparisons of integers per entry.

    Parameters
    ----------
    codes : Tensor
        ``(U, M)`` integers, 0 for none.
    of_target : Tensor
        ``(B, M)``.
    weights : Tensor, optional
        ``(M,)``.
    """

    def __init__(self, codes: Tensor, of_target: Tensor, weights: Tensor | None = None) -> None:
        self.codes, self.of_target, self.weights = codes, of_target, weights

    def __call__(self, items: Tensor, rows: Tensor) -> Tensor:
        """Return the scores ``(R, L)``."""
        codes_RLM = self.codes.index_select(0, items.flatten()).view(*items.shape, -1)
        equal_RLM = (codes_RLM == self.of_target.index_select(0, rows).unsqueeze(1)) & (codes_RLM != 0)
        return equal_RLM.sum(2) if self.weights is None else _weighted(equal_RLM.unbind(2), self.weights)

    def of_all(self) -> Tensor:
        """Return the scores of all items for all rows, ``(B, U)``; no tensor ``(B, U, M)`` is allocated."""
        codes = self.codes.masked_fill(self.codes == 0, -1)
        weights = torch.ones(codes.shape[1], device=codes.device) if self.weights is None else self.weights
        columns = zip(codes.unbind(1), self.of_target.split(1, dim=1), strict=True)
        return _weighted((of_items == of_target for of_items, of_target in columns), weights)


def _weighted(columns: Iterable[Tensor], weights: Tensor) -> Tensor:
    """Return the sum of weighted columns, one by one: rounding in another order would make other ties."""
    return reduce(torch.add, (column * weight for column, weight in zip(columns, weights.unbind(), strict=True)))


class SameCategory:
    """Filter: whether target and item have a category in common.

    Costs T * T comparisons of integers per entry.

    Parameters
    ----------
    categories : Tensor
        ``(U,)`` or ``(U, T)`` integers, 0 for none.
    of_target : Tensor
        ``(B,)`` or ``(B, T)``.
    """

    def __init__(self, categories: Tensor, of_target: Tensor) -> None:
        self.categories = categories.unsqueeze(1) if categories.dim() == 1 else categories
        self.of_target = of_target.unsqueeze(1) if of_target.dim() == 1 else of_target

    def __call__(self, items: Tensor, rows: Tensor) -> Tensor:
        """Return whether an entry may be found, ``(R, L)`` bool."""
        of_items_RLT = self.categories.index_select(0, items.flatten()).view(*items.shape, -1)
        of_target_RT = self.of_target.index_select(0, rows)
        equal = of_items_RLT.unsqueeze(3) == of_target_RT[:, None, None]
        return (equal & (of_items_RLT != 0).unsqueeze(3)).flatten(2).any(dim=2)

    def of_all(self) -> Tensor:
        """Return whether items may be found by rows, ``(B, U)`` bool; no tensor ``(B, U, T, T)`` is allocated."""
        categories = self.categories.masked_fill(self.categories == 0, -1)
        columns = product(categories.unbind(1), self.of_target.split(1, dim=1))
        return reduce(torch.logical_or, (of_items == of_target for of_items, of_target in columns))


@torch.no_grad()
def search(history: Jagged, score: Score | None, top_k: int, allowed: Score | None = None) -> Jagged:
    """Find the K entries of each row with the largest scores.

    Equal scores are decided by recency, the newer entry is found. Scores are compared as float32; under autocast their
    products are rounded to half precision before, which makes more of them equal. No gradient flows.

    Rows are sorted by length and scored in blocks of ``BLOCK`` entries, at most half of them padding, so that memory
    grows with the real entries: keys of one block, and 8 K bytes per row. A row of up to K entries is not scored unless
    there is a filter. The cost is that of the scores and of one selection per row, linear in its length.

    Parameters
    ----------
    history : Jagged
        ``(N, ...)``, oldest first.
    score : callable or None
        ``InnerProduct``, ``EqualCodes``, or any function of items ``(R, L)`` and rows ``(R,)``; None: the newest.
    top_k : int
        K.
    allowed : callable, optional
        ``SameCategory``, or any function of the same arguments; only entries for which it is True are found.

    Returns
    -------
    Jagged
        ``(F,)`` numbers of the found entries, from 0 to N - 1, oldest first; for ``take``.

    Examples
    --------
    >>> history = Jagged(torch.tensor([[1.0], [3.0], [2.0], [3.0], [5.0]]), torch.tensor([0, 4, 5]))
    >>> found = search(history, InnerProduct(history.distinct, torch.ones(2, 1)), top_k=2)
    >>> found.values.tolist(), found.lengths.tolist()
    ([1, 3, 4], [2, 1])
    """
    if is_exporting():
        return _search_at_once(history, score, top_k, allowed)
    offsets, lengths, nothing = history.offsets, history.lengths, history.num_values
    first = torch.arange(top_k, device=offsets.device)
    found_BK = torch.where(first < lengths.unsqueeze(1), offsets[:-1].unsqueeze(1) + first, nothing)
    for rows, longest in _blocks(lengths, 0 if allowed else top_k):
        place_L = torch.arange(longest, device=offsets.device)
        keep_RL = place_L < lengths[rows].unsqueeze(1)
        start_R1 = offsets[rows].unsqueeze(1)
        items_RL = torch.where(keep_RL, start_R1 + place_L, start_R1)
        if history.index is not None:
            items_RL = history.index[items_RL]
        parts = items_RL.split(max(BLOCK // len(rows), 1), dim=1)
        if allowed is not None:
            keep_RL = keep_RL & torch.cat([allowed(part, rows) for part in parts], dim=1)
        keys_RL = place_L.expand_as(items_RL)
        if score is not None:
            keys_RL = (_ordered(torch.cat([score(part, rows) for part in parts], dim=1)) << 32) + keys_RL
        best = keys_RL.masked_fill(~keep_RL, torch.iinfo(torch.int64).min).topk(min(top_k, longest), dim=1)
        none = ~keep_RL.gather(1, best.indices)
        entries = (start_R1 + best.indices).masked_fill(none, nothing).sort(dim=1).values
        found_BK[rows] = F.pad(entries, (0, top_k - entries.shape[1]), value=nothing)
    return _entries(found_BK, nothing)


def _entries(found_BK: Tensor, nothing: int) -> Jagged:
    """Return the found entries of rows that are filled up with ``nothing``."""
    real_BK = found_BK < nothing
    ends = real_BK.sum(dim=1).cumsum(0)
    return Jagged(found_BK[real_BK], torch.cat([ends.new_zeros(1), ends]))


def _search_at_once(history: Jagged, score: Score | None, top_k: int, allowed: Score | None) -> Jagged:
    """Return what ``search`` does, for all rows at once: blocks depend on the data, which a graph cannot."""
    nothing, rows = history.num_values, torch.arange(history.num_rows)
    # The newest first: of equal scores, ONNX's TopK takes the first. There are K places or more.
    place_L = torch.arange(history.longest + top_k).flip(0)
    keep_BL = place_L < history.lengths.unsqueeze(1)
    entries_BL = torch.where(keep_BL, history.offsets[:-1].unsqueeze(1) + place_L, 0)
    items_BL = entries_BL
    if history.index is not None:
        items_BL = torch.cat([history.index, history.index.new_zeros(1)])[entries_BL]
    if allowed is not None:
        keep_BL = keep_BL & allowed(items_BL, rows)
    scores_BL = place_L.float().expand(keep_BL.shape) if score is None else score(items_BL, rows).float()
    best_BK = scores_BL.masked_fill(~keep_BL, -torch.inf).topk(top_k, dim=1).indices
    found_BK = torch.where(keep_BL.gather(1, best_BK), entries_BL.gather(1, best_BK), nothing)
    return _entries(found_BK.sort(dim=1).values, nothing)


@torch.no_grad()
def search_user(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Find the entries of ``search`` for the candidates of one user in its history, the newest entry first.

    Parameters
    ----------
    scores : Tensor
        ``(.., C, L)`` of each candidate and entry.
    top_k : int
        K.

    Returns
    -------
    best : Tensor
        ``(.., C, K)`` scores of the found entries in any order, -inf where fewer are found.
    found : Tensor
        ``(.., C, L)`` bool.

    Examples
    --------
    >>> search_user(torch.tensor([[3.0, 2.0, 3.0, 3.0]]), 2)
    (tensor([[3., 3.]]), tensor([[ True, False,  True, False]]))
    """
    padded = F.pad(scores, (0, top_k), value=-torch.inf)  # there are K places or more
    if is_exporting():  # of equal scores, ONNX's TopK takes the first, and ONNX has no stable sort
        index = padded.float().topk(top_k, dim=-1, sorted=False).indices
    else:
        index = padded.float().sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    best = padded.gather(-1, index)
    found = torch.zeros_like(padded, dtype=torch.bool).scatter(-1, index, best > -torch.inf)
    return best, found[..., : scores.shape[-1]]


@torch.no_grad()
def neighbours(keys: Jagged, top_k: int) -> tuple[Tensor, Tensor]:
    """Find, for each entry, the K entries of its row with the largest products of keys, itself among them.

    Equal products are decided by recency. Costs A multiplications for each pair of entries of a row; rows of similar
    length are scored together, at most ``BLOCK`` pairs at a time unless one row has more.

    Parameters
    ----------
    keys : Jagged
        ``(N, A)``.
    top_k : int
        K.

    Returns
    -------
    entries : Tensor
        ``(N, K)`` numbers of the found entries, the best one first; any where a row has fewer than K.
    products : Tensor
        ``(N, K)`` their products, 0 where a row has fewer than K.

    Examples
    --------
    >>> entries, products = neighbours(Jagged(torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([0, 2, 3])), top_k=2)
    >>> entries[:2].tolist(), products.tolist()
    ([[1, 0], [1, 0]], [[3.0, 1.0], [9.0, 3.0], [4.0, 0.0]])
    """
    places, parts = torch.cat([keys.places, keys.places.new_zeros(1)]), []  # an export has buckets of no entries
    buckets = Buckets.of(keys.offsets, longest=keys.longest if is_exporting() else None)
    for token, mask in zip(buckets.tokens, buckets.masks, strict=True):
        longest = token.shape[1]
        # The newest first: of equal products, ONNX's TopK takes the first. There are K places or more.
        place = torch.arange(longest, device=token.device).flip(0)
        blocks = [(token, mask)]
        if not is_exporting():
            size = max(BLOCK // longest**2, 1)
            blocks = list(zip(token.split(size), mask.split(size), strict=True))
        found, of_found = [], []
        for token_RL, mask_RL in blocks:
            keys_RLA = keys.distinct.index_select(0, places[token_RL.flatten()]).view(*token_RL.shape, -1)
            products = (keys_RLA @ keys_RLA.transpose(1, 2)).masked_fill(~mask_RL.unsqueeze(1), -torch.inf).flip(2)
            scores = F.pad(products, (0, top_k), value=-torch.inf)
            if not is_exporting():
                scores = (_ordered(scores) << 32) - torch.arange(scores.shape[2], device=scores.device)
            best_RLK = scores.topk(top_k, dim=2).indices
            places_RK = F.pad(place, (0, top_k))[best_RLK].flatten(1)
            found.append(F.pad(token_RL, (0, top_k)).gather(1, places_RK).view_as(best_RLK))
            of_found.append(F.pad(products, (0, top_k), value=-torch.inf).gather(2, best_RLK))
        parts.append((torch.cat(found), torch.cat(of_found)))
    if not parts:
        return places.new_zeros(0, top_k), keys.distinct.new_zeros(0, top_k)
    entries, products = (buckets.join(part) for part in zip(*parts, strict=True))
    return entries, products.masked_fill(products == -torch.inf, 0.0)


def softmax_of_found(scores: Tensor, found: Tensor) -> Tensor:
    """Return the softmax over the entries ``(.., L)`` that are found; zeros elsewhere, and for rows without any.

    Examples
    --------
    >>> softmax_of_found(torch.zeros(2, 3), torch.tensor([[True, False, True], [False] * 3])).tolist()
    [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    """
    return scores.masked_fill(~found, torch.finfo(scores.dtype).min).softmax(dim=-1) * found


def first(entries: Tensor, count: int) -> Tensor:
    """Return the first ``count`` entries ``(L, ...)``, or all; a slice would limit L in an export."""
    return entries[torch.arange(entries.shape[0], device=entries.device) < count]


def _blocks(lengths: Tensor, least: int) -> Iterator[tuple[Tensor, int]]:
    """Yield rows of similar length, longer than ``least``, and the length of the longest."""
    order = lengths.argsort(descending=True)
    descending = lengths[order].tolist()
    start = 0
    while start < len(descending) and descending[start] > least:
        longest, stop = descending[start], start + 1
        most, shortest = start + max(BLOCK // longest, 1), max(least, longest // 2 - 1)
        while stop < min(most, len(descending)) and descending[stop] > shortest:
            stop += 1
        yield order[start:stop], longest
        start = stop


def _ordered(scores: Tensor) -> Tensor:
    """Return integers of 32 bits, as int64, in the order of the scores as float32."""
    bits = (scores.to(torch.float32) + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


def take(history: Jagged, found: Jagged) -> Jagged:
    """Return the found entries of a history, as an index into the same distinct ones.

    Examples
    --------
    >>> history = Jagged(torch.tensor([7, 8, 9]), torch.tensor([0, 2, 3]))
    >>> take(history, Jagged(torch.tensor([1]), torch.tensor([0, 1, 1]))).values.tolist()
    [8]
    """
    index = found.values if history.index is None else history.index.index_select(0, found.values)
    return Jagged(history.distinct, found.offsets, index)


def newest(history: Jagged, count: int) -> Jagged:
    """Return the last ``count`` entries of each row, as an index into the distinct ones.

    Examples
    --------
    >>> newest(Jagged(torch.tensor([7, 8, 9]), torch.tensor([0, 2, 3])), 1).values.tolist()
    [8, 9]
    """
    from_end = history.lengths.index_select(0, history.rows) - history.positions
    index = history.places
    offsets = torch.cat([history.offsets[:1], history.lengths.clamp(max=count).cumsum(0)])
    return Jagged(history.distinct, offsets, index[from_end <= count])


def signs(values: Tensor) -> Tensor:
    """Return 1 where a value is positive and -1 elsewhere, as int8: the bits of a hash, for ``InnerProduct``."""
    return (values > 0).to(torch.int8) * 2 - 1


def directions(embeddings: Tensor) -> Tensor:
    """Return embeddings ``(.., A)``, which may be 8-bit integers, at length 1; zero stays zero."""
    return F.normalize(embeddings if embeddings.is_floating_point() else embeddings.float(), dim=-1)
