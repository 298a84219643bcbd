"""Negatives of logs that hold only positive events.

Shape letters: E events, S negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fuxictr_mm.datasets.reader import SPLITS

#: Samples of an item before there is none for a user.
ATTEMPTS = 100


def sample_negatives(
    users: np.ndarray,
    items: np.ndarray,
    splits: np.ndarray,
    num_items: int,
    wanted: np.ndarray,
    samplers: Mapping[str, Callable[[np.ndarray], np.ndarray]],
) -> tuple[np.ndarray, int | None]:
    """Return items that users have no event of, in the split of the negative or an earlier one.

    Events of later splits do not count: otherwise the positive items of test would be those that are never a negative
    of their user in training. An item that is sampled as often as the events of the split have it is no more
    often a negative there than a positive, also where items come and go.

    Parameters
    ----------
    users, items, splits : ndarray
        ``(E,)`` integers, items from 0 to ``num_items - 1``, and names of splits: all events of these users. An event
        of another name, such as an empty one, is before all splits.
    wanted : ndarray
        ``(S,)`` the event that each negative is for.
    samplers : mapping
        Of each split a function that returns an item for each event that it is given.

    Returns
    -------
    ndarray
        ``(S,)`` items.
    int or None
        The event of the first negative for which ``ATTEMPTS`` samples found none, if there is one.
    """
    negatives = np.zeros(len(wanted), dtype=items.dtype)
    keys = users * num_items
    so_far = ~np.isin(splits, SPLITS)
    for split in SPLITS:
        so_far |= splits == split
        seen = np.unique((keys + items)[so_far])
        left = np.flatnonzero(splits[wanted] == split)
        for _ in range(ATTEMPTS):
            if not left.size:
                break
            negatives[left] = samplers[split](wanted[left])
            sampled = keys[wanted[left]] + negatives[left]
            position = np.minimum(np.searchsorted(seen, sampled), len(seen) - 1)
            left = left[seen[position] == sampled]
        if left.size:
            return negatives, int(wanted[left[0]])
    return negatives, None


def sample_repeats(
    users: np.ndarray,
    items: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    wanted: np.ndarray,
    negatives: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Return negatives, those of an event whose item is in its history replaced by other items of that history.

    So whether an item is in the history does not tell positives from negatives. An item of the history is sampled as
    often as it occurs there. A negative whose history has no other item is kept.

    Parameters
    ----------
    users, items : ndarray
        ``(E,)`` integers: all events, sorted by user and time.
    begins, ends : ndarray
        ``(E,)`` the range of events that are the history of each.
    wanted, negatives : ndarray
        ``(S,)`` the event that each negative is for, and its item.
    generator : Generator
        Of random numbers.
    """
    negatives = negatives.copy()
    left = np.flatnonzero(_occurs_before(users, items, begins, ends)[wanted])
    moments = ends * (items.max(initial=0) + 1)  # events of one moment have the same end
    taken = np.unique(moments + items)
    for _ in range(ATTEMPTS):
        if not left.size:
            break
        event = wanted[left]
        sampled = items[generator.integers(begins[event], ends[event])]
        key = moments[event] + sampled
        is_taken = taken[np.minimum(np.searchsorted(taken, key), len(taken) - 1)] == key
        negatives[left[~is_taken]] = sampled[~is_taken]
        left = left[is_taken]
    return negatives


def _occurs_before(users: np.ndarray, items: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return whether the item of each event ``(E,)`` is in its history."""
    keys = users * (items.max(initial=0) + 1) + items
    pairs = np.unique(keys, return_inverse=True)[1].astype(np.int64) * len(users)  # which stay below 2**63
    events = np.sort(pairs + np.arange(len(users)))  # by pair and event
    newest = np.searchsorted(events, pairs + ends) - 1  # the last one of the pair, or of another, before the moment
    return (newest >= 0) & (events[newest] >= pairs + begins)
