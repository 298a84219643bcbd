"""A synthetic world: users and items with latent topics, who liked what before, and what was shown to whom.

The order of the random numbers is part of "same seed, same bytes".

Shapes: B examples, L history length, U users, I items, K topics of one half, E events (items liked by the users of a
chunk), M candidates of an event, N items of all histories.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.data.synthetic.spec import SyntheticSpec

#: Levels of likes and views, and tags of an item at most.
LEVELS, MAX_TAGS = 10, 5
#: Users whose tastes, or histories, are sampled at a time.
USER_CHUNK = 8192
#: Events whose candidates are compared at a time.
EVENT_CHUNK = 2**16

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class Stream(enum.IntEnum):
    """What a random generator is for. The numbers are part of "same seed, same bytes"."""

    ITEMS = 0
    USERS = 1
    HISTORIES = 2
    PROJECTIONS = 3
    EMBEDDINGS = 4
    TITLES = 5
    TRAIN = 6
    VALID = 7
    TEST = 8
    EMBEDDED = 9


SPLITS = {"train": Stream.TRAIN, "valid": Stream.VALID, "test": Stream.TEST}


def generator(spec: SyntheticSpec, stream: Stream, chunk: int = 0) -> np.random.Generator:
    """Return the random generator of one chunk of one stream."""
    return np.random.default_rng([spec.seed, int(stream), chunk])


def chunks(total: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (chunk number, start, stop) over ``total`` things.

    Examples
    --------
    >>> list(chunks(5, 2))
    [(0, 0, 2), (1, 2, 4), (2, 4, 5)]
    """
    for number, start in enumerate(range(0, total, size)):
        yield number, start, min(start + size, total)


@dataclass(frozen=True)
class World:
    """Latent truth about users and items. Rows are ids; row 0 is padding and all zeros."""

    spec: SyntheticSpec  #: The numbers it was made from.
    #: ``(I + 1, K)`` float32: topic weights of each half, centred, of standard deviation 1.
    text_topics: Floats
    image_topics: Floats
    popularity: Floats  #: ``(I + 1,)`` float32: standard normal; clicks and exposure grow with it.
    #: ``(I + 1,)`` int64: 1 to 10, ten equal parts of the items by two noisy readings of popularity.
    likes_level: Integers
    views_level: Integers
    cold: NDArray[np.bool_]  #: ``(I + 1,)`` bool: True for items that no history and no training row shows.
    tags: Integers  #: ``(I + 1, T)`` int64: left padded with 0.
    #: ``(U + 1, K)`` float32: norm 1 in each half.
    text_taste: Floats
    image_taste: Floats

    @classmethod
    def build(cls, spec: SyntheticSpec) -> World:
        """Sample the world of a specification."""
        rng = generator(spec, Stream.ITEMS)
        text_topics, image_topics = _sample_topics(rng, spec), _sample_topics(rng, spec)
        popularity = rng.standard_normal(spec.items).astype(np.float32)
        likes, views = popularity + 0.5 * rng.standard_normal((2, spec.items))
        cold = np.zeros(spec.items, dtype=bool)
        cold[np.argsort(rng.random(spec.items), kind="stable")[: spec.cold_count]] = True
        tags = _sample_tags(rng, spec, text_topics.argmax(axis=1), image_topics.argmax(axis=1))
        text_taste, image_taste = _sample_tastes(spec)
        return cls(
            spec=spec,
            text_topics=_with_padding(text_topics),
            image_topics=_with_padding(image_topics),
            popularity=_with_padding(popularity),
            likes_level=_with_padding(_levels(likes)),
            views_level=_with_padding(_levels(views)),
            cold=_with_padding(cold),
            tags=_with_padding(tags),
            text_taste=text_taste,
            image_taste=image_taste,
        )

    def true_logit(
        self, users: Integers, items: Integers, *, text: bool = True, image: bool = True, context: float = 1.0
    ) -> NDArray[np.float64]:
        """Return the log odds of a click, ``(B,)``; with ``context=spec.second_context`` those of the second label.

        Without ``text`` or ``image``, the taste for those topics does not count: the best score of a model that does
        not see them. ``context`` is a factor on the term of popularity with the two levels.
        """
        spec = self.spec
        logit = np.full(len(users), spec.bias)
        if text:
            logit += spec.text_effect * np.einsum("bk,bk->b", self.text_taste[users], self.text_topics[items])
        if image:
            logit += spec.image_effect * np.einsum("bk,bk->b", self.image_taste[users], self.image_topics[items])
        if context:
            middle, deviation = (LEVELS + 1) / 2, np.sqrt((LEVELS**2 - 1) / 12)
            levels = (self.likes_level[items] + self.views_level[items] - 2 * middle) / deviation
            logit += context * (spec.popularity_effect * self.popularity[items] + spec.context_effect * levels)
        return logit

    def embedded(self, chunk: int, ids: Integers) -> NDArray[np.bool_]:
        """Return for the items of a chunk (I,) whether they have text, image and embeddings."""
        if self.spec.emb_items == 1:
            return np.ones(len(ids), dtype=bool)
        kept = generator(self.spec, Stream.EMBEDDED, chunk).random(len(ids)) < self.spec.emb_items
        kept[:1] = True  # a chunk without any would have no rows
        return kept

    def exposure(self) -> NDArray[np.float64]:
        """Return the cumulative probability of each item to be seen, (I + 1,): Zipf's law over the warm items."""
        rank = np.empty(self.spec.items)
        rank[np.argsort(-self.popularity[1:], kind="stable")] = np.arange(self.spec.items)
        weight = np.where(self.cold[1:], 0.0, (rank + 10.0) ** -self.spec.zipf_exponent)
        return _with_padding(np.cumsum(weight) / weight.sum())


