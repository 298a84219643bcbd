"""A few rows of the demo data with other columns."""

import pyarrow as pa
import pyarrow.parquet as pq

from tests.serving.server import ROWS


def write(tmp_path, **columns):
    """Write 20 rows with other values of some columns; None leaves a column out."""
    table = pq.read_table(ROWS).slice(0, 20)
    for name, values in columns.items():
        if values is None:
            table = table.drop_columns([name])
        else:
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"
