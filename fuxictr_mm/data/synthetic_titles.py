"""Readable titles for synthetic items: words of the item's main topics in the text half."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MOODS = ("quiet", "golden", "hidden", "endless", "early", "little", "northern", "restless")
THEMES = (
    ("guitar", "chorus", "melody", "rhythm", "ballad", "concert"),
    ("noodles", "kitchen", "recipe", "spices", "bakery", "supper"),
    ("harbour", "island", "voyage", "sailors", "lighthouse", "tide"),
    ("detective", "alibi", "witness", "robbery", "verdict", "riddle"),
    ("football", "champion", "stadium", "referee", "penalty", "league"),
    ("planet", "comet", "rocket", "orbit", "galaxy", "astronaut"),
    ("kitten", "puppy", "parrot", "hamster", "pony", "rabbit"),
    ("castle", "dragon", "knight", "sorcerer", "throne", "oracle"),
    ("garden", "orchid", "meadow", "bonsai", "harvest", "seedling"),
    ("engine", "highway", "motorcycle", "garage", "racetrack", "turbo"),
    ("wedding", "romance", "letters", "sweetheart", "bouquet", "promise"),
    ("robot", "circuit", "keyboard", "software", "laboratory", "gadget"),
    ("mountain", "glacier", "summit", "campfire", "trail", "avalanche"),
    ("fashion", "runway", "lipstick", "wardrobe", "perfume", "silk"),
    ("empire", "soldier", "treaty", "museum", "dynasty", "chronicle"),
    ("comedy", "clown", "prank", "parody", "stage", "laughter"),
)
WORDS = np.array(THEMES)


def draw_titles(rng: np.random.Generator, topics: NDArray) -> pa.Array:
    """Draw a title per item, such as "quiet harbour voyage and guitar".

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the choice of words.
    topics : ndarray, (I, K)
        Topic shares; the two largest of each row give the words. Topics beyond the 16 themes share their nouns and
        differ in the mood.

    Returns
    -------
    pyarrow.Array of string, (I,)
    """
    ranked = np.argsort(-topics, axis=1, kind="stable")
    main, second = ranked[:, 0], ranked[:, 1]
    count, themes, nouns = len(topics), *WORDS.shape
    place = (rng.random(count) * nouns).astype(np.int64)
    step = 1 + (rng.random(count) * (nouns - 1)).astype(np.int64)
    other = (rng.random(count) * nouns).astype(np.int64)
    words = pa.array(WORDS.ravel().tolist())

    def noun(topic: NDArray, which: NDArray) -> pa.Array:
        return words.take(pa.array(topic % themes * nouns + which % nouns))

    sharing = -(-topics.shape[1] // themes)  # topics per theme, each with moods of its own while there are enough
    mood_place = (rng.random(count) * max(len(MOODS) // sharing, 1)).astype(np.int64) * sharing + main // themes
    mood = pa.array(MOODS).take(pa.array(mood_place % len(MOODS)))
    return pc.binary_join_element_wise(
        mood, noun(main, place), noun(main, place + step), "and", noun(second, other), " "
    )
