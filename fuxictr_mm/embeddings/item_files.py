"""Item files that the stages write: a row per item, the padding first, whole or not there."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_mm.config import nearest
from fuxictr_mm.data import parquet
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.data.synthetic.writer import open_writer
from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError
from fuxictr_mm.files import write_beside

#: Items of a chunk: 8 Ki vectors of 1,024 floats are 32 MB.
CHUNK_ROWS = 8192


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument ``sources`` of a stage that reads vectors; see ``Source.parse``."""
    parser.add_argument(
        "sources", nargs="+", metavar="NAME=FILE:COLUMN", help="a modality: its name, and the vectors' file and column"
    )


@dataclass(frozen=True)
class Source:
    """A column of vectors, and the name of the modality that it describes.

    Parameters
    ----------
    name : str
        Of the modality, such as ``text``.
    path : Path
        A Parquet file, the same without ``.parquet``, or a folder of part files.
    column : str
        A list of numbers per item.
    """

    name: str
    path: Path
    column: str

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read the form of the command line, ``NAME=FILE:COLUMN``; without ``NAME=`` the column is the name.

        Raises
        ------
        ConfigError
            Another form.

        Examples
        --------
        >>> Source.parse("text=item_feature.parquet:txt_emb_BERT").name
        'text'
        >>> Source.parse("item_feature.parquet:txt_emb_BERT").name
        'txt_emb_BERT'
        """
        head, equals, tail = text.partition("=")
        # `folder/date=1/items.parquet:column` has an equals sign, and no name.
        named = bool(equals) and not re.search(r"[/\\:.]", head)
        path, _, column = (tail if named else text).rpartition(":")
        if not path or not column or re.search(r"[/\\]", column):
            raise ConfigError(
                f"'{text}' names no column of a file; expected NAME=FILE:COLUMN, "
                "such as text=item_feature.parquet:txt_emb_BERT"
            )
        if named and not re.fullmatch(r"[A-Za-z0-9_]+", head):
            raise ConfigError(f"'{text}': the name '{head}' is not made of letters, digits and _; rename it")
        return cls(head if named else column, Path(path), column)

    @property
    def width(self) -> int:
        """D, from the file's schema or else its first vector."""
        for file in parquet.part_files(self.path):
            schema = parquet.open_parquet(file).schema_arrow
            parquet.require_columns(file, schema.names, [ITEM_ID, self.column])
            kind = schema.field(self.column).type
            if pa.types.is_fixed_size_list(kind):
                return kind.list_size
        for _, vectors in read_vectors(self, chunk_rows=1):
            return vectors.shape[1]
        raise DataError(f"{self.where}: no vectors, expected one per item")

    @property
    def num_rows(self) -> int:
        """Rows of the files, from their footers; a padding row counts."""
        return parquet.count_rows(self.path)

    @property
    def where(self) -> str:
        """File and column, for messages."""
        return f"{self.path}: {self.column}"


def read_ids(source: Source) -> np.ndarray:
    """Return the item ids ``(I,)`` int64 in the order of the file, the padding left out.

    Raises
    ------
    DataError, MissingFileError
        A negative id, an id twice, or no items.
    """
    parts = []
    for file in parquet.part_files(source.path):
        where = f"{file}: {ITEM_ID}"
        for row, batch in parquet.read_chunks(file, [ITEM_ID]):
            ids = parquet.scalars(batch.column(0), where, row)
            parquet.check_ids(ids, None, where, row)
            parts.append(ids[ids != 0])
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if ids.size == 0:
        raise DataError(f"{source.path}: no items, expected one row per item")
    require_unique(ids, str(source.path))
    return ids


def require_unique(ids: np.ndarray, where: str) -> None:
    """Raise a DataError where an id stands twice."""
    ascending = np.sort(ids)
    twice = ascending[1:][ascending[1:] == ascending[:-1]]
    if twice.size:
        raise DataError(f"{where}: {ITEM_ID} {twice[0]} stands more than once, expected once")


