"""Titles of synthetic items, whose words follow their topics."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fuxictr_mm.data.synthetic.world import sample_below

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


def sample_titles(rng: np.random.Generator, topics: NDArray) -> pa.Array:
    """Sample a title per item (I,), such as "quiet harbour voyage and guitar".

    The two largest of its ``topics`` (I, K) give the nouns. Topics beyond the 16 themes share their nouns and differ in
    the mood.
    """
    ranked = np.argsort(-topics, axis=1, kind="stable")
    main, second = ranked[:, 0], ranked[:, 1]
    count, themes, nouns = len(topics), len(THEMES), len(THEMES[0])
    index = sample_below(rng, nouns, count)
    step = 1 + sample_below(rng, nouns - 1, count)
    other = sample_below(rng, nouns, count)
    words = pa.array([word for theme in THEMES for word in theme])

    def noun(topic: NDArray, which: NDArray) -> pa.Array:
        return words.take(pa.array(topic % themes * nouns + which % nouns))

    sharing = -(-topics.shape[1] // themes)  # topics per theme, each with moods of its own while there are enough
    mood_index = sample_below(rng, max(len(MOODS) // sharing, 1), count) * sharing + main // themes
    mood = pa.array(MOODS).take(pa.array(mood_index % len(MOODS)))
    return pc.binary_join_element_wise(
        mood, noun(main, index), noun(main, index + step), "and", noun(second, other), " "
    )
