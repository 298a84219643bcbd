"""The clicks of each user of a training split, in their order.

Shapes: U users, N clicks, I items, B positions of a batch, J negatives, X distinct items of a batch, H history items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.data.ids import AS_IS, Numbering
from fuxictr_mm.embeddings.click_rows import Integers, pack, read_click_rows
from fuxictr_mm.errors import DataError
from fuxictr_mm.files import StrPath

#: Held-out next items that an evaluation scores, at most.
MAX_EVALUATED = 4096


@dataclass(frozen=True)
class Sequences:
    """The clicks of users, user after user, of each the oldest first."""

    users: Integers  #: ``(N,)``, numbers of users, ascending.
    items: Integers  #: ``(N,)``, item ids.

    @classmethod
    def read(cls, path: StrPath, label: str = "label", numbering: Numbering = AS_IS) -> Sequences:
        """Read the longest history of each user, followed by the clicked targets that it does not have.

        The histories of a user's rows are mostly prefixes of one another; of equally long ones the last is read.
        Targets are in the order of the rows. The file is read twice. Memory is 20 bytes a row, and some copies of 16
        bytes for each click that is returned.

        Raises
        ------
        DataError, MissingFileError
            A column is missing or holds something other than ids, or no user has two clicks.
        """
        rows: list[tuple[Integers, Integers, Integers]] = []
        for chunk in read_click_rows(path, label, numbering):
            lengths = np.bincount(chunk.row_of, minlength=len(chunk.users))
            rows.append((chunk.users, lengths.astype(np.int32), chunk.clicked))
        if not rows:
            raise DataError(f"{path}: no rows, expected at least one")
        users, lengths, clicked = (np.concatenate(part) for part in zip(*rows, strict=True))
        # Users in the order in which they come first, so that results do not depend on their ids.
        _, first, number = np.unique(users, return_index=True, return_inverse=True)
        users = np.argsort(np.argsort(first))[number.ravel()]
        order = np.lexsort((lengths, users))  # stable
        longest = np.zeros(len(users), dtype=bool)
        longest[order[np.diff(users[order], append=-1) != 0]] = True
        start, parts = 0, []
        for chunk in read_click_rows(path, label, numbering):
            row = start + chunk.row_of
            kept = longest[row]
            parts.append((users[row[kept]], chunk.history[kept]))
            start += len(chunk.users)
        history_users, history = (np.concatenate(part) for part in zip(*parts, strict=True))
        new = clicked > 0
        keys = pack(users[new], clicked[new])
        first = np.sort(np.unique(keys, return_index=True)[1])
        first = first[~np.isin(keys[first], pack(history_users, history))]
        users = np.concatenate([history_users, users[new][first]])
        items = np.concatenate([history, clicked[new][first]])
        order = np.argsort(users, kind="stable")
        if not (np.diff(users[order]) == 0).any():
            raise DataError(f"{path}: no user has two clicks, expected histories of items, or clicked targets")
        return cls(users[order], items[order])


@dataclass(frozen=True)
class NextItemBatch:
    """Next items, their negatives and the items before them; of each item the index in ``items``."""

    items: Integers  #: ``(X,)`` rows of the table of items.
    candidates: Integers  #: ``(B, 1 + J)``, the next item first.
    counts: NDArray[np.bool_]  #: ``(B, 1 + J)``, False for a negative that the user clicked.
    offsets: Integers  #: ``(B + 1,)`` of the history of each position.
    history: Integers  #: ``(H,)``, oldest first.


class NextItems:
    """Next items to predict from the items before them, of users for training and of users that are held out.

    Negatives are clicks of the training users, so that an item is sampled in proportion to its clicks.

    Parameters
    ----------
    sequences : Sequences
        By item id.
    item_ids : ndarray
        ``(I,)`` int64, of the rows of the table of items, ascending. Other items are left out.
    held_out : float
        Fraction of the users that are held out.
    max_len : int
        Most items before the next one, the newest.
    negatives : int
        J.
    seed : int
        Of the held-out users.
    """

    def __init__(
        self, sequences: Sequences, item_ids: Integers, held_out: float, max_len: int, negatives: int, seed: int
    ) -> None:
        known = np.isin(sequences.items, item_ids)
        distinct, self.users = np.unique(sequences.users[known], return_inverse=True)
        self.rows = np.searchsorted(item_ids, sequences.items[known])
        self.starts = np.searchsorted(self.users, self.users)
        self.num_items, self.max_len, self.negatives = len(item_ids), max_len, negatives
        rng = np.random.default_rng(seed)
        is_held = np.zeros(len(distinct), dtype=bool)
        is_held[rng.permutation(len(distinct))[: round(held_out * len(distinct))]] = True
        positions = np.flatnonzero(np.arange(len(self.users)) > self.starts)
        held = is_held[self.users[positions]]
        self.train, self.held = positions[~held], rng.permutation(positions[held])[:MAX_EVALUATED]
        if not len(self.train) or not len(self.held):
            raise DataError(
                f"{len(distinct)} users with {len(positions)} clicks that follow another, on items with an embedding: "
                f"too few for training and a fraction of {held_out:g} held-out users, who need such clicks as well; "
                "check that both files use the same ids, give more interactions, or increase --held-out"
            )
        self.pool = self.rows[~is_held[self.users]]
        self._clicked = np.unique(self.users * self.num_items + self.rows)

    def sample(self, count: int, rng: np.random.Generator) -> NextItemBatch:
        """Sample ``count`` positions uniformly."""
        return self.batch(self.train[rng.integers(len(self.train), size=count)], rng)

    def batch(self, positions: Integers, rng: np.random.Generator) -> NextItemBatch:
        """Return the next items at positions ``(B,)`` with sampled negatives."""
        negatives = self.pool[rng.integers(len(self.pool), size=(len(positions), self.negatives))]
        keys = self.users[positions][:, None] * self.num_items + negatives
        found = np.searchsorted(self._clicked, keys).clip(max=len(self._clicked) - 1)
        counts = np.pad(self._clicked[found] != keys, ((0, 0), (1, 0)), constant_values=True)
        first = np.maximum(self.starts[positions], positions - self.max_len)
        offsets = np.concatenate([[0], np.cumsum(positions - first)])
        entries = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], positions - first)
        candidates = np.column_stack([self.rows[positions], negatives])
        every = np.concatenate([candidates.ravel(), self.rows[entries]])
        items, index = np.unique(every, return_inverse=True)
        index = index.ravel()
        return NextItemBatch(
            items, index[: candidates.size].reshape(candidates.shape), counts, offsets, index[candidates.size :]
        )


def share_below(scores: NDArray[Any], counts: NDArray[np.bool_]) -> tuple[float, int]:
    """Return how many negatives are scored below their next item, equal ones as half, and of how many.

    ``scores`` and ``counts`` ``(B, 1 + J)`` are as in a batch.

    Examples
    --------
    >>> share_below(np.array([[0.3, 0.1, 0.3, 0.9]]), np.array([[True, True, True, False]]))
    (1.5, 2)
    """
    next_item, negatives, counted = scores[:, :1], scores[:, 1:], counts[:, 1:]
    below = ((negatives < next_item) + 0.5 * (negatives == next_item)) * counted
    return float(below.sum()), int(counted.sum())
