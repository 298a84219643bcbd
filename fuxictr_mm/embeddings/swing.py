"""Who clicked what, from the interactions of a training split.

Shapes: U users, N clicks (each pair of a user and an item once), R rows of a chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fuxictr_mm.data import parquet
from fuxictr_mm.errors import ConfigError, DataError
from fuxictr_mm.files import write_beside
from fuxictr_mm.terminal import item_bar

#: A click is one number: the user's id in the bits above the item's.
ITEM_BITS = 31


MAX_USERS = 2**32


#: Clicks gathered before they are merged into those known: bounds the memory of repeated ones.
MERGE_CLICKS = 8_000_000


@dataclass(frozen=True)
class Clicks:
    """The distinct items of each user, users in the order of their ids.

    Two users, of whom the second clicked one item::

        user 3: {5, 9}
        user 8: {2}       ->   users = [3, 8], items = [5, 9, 2], offsets = [0, 2, 3]

    Parameters
    ----------
    users : ndarray of int64, (U,)
        Their ids, ascending.
    items : ndarray of int32, (N,)
        Item ids, user after user, ascending within each.
    offsets : ndarray of int64, (U + 1,)
        User number u clicked items[offsets[u] : offsets[u + 1]].
    """

    users: NDArray[np.int64]
    items: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many items each user clicked, (U,)."""
        return np.diff(self.offsets)

    @classmethod
    def from_pairs(cls, users: NDArray, items: NDArray) -> Clicks:
        """Gather pairs, ``users`` (N',) and ``items`` (N',), in any order and with repetitions.

        Examples
        --------
        >>> clicks = Clicks.from_pairs(np.array([8, 3, 3, 8]), np.array([2, 9, 5, 2]))
        >>> clicks.users.tolist(), clicks.items.tolist(), clicks.offsets.tolist()
        ([3, 8], [5, 9, 2], [0, 2, 3])
        """
        return cls._from_keys(_distinct(_keys(users, items)))

    @classmethod
    def _from_keys(cls, keys: NDArray[np.int64]) -> Clicks:
        user_of_click = keys >> ITEM_BITS
        starts = _group_starts(user_of_click)
        users = user_of_click[starts]
        items = (keys & ((1 << ITEM_BITS) - 1)).astype(np.int32)
        return cls(users, items, np.append(starts, len(keys)))

    @classmethod
    def read(cls, path: str | os.PathLike[str], label: str = "label") -> Clicks:
        """Read the clicks of a training split: the histories of a user's rows and the targets whose label is 1.

        Histories are earlier clicks of the user. An item counts once per user, in however many rows it stands. Give it
        the training split and nothing else: what is learned from valid or test clicks cannot be measured on them.

        Parameters
        ----------
        path : path
            ``X.parquet``, ``X`` or a folder of part files, with ``user_id``, ``item_id``, ``item_seq`` and the label.
        label : str
            Label column.

        Raises
        ------
        DataError, MissingFileError
            A column is missing or holds something else than ids, or nobody clicked anything.
        """
        known: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        fresh: list[NDArray[np.int64]] = []
        for keys in _chunk_keys(path, label):
            fresh.append(keys)
            if sum(map(len, fresh)) >= MERGE_CLICKS:
                known, fresh = _distinct(np.concatenate([known, *fresh])), []
        known = _distinct(np.concatenate([known, *fresh]))
        if not len(known):
            raise DataError(f"{path}: no click in it (no item_seq with an item, no {label} of 1), expected some")
        return cls._from_keys(known)


def _chunk_keys(path: str | os.PathLike[str], label: str) -> Iterator[NDArray[np.int64]]:
    for file in parquet.part_files(path):
        for row, batch in parquet.read_chunks(file, ["user_id", "item_id", "item_seq", label]):
            users = parquet.scalars(batch.column("user_id"), f"{file}: user_id", row)
            wrong = (users < 0) | (users >= MAX_USERS)
            if wrong.any():
                bad = int(np.flatnonzero(wrong)[0])
                raise DataError(
                    f"{file}: user_id: row {row + bad} holds the id {users[bad]}, expected 0 to {MAX_USERS - 1}; "
                    "number the ids anew"
                )
            targets = parquet.scalars(batch.column("item_id"), f"{file}: item_id", row)
            parquet.check_ids(targets, None, f"{file}: item_id", row)
            labels = parquet.scalars(batch.column(label), f"{file}: {label}", row, floating=True)
            flat, offsets = parquet.lists(batch.column("item_seq"), f"{file}: item_seq", row)
            real = np.flatnonzero(flat)
            row_of = np.repeat(np.arange(len(users)), np.diff(np.searchsorted(real, offsets)))
            history = parquet.integers(flat[real], f"{file}: item_seq", row + row_of)
            parquet.check_ids(history, None, f"{file}: item_seq", row + row_of)
            positive = (labels > 0) & (targets > 0)
            pairs = [_keys(users[row_of], history), _keys(users[positive], targets[positive])]
            yield _distinct(np.concatenate(pairs))


