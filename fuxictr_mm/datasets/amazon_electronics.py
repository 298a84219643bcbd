"""AmazonElectronics_x1: products with categories, the dataset of the DIN paper.

Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018, https://arxiv.org/abs/1706.06978

The files are those of https://huggingface.co/datasets/reczoo/AmazonElectronics_x1: ``train.csv`` and ``test.csv`` with
the columns ``label, user_id, item_id, cate_id, item_history, cate_history``, histories joined by ``^``, oldest first.
There is no validation split: the rows of ``train.csv`` whose user id is a multiple of 10 are valid. There
are no embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import polars as pl

from fuxictr_mm.data.lists import EMPTY_AS_NULL
from fuxictr_mm.datasets.reader import Kind, Reader, Rows

#: Rows read at a time.
CHUNK_ROWS = 200_000

TYPES = {
    **dict.fromkeys(("label", "user_id", "item_id", "cate_id"), pl.Int64),
    **dict.fromkeys(("item_history", "cate_history"), pl.String),
}


class AmazonElectronics(Reader):
    """AmazonElectronics_x1: products with categories, the dataset of the DIN paper."""

    @property
    def item_columns(self) -> Mapping[str, Kind]:
        """Item columns with their kinds."""
        return {"cate_id": "categorical"}

    def files(self) -> list[Path]:
        """Return the two csv files."""
        return [self.find_one("train.csv"), self.find_one("test.csv")]

    def _scan(self, split: str) -> pl.LazyFrame:
        # Not by schema_overrides: polars 1.35 gives a column of another name the name that is missing.
        frame = pl.scan_csv(self.find_one(f"{split}.csv"), infer_schema=False)
        return frame.select(pl.col(name).cast(kind) for name, kind in TYPES.items())

    def items(self) -> pl.DataFrame:
        """Return the items of targets and histories, by id, with their category."""
        parts = []
        for split in ("train", "test"):
            frame = self._scan(split)
            parts.append(frame.select("item_id", "cate_id").unique())
            pairs = frame.select(_ids("item_history").alias("item_id"), _ids("cate_history").alias("cate_id"))
            parts.append(pairs.unique().explode("item_id", "cate_id", **EMPTY_AS_NULL).drop_nulls().unique())
        items = pl.concat(parts).collect(engine="streaming")
        return items.sort("item_id", "cate_id").unique("item_id", keep="first", maintain_order=True)

    def values(self, name: str) -> pl.Series:
        """Return the users of both files."""
        users = pl.concat([self._scan(split).select("user_id") for split in ("train", "test")])
        return users.unique().collect(engine="streaming")["user_id"].sort()

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {split: self._scan(split).select(pl.len()).collect().item() for split in ("train", "test")}

    def chunks(self) -> list[str]:
        """Return ranges of rows of the two files."""
        return [f"{split} {first}" for split, rows in self._counts.items() for first in range(0, rows, CHUNK_ROWS)]

    def rows(self, chunk: str) -> Iterator[Rows]:
        """Return a range of rows."""
        split, first = chunk.split()
        frame = self._scan(split).slice(int(first), CHUNK_ROWS).collect()
        held_out = (pl.col("user_id") % 10 == 0) & (split == "train")
        histories = frame.select(_ids("item_history")).to_series().to_arrow()
        columns = frame.select(
            pl.when(held_out).then(pl.lit("valid")).otherwise(pl.lit(split)).alias("split"),
            "user_id",
            "item_id",
            "label",
        )
        yield Rows(columns, histories)


def _ids(name: str) -> pl.Expr:
    """Return the ids of a column of text such as ``12^7``; an empty text has none."""
    return pl.col(name).fill_null("").str.split("^").list.eval(pl.element().filter(pl.element() != "").cast(pl.Int64))
