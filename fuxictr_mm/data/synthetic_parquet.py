"""Parquet writing for synthetic data: columns of numpy arrays to a file, the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm


def to_table(columns: dict[str, NDArray], schema: pa.Schema) -> pa.Table:
    """Put the columns that `schema` names into a table; (rows, width) arrays become fixed-size lists."""
    return pa.table([_column(columns[field.name], field.type) for field in schema], schema=schema)


def _column(values: NDArray | pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), kind.list_size)
    return pa.array(values, kind)


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a parquet file; float lists are split by byte, which compresses far better than a dictionary of them."""
    floats = [
        f"{field.name}.list.element"
        for field in schema
        if pa.types.is_fixed_size_list(field.type) and pa.types.is_floating(field.type.value_type)
    ]
    others = [
        f"{field.name}.list.element" if pa.types.is_fixed_size_list(field.type) else field.name
        for field in schema
        if f"{field.name}.list.element" not in floats
    ]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=others,
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    )


def progress_bar(what: str, total: int, unit: str, progress: bool) -> tqdm:
    """Show rate and time left of one step."""
    return tqdm(total=total, desc=f"{what:>15}", unit=f" {unit}", unit_scale=True, disable=not progress)