def _keys(users: NDArray, items: NDArray) -> NDArray[np.int64]:
    return (users.astype(np.int64) << ITEM_BITS) | items.astype(np.int64)


def _distinct(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    keys = np.sort(keys)
    return keys[_group_starts(keys)]


def _group_starts(values: NDArray) -> NDArray[np.int64]:
    """Where each run of equal values begins."""
    if not len(values):
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))


#: Pairs of users (shared item or not) and clicks of a block of anchors: bounds its memory, and keeps it in the cache.
BLOCK_PAIRS = 2_000_000


BLOCK_ENTRIES = 1_000_000


#: Terms expanded at once, and chunks of them that are kept between the two passes rather than expanded again.
CHUNK_TERMS = 4_000_000


KEPT_CHUNKS = 4


#: The most users that an anchor may be scored over: bounds its square of counts, and the terms of one column.
MOST_USERS = 5000


Integers = NDArray[np.int64]


Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Neighbors:
    """The nearest items of each item, best first.

    Two items, of which the first has two neighbours::

        item 2: 7 (0.5), 4 (0.1)
        item 7: 2 (0.5)             ->   item_ids = [2, 7], offsets = [0, 2, 3], neighbors = [7, 4, 2]

    Parameters
    ----------
    item_ids : ndarray of int64, (I,)
        Items that have a neighbour, ascending.
    offsets : ndarray of int64, (I + 1,)
        Item number n has neighbors[offsets[n] : offsets[n + 1]].
    neighbors : ndarray of int64, (M,)
        Item ids.
    scores : ndarray of float64, (M,)
        Their scores, above zero, falling within an item.
    """

    item_ids: Integers
    offsets: Integers
    neighbors: Integers
    scores: Floats

    @property
    def anchors(self) -> Integers:
        """The item that each neighbour is one of, (M,)."""
        return np.repeat(self.item_ids, np.diff(self.offsets))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file of ``item_id``, ``neighbors`` and ``scores`` (lists), one row per item."""
        offsets = pa.array(self.offsets, pa.int64())
        table = pa.table(
            {
                "item_id": self.item_ids,
                "neighbors": pa.LargeListArray.from_arrays(offsets, pa.array(self.neighbors)),
                "scores": pa.LargeListArray.from_arrays(offsets, pa.array(self.scores)),
            }
        )
        write_beside(path, lambda stream: pq.write_table(table, stream, compression="zstd"))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Neighbors:
        """Read what `write` wrote, or the like of another tool; items in any order.

        Raises
        ------
        DataError, MissingFileError
            A column is missing, an id repeated, lists are of unequal length, or a score is not above zero.
        """
        ids, lengths, neighbors, scores = [], [], [], []
        for file in parquet.part_files(path):
            for row, batch in parquet.read_chunks(file, ["item_id", "neighbors", "scores"]):
                ids.append(parquet.scalars(batch.column("item_id"), f"{file}: item_id", row))
                parquet.check_ids(ids[-1], None, f"{file}: item_id", row)
                found, offsets = parquet.lists(batch.column("neighbors"), f"{file}: neighbors", row)
                score, score_offsets = parquet.lists(batch.column("scores"), f"{file}: scores", row)
                unequal = np.flatnonzero(np.diff(offsets) != np.diff(score_offsets))
                if len(unequal):
                    raise DataError(f"{file}: row {row + unequal[0]}: expected as many scores as neighbors")
                row_of = row + np.repeat(np.arange(batch.num_rows), np.diff(offsets))
                neighbors.append(parquet.integers(found, f"{file}: neighbors", row_of))
                parquet.check_ids(neighbors[-1], None, f"{file}: neighbors", row_of)
                wrong = np.flatnonzero(~((score > 0) & np.isfinite(score)))
                if len(wrong):
                    raise DataError(
                        f"{file}: scores: row {row_of[wrong[0]]} holds {score[wrong[0]]}, expected numbers above 0"
                    )
                scores.append(score.astype(np.float64))
                lengths.append(np.diff(offsets))
        if not sum(map(len, neighbors)):
            raise DataError(f"{path}: no neighbour in it, expected some")
        item_ids = np.concatenate(ids)
        repeated = np.flatnonzero(np.bincount(np.unique(item_ids, return_inverse=True)[1]) > 1)
        if len(repeated):
            raise DataError(
                f"{path}: item_id {np.unique(item_ids)[repeated[0]]} is there twice, expected one row per item"
            )
        anchors = np.repeat(item_ids, np.concatenate(lengths))
        return _best(anchors, np.concatenate(neighbors), np.concatenate(scores), len(anchors))


def swing(
    clicks: Clicks,
    *,
    alpha: float = 1.0,
    user_weight: float = 0.5,
    top_k: int = 50,
    users_per_item: int = 500,
    items_per_user: int = 100,
    seed: int = 0,
    verbose: int = 1,
) -> Neighbors:
    r"""Return the `top_k` items of the highest Swing score of each item.

    Parameters
    ----------
    clicks : Clicks
        Of the training split.
    alpha : float
        Above 0: the larger, the less it matters how much two users share besides.
    user_weight : float
        Exponent beta of :math:`w_u = |I_u|^{-\beta}`; 0 weighs all users alike.
    top_k : int
        Neighbours kept of each item; ties go to the smaller id.
    users_per_item : int
        A more popular anchor is scored over this many of its users, drawn at random, all their clicks counting; its
        scores are scaled by the number of pairs left out, so that they estimate the full sum without bias. Work and
        memory of an anchor grow with the square; none may be scored over more than ``MOST_USERS``.
    items_per_user : int
        Of a user who clicked more, this many items are drawn at random, and only they count, in |I_u| as well: such
        users are crawlers more often than people.
    seed : int
        Of both draws; without them the result does not depend on it.
    verbose : int
        0 shows no progress bar.

    Returns
    -------
    Neighbors

    Raises
    ------
    ConfigError
        A number is out of its range.
    DataError
        No two users share two items.
    """
    for name, value, least in (
        ("top_k", top_k, 1),
        ("users_per_item", users_per_item, 2),
        ("items_per_user", items_per_user, 2),
    ):
        if value < least:
            raise ConfigError(f"swing: {name} is {value}, expected at least {least}")
    if not (np.isfinite(alpha) and alpha > 0):
        raise ConfigError(f"swing: alpha is {alpha}, expected a number above 0")
    if not (np.isfinite(user_weight) and user_weight >= 0):
        raise ConfigError(f"swing: user_weight is {user_weight}, expected 0 or more")
    rng = np.random.default_rng(seed)
    # Items by their place among those clicked: a large id would not fit beside the others in a sort key.
    item_ids = np.unique(clicks.items).astype(np.int64)
    places = np.searchsorted(item_ids, clicks.items).astype(np.int32)
    clicks = _cap_users(Clicks(clicks.users, places, clicks.offsets), items_per_user, rng)
    anchors = _Anchors.draw(clicks, users_per_item, rng)
    largest = int(np.diff(anchors.offsets).max(initial=0))
    if largest > MOST_USERS:
        raise ConfigError(
            f"swing: users_per_item is {users_per_item}, and an item has {largest} users to be scored over; memory "
            f"grows with their square: expected at most {MOST_USERS}"
        )
    weights = clicks.counts.astype(np.float64) ** -user_weight
    found: list[tuple[Integers, Integers, Floats]] = []
    with item_bar(len(anchors.items), "swing", verbose) as bar:
        for first, last in anchors.blocks(clicks.counts):
            best = _best(*_score_block(clicks, anchors, weights, alpha, first, last), top_k)
            found.append((item_ids[best.anchors], item_ids[best.neighbors], best.scores))
            bar.update(last - first)
    if not any(len(part[0]) for part in found):
        raise DataError("swing: no two users share two items, so that nothing is alike; give more interactions")
    anchor_ids, neighbor_ids, scores = (np.concatenate(part) for part in zip(*found, strict=True))
    return _best(anchor_ids, neighbor_ids, scores, top_k)


@dataclass(frozen=True)
class _Anchors:
    """Items with the users that they are scored over.

    Parameters
    ----------
    items : ndarray of int64, (I,)
        Item ids, ascending; each has two users or more.
    users : ndarray of int64, (R,)
        Numbers of users, item after item.
    offsets : ndarray of int64, (I + 1,)
        Where each item's begin and end.
    scale : ndarray of float64, (I,)
        Pairs of users there are, over pairs that are left.
    """

    items: Integers
    users: Integers
    offsets: Integers
    scale: Floats

    @classmethod
    def draw(cls, clicks: Clicks, most: int, rng: np.random.Generator) -> _Anchors:
        user_of_click = np.repeat(np.arange(len(clicks.users)), clicks.counts)
        useful = np.flatnonzero(clicks.counts[user_of_click] > 1)  # one click makes no pair of items
        by_item = useful[np.argsort(clicks.items[useful], kind="stable")]
        items, counts = np.unique(clicks.items[by_item], return_counts=True)
        kept = _draw_of_each(counts, most, rng)
        users = user_of_click[by_item[kept]]
        left = np.minimum(counts, most)
        paired = np.repeat(left > 1, left)
        scale = counts * (counts - 1.0) / np.maximum(left * (left - 1.0), 1)
        offsets = np.concatenate(([0], np.cumsum(left[left > 1])))
        return cls(items[left > 1].astype(np.int64), users[paired], offsets, scale[left > 1])

    def blocks(self, clicks_per_user: Integers) -> Iterator[tuple[int, int]]:
        """Yield (first, past the last) anchors, at least one: pairs of users and their clicks are bounded."""
        entries = np.concatenate(([0], np.cumsum(clicks_per_user[self.users])))[self.offsets]
        pairs = np.concatenate(([0], np.cumsum(np.diff(self.offsets) ** 2)))
        first = 0
        while first < len(self.items):
            last = min(
                np.searchsorted(entries, entries[first] + BLOCK_ENTRIES, side="right"),
                np.searchsorted(pairs, pairs[first] + BLOCK_PAIRS, side="right"),
            )
            last = max(first + 1, int(last) - 1)
            yield first, last
            first = last


def _cap_users(clicks: Clicks, most: int, rng: np.random.Generator) -> Clicks:
    kept = _draw_of_each(clicks.counts, most, rng)
    counts = np.minimum(clicks.counts, most)
    return Clicks(clicks.users, clicks.items[kept], np.concatenate(([0], np.cumsum(counts))))


def _draw_of_each(counts: Integers, most: int, rng: np.random.Generator) -> Integers:
    """Return the places, ascending, of at most `most` members of each of the groups that follow each other.

    Examples
    --------
    >>> _draw_of_each(np.array([2, 1]), 2, np.random.default_rng(0)).tolist()
    [0, 1, 2]
    """
    group = np.repeat(np.arange(len(counts)), counts)
    large = np.flatnonzero(counts[group] > most)
    kept = np.ones(len(group), dtype=bool)
    if len(large):
        order = large[np.lexsort((rng.random(len(large)), group[large]))]
        sizes = counts[counts > most]
        rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        kept[order[rank >= most]] = False
    return np.flatnonzero(kept)


def _score_block(
    clicks: Clicks, anchors: _Anchors, weights: Floats, alpha: float, first: int, last: int
) -> tuple[Integers, Integers, Floats]:
    """Score the anchors `first` to `last` - 1; returns their items, the others' and the scores, each (C,)."""
    row_counts = np.diff(anchors.offsets[first : last + 1])
    users = anchors.users[anchors.offsets[first] : anchors.offsets[last]]
    anchor_of_row = np.repeat(np.arange(last - first), row_counts)
    rank_of_row = np.arange(len(users)) - np.repeat(np.cumsum(row_counts) - row_counts, row_counts)

    # Entries, sorted by (anchor, item, row): one number each, so that a plain sort does.
    lengths = clicks.counts[users]
    ends = np.cumsum(lengths)
    row = np.repeat(np.arange(len(users)), lengths)
    item = clicks.items[np.arange(ends[-1]) + np.repeat(clicks.offsets[users] - ends + lengths, lengths)].astype(
        np.int64
    )
    third = item != anchors.items[first + anchor_of_row[row]]  # the anchor itself is shared by all pairs
    row_bits, item_bits = len(users).bit_length(), int(clicks.items.max()).bit_length()
    column = (anchor_of_row[row] << item_bits) | item
    keys = np.sort(((column << row_bits) | row)[third])
    column, row = keys >> row_bits, keys & ((1 << row_bits) - 1)

    # Columns of two users or more.
    starts = (
        np.flatnonzero(np.concatenate(([True], column[1:] != column[:-1]))) if len(column) else np.empty(0, np.int64)
    )
    sizes = np.diff(np.append(starts, len(column)))
    shared = sizes > 1
    row = row[np.repeat(shared, sizes)]
    column, sizes = column[starts[shared]], sizes[shared]
    if not len(sizes):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)

    # Pairs of users have a cell each in a square per anchor, where the items that they share are counted.
    cell_starts = np.concatenate(([0], np.cumsum(row_counts**2)))
    cell_of_row = cell_starts[anchor_of_row] + rank_of_row * row_counts[anchor_of_row]
    chunks = list(_term_chunks(sizes))
    kept: dict[int, _Terms] = {}

    def expanded() -> Iterator[_Terms]:
        for number, (begin, end) in enumerate(chunks):
            part = kept.get(number) or _Terms.expand(row, sizes, begin, end, cell_of_row, rank_of_row)
            if number < KEPT_CHUNKS:
                kept[number] = part
            yield part

    shared_items = np.zeros(cell_starts[-1], dtype=np.int32)
    for part in expanded():
        shared_items += np.bincount(part.cell, minlength=len(shared_items)).astype(np.int32)
    row_weight = weights[users]
    scores = np.concatenate([part.sums(shared_items, row_weight, alpha) for part in expanded()])
    anchor = first + (column >> item_bits)
    return anchors.items[anchor], column & ((1 << item_bits) - 1), scores * anchors.scale[anchor]


