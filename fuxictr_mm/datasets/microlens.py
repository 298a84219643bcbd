"""MicroLens-100K and -50K: videos with titles, and frozen text, image and video embeddings.

Ni et al., A Content-Driven Micro-Video Recommendation Dataset at Scale, 2023, https://arxiv.org/abs/2309.15379

The files are those of https://recsys.westlake.edu.cn: ``*_pairs.csv`` (columns ``user``, ``item``, ``timestamp``),
``*_title*.csv`` (item and title, without a header), ``*_likes_and_views.txt`` (item, likes, views; tabs), and a
``.npy`` per modality in ``extracted_modality_features``, whose row ``i - 1`` belongs to item ``i``. Titles, likes and
embeddings are read if they exist.

The last interaction of a user goes to test, the one before to valid, the others to train (users with one or two
interactions: to train). The data are interactions without impressions, so negatives are sampled: each interaction gets
one negative at the same time and with the same history, an item that the user has no interaction with in its split or
an earlier one. Items are sampled in proportion to their number of interactions in the split, so that popularity alone
does not tell positives from negatives (``negatives``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from fuxictr_mm.datasets.histories import histories_before
from fuxictr_mm.datasets.negatives import sample_negatives
from fuxictr_mm.datasets.reader import SPLITS, Embeddings, Kind, Reader, Rows
from fuxictr_mm.errors import DataError

#: Columns of the embeddings, by a part of their files' names.
MODALITIES = {"text_features": "text_emb", "image_features": "image_emb", "video_features": "video_emb"}

#: Users of a chunk.
CHUNK_USERS = 50_000

#: Embeddings read at a time.
CHUNK_ITEMS = 8192

SEED = 2025


class MicroLens(Reader):
    """MicroLens-100K and -50K: videos with titles, and frozen text, image and video embeddings."""

    evaluates_known_users = True

    @property
    def item_columns(self) -> Mapping[str, Kind]:
        """Item columns with their kinds."""
        return {"item_title": "text", "likes_level": "categorical", "views_level": "categorical"}

    @property
    def samples_negatives(self) -> bool:
        """Whether the rows of label 0 are sampled, not logged: all of them are."""
        return True

    def files(self) -> list[Path]:
        """Return the files that are read."""
        optional = ("*_title*.csv", "*_likes_and_views.txt", "*_features_*.npy")
        return [self.find_one("*_pairs.csv"), *(p for name in optional for p in sorted(self.source.rglob(name)))]

    @cached_property
    def _pairs(self) -> pl.DataFrame:
        """Return all interactions, sorted by user and time."""
        path = self.find_one("*_pairs.csv")
        pairs = pl.read_csv(path, columns=["user", "item", "timestamp"])
        return pairs.sort("user", "timestamp", maintain_order=True)

    def _find_one(self, pattern: str) -> Path | None:
        return next(iter(sorted(self.source.rglob(pattern))), None)

    def items(self) -> pl.DataFrame:
        """Return all items that occur in interactions or have a title, by id."""
        titles = self._titles()
        ids = pl.concat([self._pairs["item"], titles["item_id"]]).unique().sort()
        frame = pl.DataFrame({"item_id": ids}).join(titles, on="item_id", how="left", maintain_order="left")
        counts = self._likes_and_views()
        frame = frame.join(counts, on="item_id", how="left", maintain_order="left")
        return frame.select(
            "item_id",
            pl.col("item_title").fill_null(""),
            *(_level(pl.col(name)).alias(f"{name}_level") for name in ("likes", "views")),
        )

    def _titles(self) -> pl.DataFrame:
        path = self._find_one("*_title*.csv")
        if path is None:
            return pl.DataFrame(schema={"item_id": pl.Int64, "item_title": pl.String})
        frame = pl.read_csv(path, has_header=False, new_columns=["item_id", "item_title"], infer_schema=False)
        return frame.select(pl.col("item_id").str.strip_chars().cast(pl.Int64), "item_title")

    def _likes_and_views(self) -> pl.DataFrame:
        path = self._find_one("*_likes_and_views.txt")
        schema = {"item_id": pl.Int64, "likes": pl.Int64, "views": pl.Int64}
        if path is None:
            return pl.DataFrame(schema=schema)
        return pl.read_csv(path, has_header=False, separator="\t", schema=schema)

    def embeddings(self) -> dict[str, Embeddings]:
        """Return the embeddings of each modality that has a file."""
        found = {}
        for part, name in MODALITIES.items():
            path = self._find_one(f"*_{part}_*.npy")
            if path is not None:
                found[name] = Embeddings(lambda path=path: _read_npy(path))  # type: ignore[misc]
        return found

    def values(self, name: str) -> pl.Series:
        """Return the users."""
        return self._pairs["user"].unique(maintain_order=True)

    @cached_property
    def _starts(self) -> np.ndarray:
        """Return the row where each user begins, and the number of rows."""
        users = self._pairs["user"].to_numpy()
        return np.r_[0, np.flatnonzero(users[1:] != users[:-1]) + 1, len(users)]

    @cached_property
    def _splits(self) -> np.ndarray:
        """Return the split of each interaction."""
        sizes = np.diff(self._starts)
        left = np.repeat(self._starts[1:], sizes) - np.arange(len(self._pairs))
        long = np.repeat(sizes >= 3, sizes)
        return np.where(long & (left == 1), "test", np.where(long & (left == 2), "valid", "train"))

    @cached_property
    def _items_by_split(self) -> dict[str, np.ndarray]:
        """Return the items of the interactions of each split."""
        items = self._pairs["item"].to_numpy()
        return {split: items[self._splits == split] for split in SPLITS}

    def chunks(self) -> list[str]:
        """Return ranges of users."""
        users = len(self._starts) - 1
        return [f"users {first}" for first in range(0, users, CHUNK_USERS)]

    def rows(self, chunk: str) -> Iterator[Rows]:
        """Return the interactions of a range of users, each followed by its negative."""
        first = int(chunk.split()[1])
        bounds = self._starts[first : first + CHUNK_USERS + 1]
        pairs = self._pairs[int(bounds[0]) : int(bounds[-1])]
        users, items = pairs["user"].to_numpy(), pairs["item"].to_numpy()
        histories = histories_before(
            users, pairs["timestamp"].to_numpy(), pa.array(items), np.ones(len(pairs), dtype=bool), self.max_len
        )
        splits = self._splits[int(bounds[0]) : int(bounds[-1])]
        negatives = self._sample_negatives(users, items, splits, np.random.default_rng([SEED, first]))
        which = np.repeat(np.arange(len(pairs)), 2)
        label = np.tile([1, 0], len(pairs))
        columns = pl.DataFrame(
            {
                "split": splits[which],
                "user_id": users[which],
                "item_id": np.where(label == 1, items[which], negatives[which]),
                "label": label,
            }
        )
        yield Rows(columns, histories, which)

    def _sample_negatives(
        self, users: np.ndarray, items: np.ndarray, splits: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Return an item for each interaction that its user has not interacted with."""

        def sample(known: np.ndarray, given: np.ndarray) -> np.ndarray:
            return known[generator.integers(len(known), size=len(given))]

        samplers = {split: partial(sample, known) for split, known in self._items_by_split.items()}
        codes = np.unique(users, return_inverse=True)[1]
        num_items = int(self._pairs["item"].max()) + 1  # type: ignore[arg-type]
        negatives, failed = sample_negatives(codes, items, splits, num_items, np.arange(len(items)), samplers)
        if failed is not None:
            raise DataError(
                f"{self.source}: the user {users[failed]} interacts with nearly every item of "
                f"{splits[failed]}, so no negative can be sampled"
            )
        return negatives


def _level(counts: pl.Expr) -> pl.Expr:
    """Return the number of digits of a count, as text; a missing count has none."""
    return counts.cast(pl.String).str.len_chars().cast(pl.String)


def _read_npy(path: Path) -> Iterator[tuple[pl.Series, np.ndarray]]:
    """Yield item ids and rows of a file whose row ``i - 1`` belongs to item ``i``."""
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.ndim != 2:
        raise DataError(f"{path}: holds an array of shape {values.shape}, expected (items, dims)")
    for first in range(0, len(values), CHUNK_ITEMS):
        part = np.asarray(values[first : first + CHUNK_ITEMS], dtype=np.float32)
        yield pl.Series(np.arange(first + 1, first + 1 + len(part))), part
