"""A copy of data/tiny_mm that can be damaged."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TINY = Path(__file__).parents[2] / "data" / "tiny_mm"
FILES = ("train", "valid", "test", "item_info", "item_feature", "item_emb")


class Copy:
    """Tables as lists of columns, to be changed in place and written."""

    def __init__(self) -> None:
        tables = {name: pq.read_table(TINY / f"{name}.parquet") for name in FILES}
        self.schemas = {name: _ragged(table.schema) for name, table in tables.items()}
        self.tables = {name: table.to_pydict() for name, table in tables.items()}

    def __getitem__(self, name: str) -> dict[str, list[Any]]:
        return self.tables[name]

    def append(self, name: str, source: dict[str, list[Any]], row: int, **changes: Any) -> int:
        """Append a row of a table to another with changes; return its number."""
        for column, values in self.tables[name].items():
            values.append(changes[column] if column in changes else source[column][row])
        return len(values) - 1

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, columns in self.tables.items():
            arrays = [pa.array(columns[f.name], f.type) for f in self.schemas[name]]
            pq.write_table(pa.Table.from_arrays(arrays, schema=self.schemas[name]), folder / f"{name}.parquet")
        return folder


def _ragged(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [
            pa.field(f.name, pa.list_(f.type.value_type) if pa.types.is_fixed_size_list(f.type) else f.type)
            for f in schema
        ]
    )


@pytest.fixture(scope="session")
def make_copy():
    """Give a fresh copy of the data in memory."""
    return Copy


@pytest.fixture
def copy(make_copy) -> Copy:
    """A copy of tiny_mm."""
    return make_copy()
