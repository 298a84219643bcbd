"""Histories and rows of synthetic data: who liked what before, and which pair of user and item was shown.

Shapes: B rows, L history, U users, I items, K topics of one half, E events (items liked by the users of a chunk),
M candidates of an event, N items of all histories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.data.synthetic_world import Integers, Stream, World, draw_below, generator

SPLITS = {"train": Stream.TRAIN, "valid": Stream.VALID, "test": Stream.TEST}


@dataclass(frozen=True)
class Histories:
    """What each user liked, oldest first, each item once, at most `seq_len` of them.

    Two users after the padding user 0, of whom the first liked nothing::

        [[], [], [4, 9]]  ->  values = [4, 9], offsets = [0, 0, 0, 2]

    Parameters
    ----------
    values : ndarray of int32, (N,)
        Item ids, user after user.
    offsets : ndarray of int64, (U + 2,)
        User u's items are values[offsets[u] : offsets[u + 1]].
    pairs : ndarray of int64, (N,)
        Sorted user * (I + 1) + item, for `contains`.
    """

    values: NDArray[np.int32]
    offsets: Integers
    pairs: Integers

    @classmethod
    def from_counts(cls, values: NDArray[np.int32], counts: Integers, items: int) -> Histories:
        """Join the items of users 1, 2, ... who liked `counts` (U,) of them."""
        offsets = np.concatenate([[0, 0], np.cumsum(counts, dtype=np.int64)])
        users = np.repeat(np.arange(1, len(counts) + 1, dtype=np.int64), counts)
        pairs: Integers = np.sort(users * (items + 1) + values.astype(np.int64), kind="stable")
        return cls(values, offsets, pairs)

    def contains(self, users: Integers, items: Integers, item_count: int) -> NDArray[np.bool_]:
        """Tell for each pair (B,) whether the user liked the item."""
        wanted = users * (item_count + 1) + items
        place = np.searchsorted(self.pairs, wanted)
        found = np.zeros(len(wanted), dtype=bool)
        inside = place < len(self.pairs)
        found[inside] = self.pairs[place[inside]] == wanted[inside]
        return found

    def padded(self, users: Integers, lengths: Integers, width: int) -> Integers:
        """Take the oldest `lengths` (B,) items of `users` (B,), left padded with 0 to (B, width)."""
        first = self.offsets[users][:, None]
        place = first + lengths[:, None] - width + np.arange(width)
        real = place >= first
        rows = np.zeros(place.shape, dtype=np.int64)
        rows[real] = self.values[place[real]]
        return rows


def draw_history_chunk(
    world: World, exposure: NDArray[np.float64], chunk: int, first: int, last: int
) -> tuple[NDArray[np.int32], Integers]:
    """Draw what the users first + 1 to last liked.

    For each event M candidates are drawn by `exposure` (I + 1,); the user takes the one with the largest
    preference * (text affinity + image affinity) + Gumbel noise, that is, one drawn from a softmax.

    Returns
    -------
    values : ndarray of int32, (E',)
        Item ids, user after user; an item liked twice is kept once.
    counts : ndarray of int64, (last - first,)
        How many each user liked.
    """
    spec = world.spec
    rng = generator(spec, Stream.HISTORIES, chunk)
    scale = (spec.history_mean + 0.5) / spec.history_shape  # half more, for rounding down
    drawn = rng.gamma(spec.history_shape, scale, last - first).astype(np.int64)
    user = np.repeat(np.arange(last - first), np.minimum(drawn, 2 * spec.seq_len))
    candidates = draw_exposed(rng, exposure, (len(user), spec.history_candidates))
    score = -np.log(-np.log(rng.random(candidates.shape)))
    for taste, topics in ((world.text_taste, world.text_topics), (world.image_taste, world.image_topics)):
        affinity = np.einsum("ek,emk->em", taste[first + 1 : last + 1][user], topics[candidates])
        score += spec.history_preference / np.sqrt(2) * affinity
    chosen = candidates[np.arange(len(user)), score.argmax(axis=1)]
    _, once = np.unique(user * (spec.items + 1) + chosen, return_index=True)
    once.sort()
    user, chosen = user[once], chosen[once]
    counts = np.bincount(user, minlength=last - first)
    from_the_end = np.repeat(np.cumsum(counts), counts) - np.arange(len(user))
    recent = from_the_end <= spec.seq_len
    return chosen[recent].astype(np.int32), np.minimum(counts, spec.seq_len)


def draw_row_chunk(
    world: World, histories: Histories, exposure: NDArray[np.float64], split: str, chunk: int, count: int
) -> dict[str, Integers]:
    """Draw `count` rows of a split: columns user_id, item_id, likes_level, views_level, label (B,), item_seq (B, L)."""
    spec = world.spec
    rng = generator(spec, SPLITS[split], chunk)
    users = 1 + draw_below(rng, spec.users, count)
    warm, cold = np.flatnonzero(~world.cold[1:]) + 1, np.flatnonzero(world.cold)
    popular = draw_exposed(rng, exposure, (count,))
    items = np.where(rng.random(count) < spec.popular_share, popular, warm[draw_below(rng, len(warm), count)])
    lengths = histories.offsets[users + 1] - histories.offsets[users]
    if split == "train":
        lengths = np.ceil(lengths * (0.5 + 0.5 * rng.random(count))).astype(np.int64)
    elif len(cold):
        items = np.where(rng.random(count) < spec.cold_share, cold[draw_below(rng, len(cold), count)], items)
    clash = np.flatnonzero(histories.contains(users, items, spec.items))
    while len(clash):  # ends: a history holds at most half as many items as are warm
        items[clash] = warm[draw_below(rng, len(warm), len(clash))]
        clash = clash[histories.contains(users[clash], items[clash], spec.items)]
    probability = 0.5 + 0.5 * np.tanh(world.true_logit(users, items) / 2)  # the sigmoid, without overflow
    return {
        "user_id": users,
        "item_id": items,
        "item_seq": histories.padded(users, lengths, spec.seq_len),
        "likes_level": world.likes_level[items],
        "views_level": world.views_level[items],
        "label": (rng.random(count) < probability).astype(np.int64),
    }


def draw_exposed(rng: np.random.Generator, exposure: NDArray[np.float64], shape: tuple[int, ...]) -> Integers:
    """Draw item ids by their cumulated chance `exposure` (I + 1,), which is 0 for the padding item."""
    return np.searchsorted(exposure, rng.random(shape), side="right")
