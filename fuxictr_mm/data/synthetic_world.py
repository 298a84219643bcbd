r"""The world behind synthetic data: items with topics, users with tastes, and what makes a click.

For user u and item i, with unit tastes t and standardised topic shares z of the text half (A) and the image half (B):

.. math::
    logit(u, i) = e_A t_A(u) z_A(i) + e_B t_B(u) z_B(i) + e_P p(i) + e_C (likes(i) + views(i)) + bias

and the label is 1 with probability sigmoid(logit). The text shows z_A alone and the image z_B alone, so that each tells
half of the taste (`synthetic_items`); histories hold what a user chose by taste (`synthetic_rows`).

Everything is drawn in chunks, each from a generator of its own (seed, stream, chunk): no chunk depends on another.

Shapes: B rows, U users, I items, K topics of one half, T tags of an item.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fuxictr_mm.data.synthetic import MAX_TAGS, SyntheticSpec

USER_CHUNK = 8192
LEVELS = 10

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


def generator(spec: SyntheticSpec, stream: Stream, chunk: int = 0) -> np.random.Generator:
    """Random generator of one chunk of one stream."""
    return np.random.default_rng([spec.seed, int(stream), chunk])


def chunks(total: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield (chunk number, first, past the last) over `total` things.

    Examples
    --------
    >>> list(chunks(5, 2))
    [(0, 0, 2), (1, 2, 4), (2, 4, 5)]
    """
    for number, first in enumerate(range(0, total, size)):
        yield number, first, min(first + size, total)


@dataclass(frozen=True)
class World:
    """Latent truth about users and items. Rows are ids; row 0 is padding and all zeros.

    Parameters
    ----------
    spec : SyntheticSpec
        The numbers it was made from.
    text_topics, image_topics : ndarray of float32, (I + 1, K)
        Topic shares of each half, centred, of deviation 1.
    popularity : ndarray of float32, (I + 1,)
        Standard normal; clicks and exposure grow with it.
    likes_level, views_level : ndarray of int64, (I + 1,)
        1 to 10, ten equal parts of the items by two noisy readings of popularity.
    cold : ndarray of bool, (I + 1,)
        True for items that no history and no training row shows.
    tags : ndarray of int64, (I + 1, T)
        Left padded with 0.
    text_taste, image_taste : ndarray of float32, (U + 1, K)
        Unit length in each half.
    """

    spec: SyntheticSpec
    text_topics: Floats
    image_topics: Floats
    popularity: Floats
    likes_level: Integers
    views_level: Integers
    cold: NDArray[np.bool_]
    tags: Integers
    text_taste: Floats
    image_taste: Floats

    @classmethod
    def build(cls, spec: SyntheticSpec) -> World:
        """Draw the world of a specification."""
        rng = generator(spec, Stream.ITEMS)
        text_topics = _topic_shares(rng, spec)
        image_topics = _topic_shares(rng, spec)
        popularity = rng.standard_normal(spec.items).astype(np.float32)
        likes, views = popularity + 0.5 * rng.standard_normal((2, spec.items))
        cold = np.zeros(spec.items, dtype=bool)
        cold[np.argsort(rng.random(spec.items), kind="stable")[: spec.cold_count]] = True
        tags = _draw_tags(rng, spec, text_topics.argmax(axis=1), image_topics.argmax(axis=1))
        text_taste, image_taste = _draw_tastes(spec)
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
        self, users: Integers, items: Integers, *, text: bool = True, image: bool = True, context: bool = True
    ) -> NDArray[np.float64]:
        """Log odds of a click.

        Parameters
        ----------
        users, items : ndarray of int64, (B,)
            Ids of the pairs.
        text, image, context : bool
            Which terms to count: taste for the text topics, for the image topics, popularity with the two levels.
            Fewer terms give the best score that a model seeing only these could reach.

        Returns
        -------
        ndarray of float64, (B,)
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
            logit += spec.popularity_effect * self.popularity[items] + spec.context_effect * levels
        return logit

    def exposure(self) -> NDArray[np.float64]:
        """Cumulated chance of each item to be seen, (I + 1,): Zipf's law over the items that are not cold."""
        rank = np.empty(self.spec.items)
        rank[np.argsort(-self.popularity[1:], kind="stable")] = np.arange(self.spec.items)
        weight = np.where(self.cold[1:], 0.0, (rank + 10.0) ** -self.spec.zipf_exponent)
        return _with_padding(np.cumsum(weight) / weight.sum())


def draw_below(rng: np.random.Generator, bound: int, count: int) -> Integers:
    """Draw `count` whole numbers from 0 to `bound` - 1."""
    return (rng.random(count) * bound).astype(np.int64)


def _with_padding(rows: NDArray) -> NDArray:
    return np.concatenate([np.zeros_like(rows[:1]), rows])


def _topic_shares(rng: np.random.Generator, spec: SyntheticSpec) -> Floats:
    """Mixtures softmax(sharpness * normal) over half the topics, centred and scaled to deviation 1, (I, K)."""
    shares = spec.topic_sharpness * rng.standard_normal((spec.items, spec.topics // 2))
    shares = np.exp(shares - shares.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares -= shares.mean(axis=0)
    return (shares / max(float(shares.std()), 1e-9)).astype(np.float32)


def _levels(count: NDArray) -> Integers:
    level = np.empty(len(count), dtype=np.int64)
    level[np.argsort(count, kind="stable")] = 1 + np.arange(len(count)) * LEVELS // len(count)
    return level


def _draw_tags(rng: np.random.Generator, spec: SyntheticSpec, text_topic: Integers, image_topic: Integers) -> Integers:
    """Draw one to five tags per item, (I, T): tag 1 + k + topics * n belongs to topic k, small n being frequent."""
    shape = (spec.items, MAX_TAGS)
    main_topic = np.where(rng.random(shape) < 0.5, text_topic[:, None], spec.topics // 2 + image_topic[:, None])
    any_topic = draw_below(rng, spec.topics, spec.items * MAX_TAGS).reshape(shape)
    topic = np.where(rng.random(shape) < spec.tag_signal, main_topic, any_topic)
    tags_per_topic = (spec.tags - 1) // spec.topics
    tags = 1 + topic + spec.topics * (rng.random(shape) ** 2 * tags_per_topic).astype(np.int64)
    tags[np.arange(MAX_TAGS) > draw_below(rng, MAX_TAGS, spec.items)[:, None]] = 0
    tags.sort(axis=1)  # zeros come first: left padding
    tags[:, 1:][tags[:, 1:] == tags[:, :-1]] = 0
    tags.sort(axis=1)
    return tags


def _draw_tastes(spec: SyntheticSpec) -> tuple[Floats, Floats]:
    tastes = np.zeros((2, spec.users + 1, spec.topics // 2), dtype=np.float32)
    for chunk, first, last in chunks(spec.users, USER_CHUNK):
        drawn = generator(spec, Stream.USERS, chunk).standard_normal((2, last - first, spec.topics // 2))
        drawn -= drawn.mean(axis=-1, keepdims=True)  # shares are centred: a liking of all topics alike has no effect
        tastes[:, first + 1 : last + 1] = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
    return tastes[0], tastes[1]
