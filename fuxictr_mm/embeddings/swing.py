r"""Swing: item similarity from clicks. Yang et al., 2020, https://arxiv.org/abs/2010.05525.

.. math::
    s(i, j) = \sum_{\{u, v\} \subset U_i \cap U_j} \frac{w_u w_v}{\alpha + |I_u \cap I_v|},
    \qquad w_u = |I_u|^{-\beta}

with U_i the users who clicked i and I_u the items that u clicked. Two users who share i and j and little else are
stronger evidence than two who share half the catalogue.

The terms are enumerated by item (the anchor i) and by other item that two of its users clicked: most pairs of users
share nothing but the anchor and add nothing. Anchors are processed in chunks. (By scipy, as the column sums of
A * (W A) / 2 with A the users x items of an anchor, it takes 0.8 times as long for 1,400 items and 13 for 94,000.)

Departures: pairs are unordered and u differs from v (the paper's sum over ordered pairs doubles every score); the users
of an item and the items of a user are capped, see ``swing``.

Shapes: I items, U users, N clicks, A anchors of a chunk, R rows (a user of an anchor), C columns (an item that two or
more users of an anchor clicked), E clicks on them, T terms (two users of a column), M neighbors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt

from fuxictr_mm.checking import Settings
from fuxictr_mm.data import decoding
from fuxictr_mm.data.ids import AS_IS, Numbering
from fuxictr_mm.embeddings.click_rows import ITEM_BITS, Integers, pack, read_click_rows
from fuxictr_mm.embeddings.item_files import require_unique
from fuxictr_mm.embeddings.item_tables import read_items
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import StrPath, write_beside
from fuxictr_mm.terminal import item_bar

Floats = NDArray[np.float64]

#: Clicks read before they are merged with the distinct ones; bounds the memory of repeated clicks.
MERGE_CLICKS = 8_000_000

#: Pairs of users and clicks of a chunk of anchors; bounds its memory.
CHUNK_SIZE = 1_500_000

#: Terms that are expanded at a time, of which the last four chunks are cached; bounds the memory of a chunk.
CHUNK_TERMS = 2_000_000

#: The largest number of users to score an anchor over; bounds its pairs of users, and the terms of a column.
MAX_USERS_PER_ITEM = 5000


@dataclass(frozen=True)
class Clicks:
    """The distinct clicks of a dataset."""

    #: A ``csr_array`` ``(U, I)`` int8, 1 where a user clicked an item; users are in ascending order of their ids.
    matrix: Any
    item_ids: Integers  #: ``(I,)`` ids of the columns, ascending.

    @classmethod
    def from_keys(cls, keys: Integers) -> Clicks:
        """Return the clicks of distinct keys ``(N,)`` of ``pack``, in order."""
        from scipy import sparse

        items = (keys & ((1 << ITEM_BITS) - 1)).astype(np.int32)
        item_ids = np.unique(items)
        row_starts = np.append(_starts(keys >> ITEM_BITS), len(keys))
        columns = np.searchsorted(item_ids, items).astype(np.int32)
        shape = (len(row_starts) - 1, len(item_ids))
        matrix = sparse.csr_array((np.ones(len(keys), dtype=np.int8), columns, row_starts), shape=shape)
        return cls(matrix, item_ids.astype(np.int64))

    @classmethod
    def read(cls, path: StrPath, label: str = "label", numbering: Numbering = AS_IS) -> Clicks:
        """Read the clicks of a training split: the items of the histories, and the targets whose label is 1.

        Read the training split only: a model trained on clicks of the other splits cannot be evaluated on them.

        Parameters
        ----------
        path : path
            ``X.parquet``, ``X`` or a folder of part files, with ``user_id``, ``item_id``, ``item_seq`` and the label.
        label : str
            Label column.
        numbering : Numbering
            Of the items and users.

        Raises
        ------
        DataError, MissingFileError
            A column is missing or holds something other than ids, or there is no click.
        """
        distinct = np.empty(0, dtype=np.int64)
        chunks: list[Integers] = []
        for keys in _read_keys(path, label, numbering):
            chunks.append(keys)
            if sum(map(len, chunks)) >= MERGE_CLICKS:
                distinct, chunks = np.unique(np.concatenate([distinct, *chunks])), []
        distinct = np.unique(np.concatenate([distinct, *chunks]))
        if not len(distinct):
            raise DataError(f"{path}: no clicks (no item in item_seq, no {label} of 1), expected at least one")
        return cls.from_keys(distinct)


def _read_keys(path: StrPath, label: str, numbering: Numbering) -> Iterator[Integers]:
    """Yield the distinct clicks of each chunk, as keys."""
    for rows in read_click_rows(path, label, numbering):
        new = rows.clicked > 0
        of_history = pack(rows.users[rows.row_of], rows.history)
        yield np.unique(np.concatenate([of_history, pack(rows.users[new], rows.clicked[new])]))


def _starts(values: NDArray[Any]) -> Integers:
    """Return the index at which each run of equal values begins.

    Examples
    --------
    >>> _starts(np.array([4, 4, 7])).tolist()
    [0, 2]
    """
    return np.flatnonzero(np.diff(values, prepend=-1))


@dataclass(frozen=True)
class Neighbors:
    """The most similar items of each item.

    Item 2 has two neighbors, item 7 has one::

        item 2: 7 (0.5), 4 (0.1)
        item 7: 2 (0.5)             ->   items = [2, 2, 7], neighbors = [7, 4, 2], scores = [0.5, 0.1, 0.5]
    """

    items: Integers  #: ``(M,)`` item ids, ascending.
    neighbors: Integers  #: ``(M,)``, a neighbor of each.
    scores: Floats  #: ``(M,)`` float64 above 0, descending for each item.

    @property
    def num_items(self) -> int:
        """Number of items that have neighbors."""
        return len(_starts(self.items))

    def write(self, path: StrPath, numbering: Numbering = AS_IS) -> None:
        """Write a Parquet file of ``item_id``, ``neighbors`` and ``scores`` (lists), one row per item."""
        starts = _starts(self.items)
        offsets = pa.array(np.append(starts, len(self.items)), pa.int64())
        table = pa.table(
            {
                numbering.roles.target: numbering.ids(self.items[starts]),
                "neighbors": pa.LargeListArray.from_arrays(offsets, numbering.ids(self.neighbors)),
                "scores": pa.LargeListArray.from_arrays(offsets, pa.array(self.scores)),
            }
        ).replace_schema_metadata(numbering.metadata)
        write_beside(path, lambda stream: pq.write_table(table, stream, compression="zstd"))

    @classmethod
    def read(cls, path: StrPath, numbering: Numbering = AS_IS) -> Neighbors:
        """Read a file of the form that ``write`` writes; the items may be in any order.

        Raises
        ------
        DataError, MissingFileError
            A column is missing, an item occurs twice, lists differ in length, or a score is not above 0.
        """
        chunks = list(_read_neighbors(path, numbering))
        if not sum(len(neighbors) for *_, neighbors, _ in chunks):
            raise DataError(f"{path}: no neighbors, expected at least one")
        ids, lengths, neighbors, scores = (np.concatenate(part) for part in zip(*chunks, strict=True))
        require_unique(ids, str(path), numbering)
        return cls(*_best(np.repeat(ids, lengths), neighbors, scores))


def _read_neighbors(path: StrPath, numbering: Numbering) -> Iterator[tuple[Integers, Integers, Integers, Floats]]:
    """Yield ids, lengths of the lists, neighbors and scores of each chunk."""
    for file, row, ids, batch in read_items(path, ["neighbors", "scores"], numbering):
        flat, offsets = numbering.lists(batch.column("neighbors"), f"{file}: neighbors", row, known=False)
        scores, score_offsets = decoding.lists(batch.column("scores"), f"{file}: scores", row)
        lengths = np.diff(offsets)
        unequal = np.flatnonzero(lengths != np.diff(score_offsets))
        if len(unequal):
            raise DataError(f"{file}: row {row + unequal[0]}: expected as many scores as neighbors")
        row_of = row + np.repeat(np.arange(batch.num_rows), lengths)
        neighbors = decoding.integers(flat, f"{file}: neighbors", row_of)
        decoding.check_ids(neighbors, None, f"{file}: neighbors", row_of)
        wrong = np.flatnonzero(~((scores > 0) & np.isfinite(scores)))
        if len(wrong):
            raise DataError(
                f"{file}: scores: row {row_of[wrong[0]]} holds {scores[wrong[0]]}, expected numbers above 0"
            )
        yield ids, lengths, neighbors, scores.astype(np.float64)


class SwingOptions(Settings):
    """Settings of ``swing``."""

    alpha: float = Field(1.0, gt=0, allow_inf_nan=False, description="smoothing, added to the items that users share")
    user_weight: float = Field(
        0.5, ge=0, allow_inf_nan=False, description="beta: a user of n clicks has the weight n^-beta"
    )
    top_k: PositiveInt = Field(50, description="neighbors kept per item; ties go to smaller ids")
    users_per_item: int = Field(500, ge=2, description="score an item over a random sample of at most this many users")
    items_per_user: int = Field(100, ge=2, description="use a random sample of at most this many clicks of a user")
    seed: NonNegativeInt = Field(0, description="seed of both samples")


def swing(clicks: Clicks, options: SwingOptions | None = None, verbose: int = 1) -> Neighbors:
    """Return the items of the highest Swing score of each item.

    Work and memory of an item grow with the square of its users, which ``users_per_item`` bounds. All clicks of the
    sampled users count, and the scores are scaled by the fraction of pairs that is left out, so that they are unbiased.
    The sample of ``items_per_user`` counts in |I_u| as well: users of more clicks are mostly crawlers.

    Memory is that of the clicks (some copies of 8 bytes each) and of one chunk of anchors.

    Parameters
    ----------
    clicks : Clicks
        Of the training split.
    options : SwingOptions, optional
        Settings.
    verbose : int
        0 shows no progress bar.

    Raises
    ------
    ConfigError
        An item is to be scored over more than ``MAX_USERS_PER_ITEM`` users.
    DataError
        No two users share two items.
    """
    options = options or SwingOptions()
    rng = np.random.default_rng(options.seed)
    users = _sample_rows(clicks.matrix, options.items_per_user, rng)
    users = users[np.diff(users.indptr) > 1]  # a single click makes no pair of items
    items = users.T.tocsr()
    total = np.diff(items.indptr)
    items = _sample_rows(items, options.users_per_item, rng)
    sizes = np.diff(items.indptr)
    if sizes.max(initial=0) > MAX_USERS_PER_ITEM:
        raise ConfigError(
            f"swing: users_per_item is {options.users_per_item}, and an item has {sizes.max()} users to be scored "
            f"over; memory grows with their square: expected at most {MAX_USERS_PER_ITEM}"
        )
    scale = total * (total - 1.0) / np.maximum(sizes * (sizes - 1.0), 1)
    clicks_of_user = np.diff(users.indptr)
    weights = clicks_of_user.astype(np.float64) ** -options.user_weight
    anchors = np.flatnonzero(sizes > 1)
    items = items[anchors]
    clicks_before = np.concatenate(([0], np.cumsum(clicks_of_user[items.indices])))[items.indptr]
    pairs_before = np.concatenate(([0], np.cumsum(sizes[anchors].astype(np.int64) ** 2)))
    found: list[tuple[Integers, Integers, Floats]] = []
    with item_bar(len(anchors), "swing", verbose) as bar:
        for first, last in _split(clicks_before + pairs_before, CHUNK_SIZE):
            chosen = items[first:last]
            rows = users[chosen.indices]
            anchor, item, score = _score(
                rows, chosen.indptr, anchors[first:last], weights[chosen.indices], options.alpha
            )
            found.append(_best(clicks.item_ids[anchor], clicks.item_ids[item], score * scale[anchor], options.top_k))
            bar.update(last - first)
    if not any(len(scores) for *_, scores in found):
        raise DataError("swing: no two users share two items, so no items are similar; use more interactions")
    return Neighbors(*_best(*(np.concatenate(part) for part in zip(*found, strict=True))))


def _sample_rows(matrix: Any, size: int, rng: np.random.Generator) -> Any:
    """Return a CSR matrix with a random sample of ``size`` entries of each row that has more."""
    from scipy import sparse

    counts = np.diff(matrix.indptr)
    row = np.repeat(np.arange(len(counts)), counts)
    large = np.flatnonzero(counts[row] > size)
    if not len(large):
        return matrix
    shuffled = large[np.lexsort((rng.random(len(large)), row[large]))]
    kept = np.ones(len(row), dtype=bool)
    kept[shuffled[_rank_in_run(row[large]) >= size]] = False
    indptr = np.concatenate(([0], np.cumsum(np.minimum(counts, size))))
    return sparse.csr_array((matrix.data[kept], matrix.indices[kept], indptr), shape=matrix.shape)


def _rank_in_run(values: NDArray[Any]) -> Integers:
    """Return the position of each value in its run of equal values.

    Examples
    --------
    >>> _rank_in_run(np.array([4, 4, 7])).tolist()
    [0, 1, 0]
    """
    starts = _starts(values)
    return np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))


def _split(ends: Integers, size: int) -> Iterator[tuple[int, int]]:
    """Yield (first, past the last) of consecutive parts of at most ``size`` together, at least one part.

    Examples
    --------
    >>> list(_split(np.array([0, 2, 4, 9]), 4))
    [(0, 2), (2, 3)]
    """
    first = 0
    while first < len(ends) - 1:
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + size, side="right")) - 1)
        yield first, last
        first = last


def _score(
    rows: Any, indptr: Integers, anchors: Integers, weights: Floats, alpha: float
) -> tuple[Integers, Integers, Floats]:
    """Score a chunk of anchors, columns ``(A,)`` of the click matrix.

    ``rows`` ``(R, I)`` holds the clicks of the users of one anchor after the other, ``indptr`` ``(A + 1,)`` the rows of
    each anchor, ``weights`` ``(R,)`` the w of each row's user. Returns columns of the anchor and of the other item, and
    the score, each ``(C,)``.
    """
    sizes = np.diff(indptr).astype(np.int64)
    anchor = np.repeat(np.arange(len(sizes)), sizes)
    rank = _rank_in_run(anchor)
    column, row = _shared_clicks(rows, anchor, anchors)
    starts = _starts(column)
    counts = np.diff(starts, append=len(column))
    ends, terms = (np.concatenate(([0], np.cumsum(number))) for number in (counts, counts * (counts - 1) // 2))
    # The pairs of an anchor's users are the cells of a square.
    squares = np.concatenate(([0], np.cumsum(sizes**2)))
    cells_of_row = squares[anchor] + rank * sizes[anchor]

    @lru_cache(maxsize=4)
    def expand(first: int, last: int) -> tuple[Integers, Integers, Integers]:
        """Return the two rows and the cell of each term of some columns."""
        part = slice(ends[first], ends[last])
        u, v = (row[part][index] for index in _pairs_in_run(column[part]))
        return u, v, cells_of_row[v] + rank[u]

    chunks = list(_split(terms, CHUNK_TERMS))
    shared_items = np.ones(squares[-1], dtype=np.int32)  # the anchor
    for first, last in chunks:
        shared_items += np.bincount(expand(first, last)[2], minlength=len(shared_items)).astype(np.int32)
    scores: list[Floats] = [np.empty(0)]
    for first, last in chunks:
        u, v, cell = expand(first, last)
        values = weights[v] * weights[u] / (alpha + shared_items[cell])
        scores.append(np.add.reduceat(values, terms[first:last] - terms[first]))
    number, item = np.divmod(column[starts], rows.shape[1])
    return anchors[number], item, np.concatenate(scores)


def _shared_clicks(rows: Any, anchor: Integers, anchors: Integers) -> tuple[Integers, Integers]:
    """Return the clicks on items that two or more users of an anchor clicked, the anchor excluded.

    The arguments are as in ``_score``, ``anchor`` ``(R,)`` is the anchor of each row, 0 to A - 1. Returns
    ``anchor * I + item`` and the row of each click, ``(E,)``, sorted by both.
    """
    row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    # One integer for column and row is sorted several times as fast as two keys.
    keys = (anchor[row] * rows.shape[1] + rows.indices) * rows.shape[0] + row
    column, row = np.divmod(np.sort(keys[rows.indices != anchors[anchor[row]]]), rows.shape[0])
    counts = np.diff(_starts(column), append=len(column))
    shared = np.repeat(counts > 1, counts)
    return column[shared], row[shared]


def _pairs_in_run(values: NDArray[Any]) -> tuple[Integers, Integers]:
    """Return the indices of all pairs of equal values, ``(T,)`` each; equal values are adjacent.

    Examples
    --------
    >>> earlier, later = _pairs_in_run(np.array([4, 4, 4, 7, 7]))
    >>> list(zip(earlier.tolist(), later.tolist()))
    [(0, 1), (0, 2), (1, 2), (3, 4)]
    """
    rank = _rank_in_run(values)
    later = np.repeat(np.arange(len(values)), rank)
    earlier = np.arange(len(later)) + np.repeat(np.arange(len(values)) - np.cumsum(rank), rank)
    return earlier, later


def _best(
    items: Integers, neighbors: Integers, scores: Floats, top_k: int | None = None
) -> tuple[Integers, Integers, Floats]:
    """Sort by item, then by falling score, then by neighbor, and keep the first ``top_k`` of each item."""
    order = np.lexsort((neighbors, -scores, items))
    items, neighbors, scores = items[order], neighbors[order], scores[order]
    if top_k is None:
        return items, neighbors, scores
    kept = _rank_in_run(items) < top_k
    return items[kept], neighbors[kept], scores[kept]