def _with_padding(rows: NDArray) -> NDArray:
    return np.concatenate([np.zeros_like(rows[:1]), rows])


def _sample_topics(rng: np.random.Generator, spec: SyntheticSpec) -> Floats:
    """Sample softmax(sharpness * normal) over half the topics, centred and scaled to standard deviation 1, (I, K)."""
    weights = spec.topic_sharpness * rng.standard_normal((spec.items, spec.topics // 2))
    weights = np.exp(weights - weights.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    weights -= weights.mean(axis=0)
    return (weights / max(float(weights.std()), 1e-9)).astype(np.float32)


def _levels(values: NDArray) -> Integers:
    level = np.empty(len(values), dtype=np.int64)
    level[np.argsort(values, kind="stable")] = 1 + np.arange(len(values)) * LEVELS // len(values)
    return level


def _sample_tags(
    rng: np.random.Generator, spec: SyntheticSpec, text_topic: Integers, image_topic: Integers
) -> Integers:
    """Sample one to five tags per item, (I, T): tag 1 + k + topics * n belongs to topic k, small n being frequent."""
    shape = (spec.items, MAX_TAGS)
    main_topic = np.where(rng.random(shape) < 0.5, text_topic[:, None], spec.topics // 2 + image_topic[:, None])
    any_topic = sample_below(rng, spec.topics, spec.items * MAX_TAGS).reshape(shape)
    topic = np.where(rng.random(shape) < spec.tag_signal, main_topic, any_topic)
    tags_per_topic = (spec.tags - 1) // spec.topics
    tags = 1 + topic + spec.topics * (rng.random(shape) ** 2 * tags_per_topic).astype(np.int64)
    tags[np.arange(MAX_TAGS) > sample_below(rng, MAX_TAGS, spec.items)[:, None]] = 0
    tags.sort(axis=1)  # zeros come first: left padding
    tags[:, 1:][tags[:, 1:] == tags[:, :-1]] = 0
    tags.sort(axis=1)
    return tags


def _sample_tastes(spec: SyntheticSpec) -> tuple[Floats, Floats]:
    tastes = np.zeros((2, spec.users + 1, spec.topics // 2), dtype=np.float32)
    for chunk, start, stop in chunks(spec.users, USER_CHUNK):
        sampled = generator(spec, Stream.USERS, chunk).standard_normal((2, stop - start, spec.topics // 2))
        if spec.taste_topics:
            rank = sampled.argsort(axis=-1).argsort(axis=-1)
            sampled = (rank >= sampled.shape[-1] - spec.taste_topics).astype(float)
        # Topics are centred: a liking of all of them alike has no effect.
        sampled -= sampled.mean(axis=-1, keepdims=True)
        tastes[:, start + 1 : stop + 1] = sampled / np.linalg.norm(sampled, axis=-1, keepdims=True)
    return tastes[0], tastes[1]


def sample_below(rng: np.random.Generator, bound: int, count: int) -> Integers:
    """Sample ``count`` integers from 0 to ``bound`` - 1."""
    return (rng.random(count) * bound).astype(np.int64)


def _sample_exposed(rng: np.random.Generator, exposure: NDArray[np.float64], shape: tuple[int, ...]) -> Integers:
    """Sample item ids by their cumulative probability ``exposure`` (I + 1,), which is 0 for the padding item."""
    return np.searchsorted(exposure, rng.random(shape), side="right")


@dataclass(frozen=True)
class Histories:
    """What each user liked, oldest first, each item once, at most ``seq_len`` of them.

    Two users after the padding user 0, of whom the first liked nothing::

        [[], [], [4, 9]]  ->  values = [4, 9], offsets = [0, 0, 0, 2]
    """

    values: NDArray[np.int32]  #: ``(N,)`` int32: item ids, user after user.
    offsets: Integers  #: ``(U + 2,)`` int64: user u's items are values[offsets[u] : offsets[u + 1]].
    pairs: Integers  #: ``(N,)`` int64: sorted user * (I + 1) + item, for ``contains``.

    @classmethod
    def from_counts(cls, values: NDArray[np.int32], counts: Integers, items: int) -> Histories:
        """Join the items of users 1, 2, ... who liked ``counts`` (U,) of them."""
        offsets = np.concatenate([[0, 0], np.cumsum(counts, dtype=np.int64)])
        users = np.repeat(np.arange(1, len(counts) + 1, dtype=np.int64), counts)
        pairs: Integers = np.sort(users * (items + 1) + values.astype(np.int64), kind="stable")
        return cls(values, offsets, pairs)

    def contains(self, users: Integers, items: Integers, item_count: int) -> NDArray[np.bool_]:
        """Return for each pair (B,) whether the user liked the item."""
        wanted = users * (item_count + 1) + items
        index = np.searchsorted(self.pairs, wanted)
        found = np.zeros(len(wanted), dtype=bool)
        inside = index < len(self.pairs)
        found[inside] = self.pairs[index[inside]] == wanted[inside]
        return found

    def padded(self, users: Integers, lengths: Integers, length: int) -> Integers:
        """Return the oldest ``lengths`` (B,) items of ``users`` (B,), left padded with 0 to (B, length)."""
        first = self.offsets[users][:, None]
        index = first + lengths[:, None] - length + np.arange(length)
        real = index >= first
        rows = np.zeros(index.shape, dtype=np.int64)
        rows[real] = self.values[index[real]]
        return rows


def sample_history_chunk(
    world: World, exposure: NDArray[np.float64], chunk: int, start: int, stop: int
) -> tuple[NDArray[np.int32], Integers]:
    """Sample what the users start + 1 to stop liked: item ids ``(E',)``, user after user, and their number of each.

    For each event M candidates are sampled by ``exposure`` (I + 1,); the user takes the one with the largest preference
    * (text affinity + image affinity) + Gumbel noise, that is, one sampled from a softmax. An item liked twice is kept
    once.
    """
    spec = world.spec
    rng = generator(spec, Stream.HISTORIES, chunk)
    scale = (spec.history_mean + 0.5) / spec.history_shape  # half more, for rounding down
    sampled = rng.gamma(spec.history_shape, scale, stop - start).astype(np.int64)
    user = np.repeat(np.arange(stop - start), np.minimum(sampled, 2 * spec.seq_len))
    chosen = _sample_liked(world, rng, exposure, start + 1 + user, spec.history_noise)
    _, once = np.unique(user * (spec.items + 1) + chosen, return_index=True)
    once.sort()
    user, chosen = user[once], chosen[once]
    counts = np.bincount(user, minlength=stop - start)
    from_the_end = np.repeat(np.cumsum(counts), counts) - np.arange(len(user))
    recent = from_the_end <= spec.seq_len
    return chosen[recent].astype(np.int32), np.minimum(counts, spec.seq_len)


def _sample_liked(
    world: World, rng: np.random.Generator, exposure: NDArray[np.float64], users: Integers, noise: float = 0.0
) -> Integers:
    """Sample an item for each of ``users`` (E,) by taste, or by exposure alone for a fraction ``noise`` of them."""
    spec = world.spec
    candidates = _sample_exposed(rng, exposure, (len(users), spec.history_candidates))
    score = -np.log(-np.log(rng.random(candidates.shape)))
    preference = spec.history_preference / np.sqrt(2)
    weight = preference * (rng.random((len(users), 1)) >= noise) if noise else preference
    for taste, topics in ((world.text_taste, world.text_topics), (world.image_taste, world.image_topics)):
        score += weight * _affinity(taste, topics, users, candidates)
    return candidates[np.arange(len(users)), score.argmax(axis=1)]


def _affinity(taste: Floats, topics: Floats, users: Integers, candidates: Integers) -> NDArray:
    """Return the products of the tastes of ``users`` (E,) with the topics of ``candidates`` (E, M)."""
    affinity = np.empty(candidates.shape, dtype=np.float32)
    for _, start, stop in chunks(len(users), EVENT_CHUNK):
        part = slice(start, stop)
        affinity[part] = np.einsum("ek,emk->em", taste[users[part]], topics[candidates[part]])
    return affinity


def sample_row_chunk(
    world: World,
    histories: Histories,
    exposure: NDArray[np.float64],
    shown: NDArray[np.bool_],
    split: str,
    chunk: int,
    count: int,
) -> dict[str, Integers]:
    """Sample rows of a split: columns user_id, item_id, likes_level, views_level, label (B,), item_seq (B, L).

    Targets are of the items ``shown`` (I + 1,), by the cumulative ``exposure`` (I + 1,) of these.
    """
    spec = world.spec
    rng = generator(spec, SPLITS[split], chunk)
    users = 1 + sample_below(rng, spec.users, count)
    warm, cold = np.flatnonzero(~world.cold & shown), np.flatnonzero(world.cold & shown)
    popular = _sample_exposed(rng, exposure, (count,))
    items = np.where(rng.random(count) < spec.popular_share, popular, warm[sample_below(rng, len(warm), count)])
    lengths = histories.offsets[users + 1] - histories.offsets[users]
    if split == "train":
        lengths = np.ceil(lengths * (0.5 + 0.5 * rng.random(count))).astype(np.int64)
    elif len(cold):
        items = np.where(rng.random(count) < spec.cold_share, cold[sample_below(rng, len(cold), count)], items)
    if spec.taste_share:
        liked = _sample_liked(world, rng, exposure, users)
        if split != "train" and len(cold):
            # Of the cold items as many by taste as of the others.
            uniform = np.cumsum(world.cold & shown) / len(cold)
            liked = np.where(world.cold[items], _sample_liked(world, rng, uniform, users), liked)
        items = np.where(rng.random(count) < spec.taste_share, liked, items)
    clash = np.flatnonzero(histories.contains(users, items, spec.items))
    while len(clash):  # ends: a history holds at most half as many items as are warm
        items[clash] = warm[sample_below(rng, len(warm), len(clash))]
        clash = clash[histories.contains(users[clash], items[clash], spec.items)]
    probability = sigmoid(world.true_logit(users, items))
    sequences = histories.padded(users, lengths, spec.seq_len)
    if spec.recent_noise:
        recent, warm = sequences[:, -spec.recent_noise :], np.flatnonzero(~world.cold[1:]) + 1
        random = warm[sample_below(rng, len(warm), recent.size)].reshape(recent.shape)
        np.copyto(recent, random, where=(recent > 0) & (random != items[:, None]))
    columns = {
        "user_id": users,
        "item_id": items,
        "item_seq": sequences,
        "likes_level": world.likes_level[items],
        "views_level": world.views_level[items],
        "label": (rng.random(count) < probability).astype(np.int64),
    }
    if spec.second_context:
        probability = sigmoid(world.true_logit(users, items, context=spec.second_context))
        columns["like"] = (rng.random(count) < probability).astype(np.int64)
        if spec.like_after_click:
            columns["like"] &= columns["label"]
    return columns


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities, without overflow."""
    return 0.5 + 0.5 * np.tanh(logits / 2)
