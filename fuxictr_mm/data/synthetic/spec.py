"""Settings of synthetic data in the layout of MicroLens_1M_x1, and presets.

``world`` samples users, items, histories and examples; ``writer`` writes the files.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fuxictr_mm.errors import ConfigError

#: Rows of valid and test from which on the standard error of an AUC is about 0.01.
ENOUGH_ROWS = 3000


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticSpec:
    """Settings of a synthetic dataset. The defaults are the preset ``tiny``.

    Raises
    ------
    ConfigError
        The first setting that is invalid.

    Examples
    --------
    >>> SyntheticSpec(items=500).embedding_name
    'item_emb_d16'
    """

    users: int = _option(2000, "users, with ids from 1")
    items: int = _option(1000, "items, with ids from 1; row 0 is padding and excluded")
    tags: int = _option(200, "size of the tag vocabulary, including the padding 0")
    topics: int = _option(8, "latent topics: one half is visible only in the text, the other only in the image")
    train_rows: int = _option(16000, "rows of train.parquet")
    valid_rows: int = _option(3000, "rows of valid.parquet")
    test_rows: int = _option(3000, "rows of test.parquet")
    seq_len: int = _option(20, "length of item_seq: the maximum number of most recent ids of a row")
    history_mean: float = _option(
        10.0, "mean number of items that a user liked; train rows contain half to all of them"
    )
    history_shape: float = _option(1.2, "shape of the gamma distribution of history lengths: smaller is more skewed")
    history_candidates: int = _option(24, "items that a user compares before liking one of them")
    history_preference: float = _option(4.0, "weight of the taste in choosing among them; 0 is pure popularity")
    text_dim: int = _option(32, "dimension of txt_emb_BERT")
    image_dim: int = _option(48, "dimension of img_emb_CLIPRN50")
    emb_dim: int = _option(16, "dimension D of the reduced embeddings item_emb_dD_v1 to _v3 and _e4; even")
    emb_bits: int = _option(32, "8 stores the reduced embeddings as 8-bit integers, 16 times their value")
    emb_items: float = _option(
        1.0, "fraction of items in item_feature and item_emb; the others are only in item_info and in histories"
    )
    text_noise: float = _option(0.2, "standard deviation of the noise on a text value, relative to that of a topic")
    image_noise: float = _option(0.2, "standard deviation of the noise on an image value, relative to that of a topic")
    text_scale: float = _option(1.0, "factor on all text values")
    image_scale: float = _option(10.0, "factor on all image values; v3 is a poor fusion if the scales differ")
    text_effect: float = _option(1.4, "logit per standard deviation of taste times text topics")
    image_effect: float = _option(1.4, "logit per standard deviation of taste times image topics")
    popularity_effect: float = _option(0.5, "logit per standard deviation of an item's popularity")
    context_effect: float = _option(0.3, "logit per standard deviation of likes_level, and of views_level")
    bias: float = _option(-0.5, "logit of an average pair of user and item")
    topic_sharpness: float = _option(3.0, "weight of the main topic in an item's mixture; 0 gives equal weights")
    zipf_exponent: float = _option(0.8, "how fast the exposure of items decreases with their rank in popularity")
    popular_share: float = _option(0.5, "fraction of targets sampled by popularity; the rest are sampled uniformly")
    cold_items: float = _option(0.3, "fraction of items that occur in no history and no training row")
    cold_share: float = _option(0.4, "fraction of valid and test rows whose target is such an item")
    tag_signal: float = _option(0.1, "fraction of tags that name a main topic of the item; the rest are noise")
    taste_topics: int = _option(
        0, "topics of each half that a user likes, equally; 0: all of them, to different degrees"
    )
    taste_share: float = _option(0.0, "fraction of targets that are chosen by taste, like the liked items")
    history_noise: float = _option(0.0, "fraction of a history that is chosen independently of the taste")
    recent_noise: int = _option(
        0, "newest items of a row's history that are sampled uniformly, independently of the taste"
    )
    second_context: float = _option(
        0.0, "factor on popularity and levels in the logit of a second label, like; 0: there is no second label"
    )
    like_after_click: int = _option(0, "1: only rows with a click may have the like, so the labels form a path")
    seed: int = _option(7, "same seed, same bytes")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            self._require(name, isinstance(value, int) or abs(value) <= 1e9, "a number from -1e9 to 1e9")
        for name in ("users", "train_rows", "valid_rows", "test_rows", "seq_len", "history_candidates"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("items", self.items >= 10, "at least 10")
        self._require("topics", self.topics >= 4 and self.topics % 2 == 0, "an even number of at least 4")
        self._require("tags", self.tags > self.topics, f"more than the {self.topics} topics")
        for name in ("text_dim", "image_dim"):
            self._require(name, getattr(self, name) >= self.topics // 2, f"at least half the {self.topics} topics")
        most = min(self.text_dim, self.image_dim)
        self._require(
            "emb_dim",
            2 <= self.emb_dim <= most and self.emb_dim % 2 == 0,
            f"an even number from 2 to {most}, the smaller of text_dim and image_dim",
        )
        self._require("emb_bits", self.emb_bits in (8, 32), "8 or 32")
        self._require("emb_items", 0 < self.emb_items <= 1, "a fraction above 0, up to 1")
        self._require("taste_topics", 0 <= self.taste_topics < self.topics // 2, f"0 to {self.topics // 2 - 1}")
        self._require("recent_noise", 0 <= self.recent_noise <= self.seq_len, f"0 to seq_len {self.seq_len}")
        for name in ("popular_share", "cold_share", "tag_signal", "taste_share", "history_noise"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a fraction from 0 to 1")
        self._require("like_after_click", self.like_after_click in (0, 1), "0 or 1")
        self._require("cold_items", 0 <= self.cold_items < 1, "a fraction from 0 to below 1")
        warm = self.items - self.cold_count
        self._require(
            "items",
            warm >= 2 * self.seq_len,
            f"enough that at least {2 * self.seq_len} (twice seq_len) are not cold; now {warm} are not",
        )
        for name in ("history_preference", "topic_sharpness", "seed"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("zipf_exponent", 0 <= self.zipf_exponent <= 100, "a number from 0 to 100")
        for name, scale in (("text", self.text_scale), ("image", self.image_scale)):  # of values in half precision
            self._require(f"{name}_scale", 0 < scale <= 1000, "above 0 and at most 1000")
            most_noise = 5000 / scale
            self._require(f"{name}_noise", 0 <= getattr(self, f"{name}_noise") <= most_noise, f"0 to {most_noise:g}")
        for name in ("history_mean", "history_shape"):
            self._require(name, getattr(self, name) > 0, "above 0")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ConfigError(f"synthetic data: {name} is {getattr(self, name)}; expected {expected}")

    def scaled(self, factor: float, **changes: Any) -> SyntheticSpec:
        """Return a world with ``factor`` times as many users, items and rows; options in ``changes`` are not scaled.

        Valid and test are not scaled below ``ENOUGH_ROWS``, as metrics of fewer are mostly noise, unless these are more
        than a tenth of the training rows.

        Examples
        --------
        >>> SyntheticSpec().scaled(0.1).train_rows, PRESETS["microlens-1m"].scaled(0.02).valid_rows
        (1600, 3000)
        """
        sizes = {name: getattr(self, name) for name in ("users", "items", "train_rows", "valid_rows", "test_rows")}
        scaled = {name: round(size * factor) for name, size in sizes.items()}
        for name in ("valid_rows", "test_rows"):
            scaled[name] = max(scaled[name], min(sizes[name], ENOUGH_ROWS, scaled["train_rows"] // 10))
        # In one step: a size that is too small after scaling may be one of the changes.
        return dataclasses.replace(self, **scaled | changes)

    @property
    def cold_count(self) -> int:
        """Number of cold items."""
        return round(self.items * self.cold_items)

    @property
    def embedding_name(self) -> str:
        """Stem of the reduced embeddings' column names."""
        return f"item_emb_d{self.emb_dim}"