def read_vectors(source: Source, chunk_rows: int = CHUNK_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids ``(n,)`` int64 and vectors ``(n, D)`` float32 in the order of the file; row 0, the padding, is skipped.

    Every chunk but the last has ``chunk_rows`` items. Beside the ids (8 bytes an item), memory is bounded by the chunk.

    Raises
    ------
    DataError, MissingFileError
        A missing column; an id twice or negative; a vector of another width than the first, or not finite.
    """
    # Before the first vector is handed out: a caller that has begun to write need not take anything back.
    read_ids(source)
    return _rechunk(_decoded(source), chunk_rows)


def _decoded(source: Source) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    width: int | None = None
    for file in parquet.part_files(source.path):
        where = f"{file}: {source.column}"
        for row, whole_batch in _batches(file, [ITEM_ID, source.column]):
            for start in range(0, whole_batch.num_rows, CHUNK_ROWS):
                batch = whole_batch.slice(start, CHUNK_ROWS)
                all_ids = parquet.scalars(batch.column(ITEM_ID), f"{file}: {ITEM_ID}", row + start)
                if (all_ids == 0).any():
                    batch = batch.filter(pa.array(all_ids != 0))
                ids = all_ids[all_ids != 0]
                flat, offsets = parquet.lists(batch.column(source.column), where, row + start)
                lengths = np.diff(offsets)
                if width is None and lengths.size:
                    width = int(lengths[0])
                vectors = _rectangle(flat, lengths, width or 0, ids, where)
                if ids.size:
                    yield ids, vectors


def _batches(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Read few row groups at a time: wide vectors make large batches."""
    for section in parquet.split_row_groups(file, parquet.open_parquet(file).metadata, CHUNK_ROWS):
        yield from parquet.read_chunks(file, columns, section)


def _rectangle(flat: np.ndarray, lengths: np.ndarray, width: int, ids: np.ndarray, where: str) -> np.ndarray:
    bad = np.flatnonzero((lengths != width) | (lengths == 0))
    if bad.size:
        expected = f"{width} as of the vectors before it" if width else "at least 1"
        raise DataError(
            f"{where}: {ITEM_ID} {ids[bad[0]]} has a vector of width {lengths[bad[0]]}, expected {expected}; "
            "write zeros where a vector is missing"
        )
    with np.errstate(over="ignore"):  # too large for float32: infinite, and found below
        vectors = flat.astype(np.float32).reshape(len(lengths), -1)
    if not np.isfinite(vectors).all():
        item, place = np.argwhere(~np.isfinite(vectors))[0]
        raise DataError(
            f"{where}: {ITEM_ID} {ids[item]} holds {vectors[item, place]} at position {place}, "
            "expected finite numbers; write zeros where a vector is missing"
        )
    return vectors


def _rechunk(
    chunks: Iterator[tuple[np.ndarray, np.ndarray]], chunk_rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    held: list[tuple[np.ndarray, np.ndarray]] = []
    rows = 0
    for chunk in chunks:
        held.append(chunk)
        rows += len(chunk[0])
        if rows >= chunk_rows:
            ids, vectors = _concatenate(held)
            last = rows - rows % chunk_rows
            for start in range(0, last, chunk_rows):
                yield ids[start : start + chunk_rows], vectors[start : start + chunk_rows]
            held, rows = [(ids[last:].copy(), vectors[last:].copy())], rows - last
    if rows:
        yield _concatenate(held)


def _concatenate(chunks: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if len(chunks) == 1:
        return chunks[0]
    filled = [chunk for chunk in chunks if len(chunk[0])]
    return np.concatenate([ids for ids, _ in filled]), np.concatenate([vectors for _, vectors in filled])


def load_vectors(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return all ids ``(I,)`` int64, ascending, and their vectors ``(I, D)`` float32; raises as ``read_vectors``."""
    ids = np.sort(read_ids(source))
    vectors: np.ndarray | None = None
    for some_ids, some in _decoded(source):
        if vectors is None:
            vectors = np.empty((len(ids), some.shape[1]), dtype=np.float32)
        vectors[np.searchsorted(ids, some_ids)] = some
    assert vectors is not None  # read_ids refuses a file without items
    return ids, vectors


class JoinedVectors:
    """Several sources, joined on ``item_id``; an item that a source lacks has a zero vector there.

    Sources that hold the same items in the same order, such as two columns of one file, are streamed side by side.
    Others are brought into ascending order of ids in temporary files first. In memory are the ids and one chunk.

    Parameters
    ----------
    sources : sequence of Source
        At least one, names distinct.
    folder : str or path, optional
        Where temporary files go; the system's folder for them by default.

    Attributes
    ----------
    ids : ndarray
        ``(I,)`` int64, all items of all sources, in the order of ``chunks``.
    widths : dict of str to int
        D of each source.

    Raises
    ------
    ConfigError
        A name twice, or none.
    """

    def __init__(self, sources: Sequence[Source], folder: str | os.PathLike[str] | None = None) -> None:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            said = f"the name '{twice[0]}' stands twice" if twice else "no source of vectors"
            raise ConfigError(f"{said}; expected one NAME=FILE:COLUMN for each modality, names distinct")
        self.sources = tuple(sources)
        self.widths = {source.name: source.width for source in sources}
        self._folder = folder
        self._sorted: tempfile.TemporaryDirectory[str] | None = None
        orders = [read_ids(source) for source in sources]
        self._side_by_side = all(np.array_equal(order, orders[0]) for order in orders)
        self.ids = orders[0] if self._side_by_side else np.unique(np.concatenate(orders))

    def __enter__(self) -> JoinedVectors:
        if not self._side_by_side:
            self._sorted = tempfile.TemporaryDirectory(prefix="fuxictr_mm_", dir=self._folder)
            try:
                for number, source in enumerate(self.sources):
                    self._sort(source, self._file(number))
            except BaseException:
                self._sorted.cleanup()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sorted is not None:
            self._sorted.cleanup()

    def chunks(
        self, chunk_rows: int = CHUNK_ROWS, names: Sequence[str] | None = None
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield ids ``(n,)`` and ``{name: vectors (n, D) float32}``, of all sources or of those named.

        May be called any number of times.
        """
        streams = {
            source.name: self._read(number, chunk_rows)
            for number, source in enumerate(self.sources)
            if names is None or source.name in names
        }
        for parts in zip(*streams.values(), strict=True):
            yield parts[0][0], {name: vectors for name, (_, vectors) in zip(streams, parts, strict=True)}

    def _read(self, number: int, chunk_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self._side_by_side:
            return read_vectors(self.sources[number], chunk_rows)
        return self._read_sorted(number, chunk_rows)

    def _file(self, number: int) -> Path:
        assert self._sorted is not None, "JoinedVectors is used in a with statement"
        return Path(self._sorted.name) / f"{number}.float32"

    def _sort(self, source: Source, file: Path) -> None:
        shape = (len(self.ids), self.widths[source.name])
        try:
            with file.open("wb") as stream:
                # Zeros in fact, not a hole: a full disk is found here, where it is an error, not a signal.
                for start in range(0, shape[0], CHUNK_ROWS):
                    stream.write(bytes(4 * shape[1] * min(CHUNK_ROWS, shape[0] - start)))
        except OSError as error:
            raise UserError(
                f"{file.parent}: no room for {4 * shape[0] * shape[1] / 1e9:.1f} GB of sorted vectors "
                f"({error.strerror}); set TMPDIR to a folder with room"
            ) from None
        for ids, vectors in read_vectors(source):
            # Mapped anew for each chunk: pages that were written do not add up in our memory.
            place = np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
            place[np.searchsorted(self.ids, ids)] = vectors
            del place

    def _read_sorted(self, number: int, chunk_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        width = self.widths[self.sources[number].name]
        with self._file(number).open("rb") as stream:
            for start in range(0, len(self.ids), chunk_rows):
                ids = self.ids[start : start + chunk_rows]
                yield ids, np.fromfile(stream, dtype=np.float32, count=len(ids) * width).reshape(-1, width)


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


class PretrainedEmbFile:
    """Write ``key`` ``(I,)`` int64 and ``value`` ``(I, K)`` float32, chunk by chunk; the padding has no row.

    The file appears under its name when it is whole.

    Parameters
    ----------
    path : str or path
        A name that ends in ``.h5``, by which FuxiCTR knows the format.
    num_items : int
        I.
    width : int
        K.
    overwrite : bool
        Replace a file that is there.

    Raises
    ------
    ConfigError
        The file is there.
    UserError
        It cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], num_items: int, width: int, overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not overwrite:
            raise ConfigError(f"{self.path}: exists already; add --overwrite or choose another name")
        self._shape = (num_items, width)
        self._row = 0
        self._temporary = Path()
        self._file: Any = None

    def __enter__(self) -> PretrainedEmbFile:
        import h5py

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            os.close(handle)
            self._temporary = Path(temporary)
            self._file = h5py.File(self._temporary, "w")
            self._file.create_dataset("key", shape=self._shape[:1], dtype=np.int64)
            self._file.create_dataset("value", shape=self._shape, dtype=np.float32)
        except OSError as error:
            self._discard()
            raise self._refused(error) from None
        return self

    def write(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Append items: ids ``(n,)`` and vectors ``(n, K)``."""
        rows = slice(self._row, self._row + len(ids))
        try:
            self._file["key"][rows] = ids
            self._file["value"][rows] = vectors
        except OSError as error:
            raise self._refused(error) from None
        self._row = rows.stop

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert self._row == self._shape[0], f"{self._row} items written, expected {self._shape[0]}"
                self._file.close()
                with self._temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
                self._temporary.chmod(0o644)
                self._temporary.replace(self.path)
        except OSError as failed:
            raise self._refused(failed) from None
        finally:
            self._discard()

    def _discard(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        finally:
            if self._temporary.name:
                self._temporary.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> UserError:
        reason = error.strerror or str(error).splitlines()[0]
        return UserError(f"{self.path}: could not be written ({reason}); what stood there before is unchanged")


Built = TypeVar("Built")


@dataclass(frozen=True)
class SavedFormat:
    """One kind of file.

    Parameters
    ----------
    what : str
        What it holds, such as ``"reducer"``.
    stage : str
        Which ``fuxictr-mm embed STAGE`` writes it.
    version : int
        Of the layout of its content.
    """

    what: str
    stage: str
    version: int = 1

    @property
    def key(self) -> str:
        """Where the content stands in the metadata."""
        return f"fuxictr_mm.{self.what}"

    def save(self, path: str | os.PathLike[str], content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays, and what they mean as JSON.

        Raises
        ------
        UserError
            The file cannot be written.
        """
        from safetensors.numpy import save

        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        text = json.dumps({"format": self.version, **content})
        data = save(whole, metadata={self.key: text, "sha256": checksum(text, whole)})
        write_beside(path, lambda stream: stream.write(data))

    def load(
        self, path: str | os.PathLike[str], build: Callable[[dict[str, Any], dict[str, np.ndarray]], Built]
    ) -> Built:
        """Return what ``build`` makes of the content and the arrays of a file.

        Raises
        ------
        MissingFileError
            There is no such file.
        DataError
            It is damaged, of another kind or version, or ``build`` cannot make anything of it.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            beside = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
            raise MissingFileError(
                f"{path}: no such file{nearest(path.name, beside)}; expected a {self.what} that "
                f"`fuxictr-mm embed {self.stage}` wrote"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, ValueError, TypeError, struct.error) as error:
            raise self._damaged(path, str(error)) from None
        if self.key not in metadata:
            raise DataError(f"{path}: is no {self.what}; expected a file that `fuxictr-mm embed {self.stage}` wrote")
        if metadata.get("sha256") != checksum(metadata[self.key], arrays):
            raise self._damaged(path, "its checksum is not that of its contents")
        try:
            content = json.loads(metadata[self.key])
            if content["format"] != self.version:
                raise DataError(
                    f"{path}: has the format {content['format']}, expected {self.version}; make the {self.what} anew"
                )
            return build(content, arrays)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            raise self._damaged(path, said) from None

    def _damaged(self, path: Path, reason: str) -> DataError:
        return DataError(
            f"{path}: is damaged as a {self.what} ({' '.join(reason.split())}); copy it again, or make it anew"
        )


def checksum(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of a text and of named arrays, whatever their order."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
