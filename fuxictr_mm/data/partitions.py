"""Hive partitions: columns whose values are the names of folders, such as ``train/day=3/part.parquet``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa

from fuxictr_mm_serving.folders import partition_values


def partition_columns(file: Path, texts: Collection[str] = ()) -> dict[str, pa.Scalar]:
    """Return the columns that the folders of a file name, outermost first, each with its value in all rows of the file.

    They are int64, or texts; see ``partition_values``.
    """
    found = partition_values(file, texts)
    return {name: pa.scalar(value, pa.int64() if is_int else pa.string()) for name, (value, is_int) in found.items()}