PRESETS: dict[str, SyntheticSpec] = {
    "tiny": SyntheticSpec(),
    # A click depends on a few distant items of a long history, which only their content tells from the others.
    "long": SyntheticSpec(
        users=3_000,
        items=20_000,
        topics=32,
        train_rows=40_000,
        valid_rows=4_000,
        test_rows=4_000,
        seq_len=1000,
        history_mean=300.0,
        history_shape=6.0,
        history_candidates=24,
        history_preference=2.0,
        text_dim=32,
        image_dim=32,
        emb_dim=32,
        text_effect=0.8,
        image_effect=0.8,
        popularity_effect=0.2,
        context_effect=0.0,
        bias=-2.0,
        topic_sharpness=8.0,
        zipf_exponent=0.3,
        tag_signal=0.0,
        taste_topics=1,
        taste_share=0.5,
        history_noise=0.7,
        recent_noise=50,
    ),
    # Two labels that follow the same taste, and of which one rises with what lets the other fall.
    "tasks": SyntheticSpec(
        popularity_effect=1.0,
        context_effect=0.7,
        second_context=-1.0,
    ),
    # Two labels that are steps of one path: one click in three, one like in a few clicks.
    "path": SyntheticSpec(
        train_rows=48_000,
        popularity_effect=1.0,
        context_effect=0.7,
        second_context=-1.0,
        like_after_click=1,
        bias=-1.5,
    ),
    # As many rows, users and items in histories as Taobao-MM: use it with --scale.
    "taobao-mm": SyntheticSpec(
        users=8_800_000,
        items=243_000_000,
        tags=14_000,
        train_rows=75_255_000,
        valid_rows=760_000,
        test_rows=22_979_000,
        seq_len=1000,
        history_mean=400.0,
        history_shape=1.0,
        history_candidates=2,
        text_dim=128,
        image_dim=128,
        emb_dim=128,
        emb_bits=8,
        emb_items=0.146,
    ),
    "microlens-1m": SyntheticSpec(
        users=1_000_000,
        items=91_717,
        tags=11_740,
        topics=32,
        train_rows=3_600_000,
        valid_rows=10_000,
        test_rows=379_142,
        seq_len=100,
        history_mean=13.0,
        history_shape=0.7,
        history_candidates=8,
        text_dim=768,
        image_dim=1024,
        emb_dim=128,
    ),
}
