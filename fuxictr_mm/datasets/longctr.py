"""KuaiVideo_x2, MicroVideo1.7M_x2 and EBNeRD_small_x1 of the LongCTR benchmark.

The files are those of https://huggingface.co/reczoo (KuaiVideo_x2, MicroVideo1.7M_x2, Ebnerd_small_x1), as LongCTR
reads them (https://github.com/reczoo/LongCTR): ``train|valid|test.parquet`` with ``user_index``, ``item_index``,
``seq_len``, context columns as codes and a label (``is_click`` or ``click``); ``user_info.parquet``, whose row
``user_index`` holds the user's whole sequence ``full_item_seq`` of item indexes; and ``item_info.parquet``, whose row
``item_index`` holds the features of an item, row 0 those of the padding. A row's history is the first ``seq_len`` items
of its user's sequence. ``item_id`` or ``article_id`` of the items is a code that rare items share: it becomes the
feature ``item_code``, and the number of the item itself is not a feature.

Item columns become categorical or sequence features by their type, and lists of decimals embeddings. Codes are kept as
values and numbered again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.data.arrow_types import is_list
from fuxictr_mm.datasets.histories import ranges
from fuxictr_mm.datasets.reader import SPLITS, Embeddings, Kind, Reader, Rows
from fuxictr_mm.errors import DataError

#: Rows read at a time.
CHUNK_ROWS = 200_000

#: Embeddings read at a time.
CHUNK_ITEMS = 65_536

LABELS = ("is_click", "click", "label")


class LongCTR(Reader):
    """KuaiVideo_x2, MicroVideo1.7M_x2 and EBNeRD_small_x1 of the LongCTR benchmark."""

    def __init__(self, source: Path, scratch: Path, max_len: int) -> None:
        super().__init__(source, scratch, max_len)
        train = pq.read_schema(self._file("train"))
        label = next((name for name in LABELS if name in train.names), None)
        if label is None:
            raise DataError(f"{self._file('train')}: no label, expected a column {' or '.join(LABELS)}")
        self.label = label
        known = {"user_index", "item_index", "seq_len", label}
        self._context: dict[str, Kind] = {
            field.name: "categorical"
            for field in train
            if field.name not in known and not pa.types.is_nested(field.type) and field.name not in LABELS
        }
        item_schema = pq.read_schema(self._file("item_info"))
        self._embedding_columns = [
            f.name for f in item_schema if is_list(f.type) and pa.types.is_floating(f.type.value_type)
        ]
        self._item_columns: dict[str, Kind] = {
            _renamed(field.name): _kind(field.type)
            for field in item_schema
            if field.name not in ("item_index", *self._embedding_columns)
        }
        self.embed_item_id = "item_code" not in self._item_columns

    @property
    def context(self) -> Mapping[str, Kind]:
        """Context columns with their kinds."""
        return self._context

    @property
    def item_columns(self) -> Mapping[str, Kind]:
        """Item columns with their kinds."""
        return self._item_columns

    def _file(self, name: str) -> Path:
        return self.find_one(f"{name}.parquet")

    def files(self) -> list[Path]:
        """Return the splits, the users and the items."""
        return [self._file(name) for name in (*SPLITS, "user_info", "item_info")]

    @cached_property
    def _item_info(self) -> pl.DataFrame:
        """Return the items but the padding, with their index."""
        names = [n for n in pq.read_schema(self._file("item_info")).names if n not in self._embedding_columns]
        frame = pl.read_parquet(self._file("item_info"), columns=names).rename(_renamed, strict=False)
        # Before the slice: polars 1.35 evaluates lists of a sliced frame at wrong rows.
        frame = frame.with_columns(
            pl.Series("item_index", np.arange(len(frame))),
            *(
                pl.col(name).list.eval(pl.element().filter(pl.element() != 0))
                for name, kind in self._item_columns.items()
                if kind == "sequence"
            ),
        )
        return frame[1:]

    def items(self) -> pl.DataFrame:
        """Return the items by index; ``item_id`` is the index, which rows and histories name."""
        return self._item_info.select(pl.col("item_index").alias("item_id"), *self._item_columns)

    def embeddings(self) -> dict[str, Embeddings]:
        """Return the columns of decimals."""
        return {name: Embeddings(lambda name=name: self._read(name)) for name in self._embedding_columns}  # type: ignore[misc]

    def _read(self, name: str) -> Iterator[tuple[pl.Series, np.ndarray]]:
        path, first = self._file("item_info"), 0
        for batch in pq.ParquetFile(path).iter_batches(CHUNK_ITEMS, columns=[name]):
            lists = batch.column(0)
            rows = np.arange(first, first + len(lists))
            first += len(lists)
            kept = lists.is_valid().to_numpy(zero_copy_only=False) & (rows > 0)  # row 0 is padding
            lists = lists.filter(pa.array(kept))
            dims = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
            if len(dims) > 1:
                raise DataError(f"{path}: {name} has lists of {dims.tolist()} numbers, expected lists of one length")
            if len(dims):
                values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
                yield pl.Series(rows[kept]), values.reshape(-1, int(dims[0]))

    def values(self, name: str) -> pl.Series:
        """Return the values of the training split, or the users of all splits."""
        column, splits = ("user_index", SPLITS) if name == "user_id" else (name, ("train",))
        parts = [pl.scan_parquet(self._file(split)).select(pl.col(column).unique()).collect() for split in splits]
        return pl.concat(parts, how="vertical_relaxed")[column].unique().sort()

    @cached_property
    def _sequences(self) -> tuple[pa.Array, np.ndarray]:
        """Return the items of all users, and where each user's begin."""
        lists = pq.read_table(self._file("user_info"), columns=["full_item_seq"]).column(0).combine_chunks()
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        return lists.flatten(), np.r_[0, np.cumsum(lengths)]

    def chunks(self) -> list[str]:
        """Return ranges of rows of each split."""
        return [
            f"{split} {first}"
            for split in SPLITS
            for first in range(0, pq.ParquetFile(self._file(split)).metadata.num_rows, CHUNK_ROWS)
        ]

    def rows(self, chunk: str) -> Iterator[Rows]:
        """Return a range of rows, each with the newest items of its history."""
        split, first = chunk.split()
        frame = pl.scan_parquet(self._file(split)).slice(int(first), CHUNK_ROWS).collect()
        items, starts = self._sequences
        user = frame["user_index"].to_numpy()
        if user.min() < 0 or user.max() >= len(starts) - 1:
            raise DataError(f"{self._file(split)}: user_index {user.max()}, expected a row of user_info.parquet")
        stop = np.minimum(starts[user] + frame["seq_len"].to_numpy(), starts[user + 1])
        begin = np.maximum(stop - self.max_len, starts[user])
        lengths = stop - begin
        offsets = np.r_[0, np.cumsum(lengths)]
        histories = pa.LargeListArray.from_arrays(offsets, items.take(pa.array(ranges(begin, lengths))))
        columns = frame.select(
            pl.lit(split).alias("split"),
            pl.col("user_index").alias("user_id"),
            pl.col("item_index").alias("item_id"),
            *self.context,
            self.label,
        )
        yield Rows(columns, histories)


def _renamed(name: str) -> str:
    return "item_code" if name in ("item_id", "article_id") else name


def _kind(kind: pa.DataType) -> Kind:
    if is_list(kind):
        return "sequence"
    return "numeric" if pa.types.is_floating(kind) else "categorical"
