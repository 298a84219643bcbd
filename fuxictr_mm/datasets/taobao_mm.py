"""Taobao-MM: ads with item embeddings in int8, and histories of up to 1,000 items.

Wu et al., MUSE: A Simple Yet Effective Multimodal Search-Based Framework for Lifelong User Interest Modeling, 2025,
https://arxiv.org/abs/2512.07216

The files are those of https://huggingface.co/datasets/TaoBao-MM/Taobao-MM: ``{train,test}_samples.parquet``
(``label_0`` a list of two, ``129_1`` the user, ``205`` the item), ``{train,test}_user_features.parquet`` (``130_1`` to
``130_5``, and the history ``150_2_180``, oldest first, 0 for padding), ``item_features.parquet`` (``206`` category,
``213`` and ``214`` city and province), and ``scl_embedding_int8_p90.parquet`` (``205_c``, 128 integers of 8 bits that
stand for value times 127). Columns and types are those of the owners' demo files. Each may be in shards, such as
``train_samples-00000-of-00160.parquet``, or the files of a folder ``train_samples``.

Items are numbered by the embeddings' file first, then those of ``item_features`` that have no embedding. History items
that are in neither are dropped: the owners' 90% vocabulary. The categories of the history (``151_2_180``) are not read;
they are those of the items. Train users whose id is a multiple of 100 are valid.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from fuxictr_mm.datasets.histories import ranges
from fuxictr_mm.datasets.reader import Embeddings, Kind, Reader, Rows
from fuxictr_mm.errors import DataError
from fuxictr_mm_serving.folders import natural_key

logger = logging.getLogger(__name__)

USER, ITEM, HISTORY, EMBEDDING = "129_1", "205", "150_2_180", "205_c"
EMBEDDINGS = "scl_embedding_int8_p90"
USER_COLUMNS = tuple(f"130_{number}" for number in range(1, 6))

#: Users read at a time; 20,000 histories of 1,000 ids are 160 MB.
CHUNK_USERS = 20_000

#: Embeddings read at a time.
CHUNK_ITEMS = 65_536

#: One train user in this many is valid.
VALID_USERS = 100


class TaobaoMM(Reader):
    """Taobao-MM: ads with item embeddings in int8, and histories of up to 1,000 items."""

    history_len = 1000

    @property
    def context(self) -> Mapping[str, Kind]:
        """Context columns with their kinds."""
        return dict.fromkeys(USER_COLUMNS, "categorical")

    @property
    def item_columns(self) -> Mapping[str, Kind]:
        """Item columns with their kinds."""
        return dict.fromkeys(("206", "213", "214"), "categorical")

    def files(self) -> list[Path]:
        """Return samples and users of both splits, item features and embeddings."""
        names = [f"{split}_{kind}" for split in ("train", "test") for kind in ("samples", "user_features")]
        return [file for name in (*names, "item_features", EMBEDDINGS) for file in self._files(name)]

    def _files(self, name: str) -> list[Path]:
        """Return the file of a name, or its shards: ``NAME-00000-of-00160.parquet``, or files of a folder ``NAME``."""
        shard = re.compile(rf"{re.escape(name)}[-_.](part[-_.]?)?\d[-_.\w]*")
        folders = (name, f"{name}.parquet")
        found: dict[tuple[Path, bool], list[Path]] = {}
        for path in self.source.rglob("*.parquet"):
            is_shard = shard.fullmatch(path.stem) is not None or path.parent.name in folders
            if path.is_file() and not path.name.startswith(("_", ".")) and (path.stem == name or is_shard):
                found.setdefault((path.parent, is_shard), []).append(path)
        if not found:
            return [self.find_one(f"{name}.parquet")]  # which says what there is
        files, *others = found.values()
        if others:
            raise self.holds_two(files[0], others[0][0])
        return sorted(files, key=natural_key)

    def items(self) -> pl.DataFrame:
        """Return items with an embedding, in the order of their file, then the others of the item features."""
        ids = pl.read_parquet(self._files(EMBEDDINGS), columns=[ITEM])[ITEM]
        features = pl.read_parquet(self._files("item_features"))
        order = pl.concat([ids, features[ITEM]]).unique(maintain_order=True)
        frame = pl.DataFrame({ITEM: order}).join(features, on=ITEM, how="left", maintain_order="left")
        return frame.rename({ITEM: "item_id"})

    def embeddings(self) -> dict[str, Embeddings]:
        """Return the embeddings, as stored."""
        return {"scl_emb": Embeddings(self._read_embeddings, scale=1 / 127)}

    def _read_embeddings(self) -> Iterator[tuple[pl.Series, np.ndarray]]:
        known: int | None = None
        for path in self._files(EMBEDDINGS):
            for batch in pq.ParquetFile(path).iter_batches(CHUNK_ITEMS, columns=[ITEM, EMBEDDING]):
                values = batch.column(EMBEDDING)
                dims = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
                if len(dims) != 1 or int(dims[0]) != (known or int(dims[0])):
                    raise DataError(
                        f"{path}: {EMBEDDING} has lists of {dims.tolist()} numbers, expected lists of one length"
                    )
                known = int(dims[0])
                yield pl.Series(batch.column(ITEM)), values.flatten().to_numpy().reshape(-1, known)

    def values(self, name: str) -> pl.Series:
        """Return all users, or the values of the train users, of which 0 stands for a missing attribute."""
        if name == "user_id":
            return pl.concat(list(self._users.values())).unique().sort()
        values = pl.scan_parquet(self._files("train_user_features")).select(pl.col(name).unique())
        return values.filter(pl.col(name) != 0).collect(engine="streaming")[name].sort()

    @cached_property
    def _users(self) -> dict[str, pl.Series]:
        """Return the users of each split, in the order of their file."""
        users = {}
        for split in ("train", "test"):
            files = self._files(f"{split}_user_features")
            users[split] = pl.read_parquet(files, columns=[USER])[USER]
            twice = users[split].is_duplicated()
            if twice.any():
                raise DataError(
                    f"{_shown(files)}: the user {users[split].filter(twice)[0]} has several rows, expected one"
                )
        return users

    def chunks(self) -> list[str]:
        """Return the row groups of the users' files, in ranges of at most ``CHUNK_USERS`` users."""
        names = []
        for split in ("train", "test"):
            rows = sum(pq.ParquetFile(file).metadata.num_rows for file in self._files(f"{split}_user_features"))
            names += [f"{split} {first}" for first in range(0, rows, CHUNK_USERS)]
        return names

    @cached_property
    def _samples(self) -> dict[str, pl.DataFrame]:
        """Return users, items and labels of each split, sorted by user."""
        return {split: self._read_samples(split) for split in ("train", "test")}

    def _read_samples(self, split: str) -> pl.DataFrame:
        files = self._files(f"{split}_samples")
        samples = pl.scan_parquet(files).select(
            USER, ITEM, pl.col("label_0").list.len().alias("classes"), pl.col("label_0").list.get(1, null_on_oob=True)
        )
        frame = samples.collect(engine="streaming")
        if (frame["classes"] != 2).any():
            raise DataError(f"{_shown(files)}: label_0 holds lists of other than 2 numbers, expected [1, 0] or [0, 1]")
        unknown = int((~frame[USER].is_in(self._users[split].implode())).sum())
        if unknown:
            features = _shown(self._files(f"{split}_user_features"))
            logger.warning(
                f"{_shown(files)}: {unknown} samples are dropped, because {features} does not have their users"
            )
        return frame.drop("classes").sort(USER, maintain_order=True)

    def rows(self, chunk: str) -> Iterator[Rows]:
        """Return the samples of a range of users; the samples of a user share one history."""
        split, first = chunk.split()
        frame = pl.scan_parquet(self._files(f"{split}_user_features")).select(USER, *USER_COLUMNS, HISTORY)
        users = frame.slice(int(first), CHUNK_USERS).collect(engine="streaming")  # reads only the row groups of these
        samples = self._samples[split]
        keys = samples[USER].to_numpy()
        asked = users[USER].to_numpy()
        begins, ends = np.searchsorted(keys, asked, side="left"), np.searchsorted(keys, asked, side="right")
        counts = ends - begins
        which = np.repeat(np.arange(len(users)), counts)
        rows = samples[ranges(begins, counts)]
        held_out = (pl.col(USER) % VALID_USERS == 0) & (split == "train")
        columns = users.select(
            pl.col(USER).alias("user_id"),
            pl.when(held_out).then(pl.lit("valid")).otherwise(pl.lit(split)).alias("split"),
            *USER_COLUMNS,
        )[which].with_columns(rows[ITEM].alias("item_id"), rows["label_0"].alias("label"))
        yield Rows(columns, users[HISTORY].to_arrow(), which)


def _shown(files: Sequence[Path]) -> str:
    """Return a file, or the first and the number of others, for messages."""
    return f"{files[0]} and {len(files) - 1} others" if len(files) > 1 else str(files[0])
