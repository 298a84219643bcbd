"""What this version of pyarrow can read, and files as other writers leave them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyarrow import csv


def skip_unreadable(kind: pa.DataType) -> None:
    """Skip a test of nulls in fixed-size lists, which pyarrow reads from version 26 on; before, that is an error."""
    if pa.types.is_fixed_size_list(kind) and int(pa.__version__.split(".")[0]) < 26:
        pytest.skip("pyarrow before 26 cannot read nulls in fixed-size lists")


def write_partitions(rows: pa.Table, column: str, folder: Path, suffix: str = ".parquet") -> pa.Table:
    """Write rows into Hive partitions of a column; return them in the order in which they are read."""
    parts = []
    for value in sorted(rows[column].unique().to_pylist()):
        part = rows.filter(pc.equal(rows[column], value))
        file = folder / f"{column}={value}" / f"part-0{suffix}"
        file.parent.mkdir(parents=True)
        (pq.write_table if suffix == ".parquet" else csv.write_csv)(part.drop_columns([column]), file)
        parts.append(part)
    return pa.concat_tables(parts)
