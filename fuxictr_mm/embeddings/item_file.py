"""Item files that the stages write: a row per item, the padding first, whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.data.synthetic_parquet import open_writer
from fuxictr_mm.embeddings.store import CHUNK_ROWS, require_unique
from fuxictr_mm.errors import ConfigError, DataError, UserError


def vector_type(width: int) -> pa.DataType:
    """Return the column type of float vectors."""
    return pa.list_(pa.float32(), width)


def code_type(width: int) -> pa.DataType:
    """Return the column type of sequences of codes."""
    return pa.list_(pa.int64(), width)


class ItemFileWriter:
    """Write an item file chunk by chunk; it appears under its name when it is whole.

    Row 0, the padding, is written first: zeros, empty texts, False.

    Parameters
    ----------
    path : str or path
        The Parquet file.
    schema : mapping of str to pyarrow.DataType
        Columns beside ``item_id``.
    overwrite : bool
        Replace a file that is there.

    Raises
    ------
    ConfigError
        The file is there.
    UserError
        It cannot be written.

    Examples
    --------
    >>> path = Path(tempfile.mkdtemp()) / "items.parquet"
    >>> with ItemFileWriter(path, {"vector": vector_type(2), "title": pa.string()}) as writer:
    ...     writer.write([7, 3], {"vector": np.array([[1.0, 2.0], [3.0, 4.0]]), "title": ["a", "b"]})
    >>> pq.read_table(path).to_pydict()
    {'item_id': [0, 7, 3], 'vector': [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]], 'title': ['', 'a', 'b']}
    """

    def __init__(
        self, path: str | os.PathLike[str], schema: Mapping[str, pa.DataType], overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ConfigError(f"{self.path}: is a folder, expected the name of a file to write")
        if self.path.exists() and not overwrite:
            raise ConfigError(f"{self.path}: exists already; add --overwrite or choose another name")
        self.schema = pa.schema([(ITEM_ID, pa.int64()), *schema.items()])
        self._temporary = Path()
        self._writer: pq.ParquetWriter | None = None
        self._held: list[pa.Table] = []
        self._ids: list[np.ndarray] = []

    def __enter__(self) -> ItemFileWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            os.close(handle)
            self._temporary = Path(temporary)
            self._writer = open_writer(self._temporary, self.schema)
        except OSError as error:
            self._discard()
            raise self._refused(error) from None
        self._held = [pa.Table.from_arrays([_padding(field.type) for field in self.schema], schema=self.schema)]
        return self

    def write(self, ids: Sequence[int] | np.ndarray, columns: Mapping[str, Any]) -> None:
        """Append items.

        Parameters
        ----------
        ids : sequence of int
            ``(n,)``, 1 or more, each once in the file.
        columns : mapping of str to array or list
            ``(n,)`` or ``(n, D)``, one for each column of the schema.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size == 0:
            return
        if ids.min() < 1:
            raise DataError(f"{self.path}: {ITEM_ID} {ids.min()}, expected 1 or more (0 is padding)")
        if set(columns) != set(self.schema.names[1:]):
            raise ValueError(f"columns {sorted(columns)} given, expected {sorted(self.schema.names[1:])}")
        arrays = [pa.array(ids), *(_to_arrow(columns[f.name], f, len(ids)) for f in list(self.schema)[1:])]
        self._ids.append(ids)
        self._held.append(pa.Table.from_arrays(arrays, schema=self.schema))
        if sum(table.num_rows for table in self._held) >= CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        assert self._writer is not None, "ItemFileWriter is used in a with statement"
        try:
            self._writer.write_table(pa.concat_tables(self._held), row_group_size=CHUNK_ROWS)
        except OSError as error:
            raise self._refused(error) from None
        self._held = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _finish(self) -> None:
        assert self._writer is not None
        require_unique(np.concatenate([np.zeros(0, dtype=np.int64), *self._ids]), str(self.path))
        if self._held:
            self._flush()
        try:
            self._writer.close()
            with self._temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            self._temporary.chmod(0o644)
            self._temporary.replace(self.path)
        except OSError as failed:
            raise self._refused(failed) from None

    def _discard(self) -> None:
        """Remove what was written and not renamed."""
        if self._writer is not None and self._writer.is_open:
            try:
                self._writer.close()
            except OSError as error:
                raise self._refused(error) from None
            finally:
                self._temporary.unlink(missing_ok=True)
        elif self._temporary.name:
            self._temporary.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> UserError:
        reason = error.strerror or str(error).splitlines()[0]
        return UserError(f"{self.path}: could not be written ({reason}); what stood there before is unchanged")


def _to_arrow(values: Any, field: pa.Field, rows: int) -> pa.Array:
    kind = field.type
    if len(values) != rows:
        raise ValueError(f"column '{field.name}' has {len(values)} rows, expected {rows}")
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    matrix = np.asarray(values)
    if matrix.shape != (rows, kind.list_size):
        raise ValueError(f"column '{field.name}' is of shape {matrix.shape}, expected {(rows, kind.list_size)}")
    flat = np.ascontiguousarray(matrix).ravel().astype(kind.value_type.to_pandas_dtype(), casting="same_kind")
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)


def _padding(kind: pa.DataType) -> pa.Array:
    """Return one row of nothing."""
    if pa.types.is_fixed_size_list(kind):
        nothing: Any = [0] * kind.list_size
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        nothing = []
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        nothing = ""
    else:
        nothing = False if pa.types.is_boolean(kind) else 0
    return pa.array([nothing], kind)