def _term_chunks(sizes: Integers) -> Iterator[tuple[int, int]]:
    """Yield (first, past the last) columns so that about `CHUNK_TERMS` terms are expanded at once."""
    terms = np.cumsum(sizes * (sizes - 1) // 2)
    first = 0
    while first < len(sizes):
        done = terms[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(terms, done + CHUNK_TERMS, side="right")))
        yield first, last
        first = last


@dataclass(frozen=True)
class _Terms:
    """Pairs of users of some columns.

    Parameters
    ----------
    cell : ndarray of int32 or int64, (T,)
        Which pair of users.
    repeats : ndarray of int64, (E,)
        How many pairs each entry is the later one of.
    row, partner : ndarray of int64, (E,), (T,)
        Row of each entry; row of the earlier one of each pair.
    starts : ndarray of int64, (C,)
        First term of each column.
    """

    cell: NDArray
    repeats: Integers
    row: Integers
    partner: Integers
    starts: Integers

    @classmethod
    def expand(
        cls, row: Integers, sizes: Integers, first: int, last: int, cell_of_row: Integers, rank_of_row: Integers
    ) -> _Terms:
        begin = int(sizes[:first].sum())
        sizes = sizes[first:last]
        row = row[begin : begin + int(sizes.sum())]
        column_starts = np.cumsum(sizes) - sizes
        place = np.arange(len(row)) - np.repeat(column_starts, sizes)  # in its column: as many pairs with earlier ones
        ends = np.cumsum(place)
        partner_place = np.arange(ends[-1]) - np.repeat(ends - place - np.repeat(column_starts, sizes), place)
        partner = row[partner_place]
        cell = np.repeat(cell_of_row[row], place) + rank_of_row[partner]
        pairs = sizes * (sizes - 1) // 2
        return cls(cell, place, row, partner, np.cumsum(pairs) - pairs)

    def sums(self, shared_items: NDArray[np.int32], row_weight: Floats, alpha: float) -> Floats:
        """Return the score of each column, (C,)."""
        terms = np.repeat(row_weight[self.row], self.repeats)
        terms *= row_weight[self.partner]
        terms /= alpha + 1 + shared_items[self.cell]  # and the anchor
        return np.add.reduceat(terms, self.starts)


def _best(anchors: Integers, items: Integers, scores: Floats, top_k: int) -> Neighbors:
    """Keep the `top_k` best of each anchor, best first, ties by id."""
    order = np.lexsort((items, -scores, anchors))
    anchors, items, scores = anchors[order], items[order], scores[order]
    item_ids, counts = np.unique(anchors, return_counts=True)
    rank = np.arange(len(anchors)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = rank < top_k
    offsets = np.concatenate(([0], np.cumsum(np.minimum(counts, top_k))))
    return Neighbors(item_ids, offsets, items[kept], scores[kept])
