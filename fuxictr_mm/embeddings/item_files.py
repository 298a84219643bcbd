"""Item files: reading and joining embeddings in chunks, writing Parquet atomically, saved fits.

Shape letters: I items, n items of a chunk, D dim.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fuxictr_mm.data import decoding, parquet
from fuxictr_mm.data.arrow_types import is_list, is_plain_text
from fuxictr_mm.data.ids import AS_IS, Numbering
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.data.synthetic.writer import open_writer
from fuxictr_mm.embeddings.item_tables import read_items
from fuxictr_mm.encoding.text_encodings import UTF8, Encoding
from fuxictr_mm.errors import ConfigError, DataError, UserError
from fuxictr_mm.files import StrPath, atomic_path, check_outputs

if TYPE_CHECKING:
    from fuxictr_mm.embeddings.contrastive import Alignment
    from fuxictr_mm.embeddings.search_unit import Pretrained

#: Items of a chunk: 8,192 embeddings of 1,024 float32 numbers are 32 MB.
CHUNK_ROWS = 8192

#: Items that Arrow decodes at a time; its buffers take several times as much.
READ_ROWS = 1024


@dataclass(frozen=True)
class Source:
    """A column of embeddings, and the name of the modality that it describes."""

    name: str  #: Of the modality, such as ``text``.
    path: Path  #: A Parquet file, the same without ``.parquet``, or a folder of part files.
    column: str  #: A list of numbers per item; null or zeros for an item without an embedding.
    numbering: Numbering = AS_IS  #: Of the items, the same for all sources of a stage.

    @classmethod
    def parse(cls, text: str, numbering: Numbering = AS_IS) -> Source:
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
                f"'{text}' is not a column of a file; expected NAME=FILE:COLUMN, "
                "such as text=item_feature.parquet:txt_emb_BERT"
            )
        if named and not re.fullmatch(r"[A-Za-z0-9_]+", head):
            raise ConfigError(f"'{text}': the name '{head}' is not made of letters, digits and _; rename it")
        return cls(head if named else column, Path(path), column, numbering)

    @property
    def dim(self) -> int:
        """D, from the file's schema or else its first embedding."""
        files = parquet.part_files(self.path)
        for file in files:
            schema = parquet.schema_of(file)
            parquet.require_columns(file, schema.names, [self.numbering.key(schema.names), self.column])
            kind = schema.field(self.column).type
            kind = getattr(kind, "storage_type", kind)
            if pa.types.is_fixed_size_list(kind):
                return kind.list_size
        for _, _, _, lengths, _ in _read_lists(self):
            if lengths.any():
                return int(lengths[lengths > 0][0])
        raise DataError(f"{self.where}: no embeddings, expected one per item")

    @property
    def where(self) -> str:
        """File and column, for messages."""
        return f"{self.path}: {self.column}"


def _read_lists(source: Source) -> Iterator[tuple[Path, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield file, ids, entries end to end, their lengths, and whether there is a list; without the padding."""
    for file, row, ids, batch in read_items(source.path, [source.column], source.numbering, READ_ROWS):
        if (ids == 0).any():
            batch = batch.filter(pa.array(ids != 0))
            ids = ids[ids != 0]
        if ids.size:
            array = batch.column(source.column)
            flat, offsets = decoding.lists(array, f"{file}: {source.column}", row)
            yield file, ids, flat, np.diff(offsets), array.is_valid().to_numpy(zero_copy_only=False)


def read_ids(path: StrPath, numbering: Numbering, encoding: Encoding = UTF8) -> np.ndarray:
    """Return the items ``(I,)`` int64 of an item file in its order, the padding left out."""
    read = read_items(path, [], numbering, encoding=encoding)
    ids = np.concatenate([np.zeros(0, np.int64), *(ids[ids != 0] for _, _, ids, _ in read)])
    if ids.size == 0:
        raise DataError(f"{path}: no items, expected one row per item")
    require_unique(ids, str(path), numbering)
    return ids


def require_unique(ids: np.ndarray, where: str, numbering: Numbering) -> None:
    """Raise a DataError for an id that occurs twice."""
    ascending = np.sort(ids)
    twice = ascending[1:][ascending[1:] == ascending[:-1]]
    if twice.size:
        raise DataError(f"{where}: {numbering.name(twice[0])} occurs more than once, expected once")


def read_embeddings(source: Source, chunk_rows: int = CHUNK_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids ``(n,)`` int64 and embeddings ``(n, D)`` float32 in the order of the file.

    Row 0, the padding, is skipped. A null is a zero embedding. Every chunk but the last has ``chunk_rows`` items.
    Memory is the ids (8 bytes an item) and one chunk.

    Raises
    ------
    DataError, MissingFileError
        A missing column; an id twice or negative; an embedding of another dim than the first, or not finite.
    """
    # Before the first chunk is handed out: a caller that has begun to write need not undo anything.
    read_ids(source.path, source.numbering)
    dim = source.dim
    return _rechunk(_decoded(source, dim), dim, chunk_rows)


def _decoded(source: Source, dim: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    name = source.numbering.name
    for file, ids, flat, lengths, present in _read_lists(source):
        wrong = np.flatnonzero(present & (lengths != dim))
        if wrong.size:
            raise DataError(
                f"{file}: {source.column}: {name(ids[wrong[0]])} has an embedding of dim {lengths[wrong[0]]}, "
                f"expected {dim} as of the first one; write null or zeros where an embedding is missing"
            )
        embeddings = np.zeros((len(ids), dim), dtype=np.float32)
        with np.errstate(over="ignore"):  # too large for float32: infinite, and refused below
            embeddings[present] = flat.reshape(-1, dim)
        if not np.isfinite(embeddings).all():
            item, position = np.argwhere(~np.isfinite(embeddings))[0]
            raise DataError(
                f"{file}: {source.column}: {name(ids[item])} holds {embeddings[item, position]} at position "
                f"{position}, expected finite numbers; write null or zeros where an embedding is missing"
            )
        yield ids, embeddings


def _rechunk(
    chunks: Iterator[tuple[np.ndarray, np.ndarray]], dim: int, chunk_rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    filled = 0
    for ids, embeddings in chunks:
        start = 0
        while start < len(ids):
            if filled == 0:
                held_ids, held = np.empty(chunk_rows, dtype=np.int64), np.empty((chunk_rows, dim), dtype=np.float32)
            stop = min(start + chunk_rows - filled, len(ids))
            rows = slice(filled, filled + stop - start)
            held_ids[rows], held[rows] = ids[start:stop], embeddings[start:stop]
            start, filled = stop, rows.stop % chunk_rows
            if filled == 0:
                yield held_ids, held
    if filled:
        yield held_ids[:filled], held[:filled]


class JoinedEmbeddings:
    """Several sources joined on ``item_id``; an item that a source does not have has a zero embedding there.

    Sources that hold the same items in the same order, such as two columns of one file, are read together. Others
    are first sorted by id into temporary files. In memory are the ids and one chunk.

    Parameters
    ----------
    sources : sequence of Source
        At least one, with distinct names.

    Attributes
    ----------
    ids : ndarray
        ``(I,)`` int64, all items of all sources, in the order of ``chunks``.
    dims : dict of str to int
        D of each source.
    numbering : Numbering
        Of the items.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not names or twice:
            found = f"the name '{twice[0]}' occurs twice" if twice else "no source of embeddings"
            raise ConfigError(f"{found}; expected one NAME=FILE:COLUMN for each modality, with distinct names")
        self.sources, self.numbering = tuple(sources), sources[0].numbering
        self.dims = {source.name: source.dim for source in sources}
        orders = [read_ids(source.path, source.numbering) for source in sources]
        self._side_by_side = all(np.array_equal(order, orders[0]) for order in orders)
        self.ids = orders[0] if self._side_by_side else np.unique(np.concatenate(orders))
        self._folder = Path()

    def __enter__(self) -> JoinedEmbeddings:
        self._stack = ExitStack()
        if not self._side_by_side:
            with ExitStack() as stack:  # closed at once where sorting fails
                self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuxictr_mm_")))
                for source in self.sources:
                    self._sort(source)
                self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def chunks(self, chunk_rows: int = CHUNK_ROWS) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Yield ids ``(n,)`` and ``{name: embeddings (n, D) float32}``; may be called any number of times."""
        read = read_embeddings if self._side_by_side else self._read_sorted
        for parts in zip(*(read(source, chunk_rows) for source in self.sources), strict=True):
            yield parts[0][0], {s.name: found for s, (_, found) in zip(self.sources, parts, strict=True)}

    def _sort(self, source: Source) -> None:
        file, shape = self._folder / source.name, (len(self.ids), self.dims[source.name])
        try:
            with file.open("wb") as stream:
                # Zeros instead of a sparse file: a full disk is found here, where it is an error, not a signal.
                for start in range(0, shape[0], CHUNK_ROWS):
                    stream.write(bytes(4 * shape[1] * min(CHUNK_ROWS, shape[0] - start)))
        except OSError as error:
            raise UserError(
                f"{self._folder}: not enough space for {4 * shape[0] * shape[1] / 1e9:.1f} GB of sorted embeddings "
                f"({error.strerror}); set TMPDIR to a folder with enough space"
            ) from None
        for ids, embeddings in read_embeddings(source):
            # Mapped once per chunk: pages that were written do not add up in our memory.
            mapped = np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
            mapped[np.searchsorted(self.ids, ids)] = embeddings
            del mapped

    def _read_sorted(self, source: Source, chunk_rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        dim = self.dims[source.name]
        with (self._folder / source.name).open("rb") as stream:
            for start in range(0, len(self.ids), chunk_rows):
                ids = self.ids[start : start + chunk_rows]
                yield ids, np.fromfile(stream, dtype=np.float32, count=len(ids) * dim).reshape(-1, dim)


def embedding_type(dim: int) -> pa.DataType:
    """Return the column type of embeddings."""
    return pa.list_(pa.float32(), dim)


def code_type(levels: int) -> pa.DataType:
    """Return the column type of sequences of codes."""
    return pa.list_(pa.int64(), levels)


class ItemFileWriter:
    """Write an item file chunk by chunk and atomically.

    Row 0, the padding, is written first: zeros, empty texts, False. Where a vocabulary numbers the items there is none,
    and the ids are written.

    Parameters
    ----------
    path : str or path
        The Parquet file.
    schema : mapping of str to pyarrow.DataType
        Columns besides ``item_id``.
    overwrite : bool
        Replace an existing file.
    of_items : collection of str
        Columns of lists of items.
    numbering : Numbering
        Of the items.

    Examples
    --------
    >>> import pyarrow.parquet as pq
    >>> path = Path(tempfile.mkdtemp()) / "items.parquet"
    >>> with ItemFileWriter(path, {"embedding": embedding_type(2), "title": pa.string()}) as writer:
    ...     writer.write([7, 3], {"embedding": np.array([[1.0, 2.0], [3.0, 4.0]]), "title": ["a", "b"]})
    >>> pq.read_table(path).to_pydict()
    {'item_id': [0, 7, 3], 'embedding': [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]], 'title': ['', 'a', 'b']}
    """

    def __init__(
        self,
        path: StrPath,
        schema: Mapping[str, pa.DataType],
        overwrite: bool = False,
        of_items: Collection[str] = (),
        numbering: Numbering = AS_IS,
    ) -> None:
        self.path, self.of_items, self.numbering = Path(path), of_items, numbering
        check_outputs([path], [], overwrite)
        self.schema = pa.schema([(numbering.roles.target, numbering.type), *schema.items()], numbering.metadata)

    @contextmanager
    def _open(self) -> Iterator[None]:
        self._held = []
        if self.numbering.items is None:
            padding = [pa.array([_nothing(field.type)], field.type) for field in self.schema]
            self._held = [pa.Table.from_arrays(padding, schema=self.schema)]
        self._ids: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        with atomic_path(self.path) as temporary, open_writer(temporary, self.schema) as self._writer:
            yield
            require_unique(np.concatenate(self._ids), str(self.path), self.numbering)
            self._flush()

    def __enter__(self) -> ItemFileWriter:
        self._context = self._open()
        self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def write(self, ids: Sequence[int] | np.ndarray, columns: Mapping[str, Any]) -> None:
        """Append items ``(n,)`` from 1, each once in the file, and columns of the schema, ``(n,)`` or ``(n, D)``."""
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size == 0:
            return
        if ids.min() < 1:
            raise DataError(f"{self.path}: {ITEM_ID} {ids.min()}, expected 1 or more (0 is padding)")
        if set(columns) != set(self.schema.names[1:]):
            raise ValueError(f"columns {sorted(columns)} given, expected {sorted(self.schema.names[1:])}")
        arrays = [
            self.numbering.ids(ids),
            *(self._to_arrow(columns[f.name], f, len(ids)) for f in list(self.schema)[1:]),
        ]
        self._ids.append(ids)
        self._held.append(pa.Table.from_arrays(arrays, schema=self.schema))
        if sum(table.num_rows for table in self._held) >= CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            self._writer.write_table(pa.concat_tables(self._held), row_group_size=CHUNK_ROWS)
        self._held = []

    def _to_arrow(self, values: Any, field: pa.Field, rows: int) -> pa.Array:
        kind = field.type
        if len(values) != rows:
            raise ValueError(f"column '{field.name}' has {len(values)} rows, expected {rows}")
        if not pa.types.is_fixed_size_list(kind):
            return pa.array(values, kind)
        matrix = np.asarray(values)
        if matrix.shape != (rows, kind.list_size):
            raise ValueError(f"column '{field.name}' is of shape {matrix.shape}, expected {(rows, kind.list_size)}")
        if field.name in self.of_items:
            return pa.FixedSizeListArray.from_arrays(self.numbering.ids(matrix.ravel()), kind.list_size)
        flat = np.ascontiguousarray(matrix).ravel().astype(kind.value_type.to_pandas_dtype(), casting="same_kind")
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)


def write_embeddings(
    sources: Sequence[Source], trained: Alignment | Pretrained, out: StrPath, overwrite: bool = False
) -> None:
    """Write the columns of what ``align`` or ``pretrain`` trained, for all items of the sources.

    Raises
    ------
    ConfigError, DataError, MissingFileError, UserError
        Names or dims are not those of the training; embeddings are invalid; the file exists or is not writable.
    """
    check_outputs([out], [source.path for source in sources], overwrite)
    schema = {name: embedding_type(dim) for name, dim in trained.columns.items()}
    numbering = sources[0].numbering
    with JoinedEmbeddings(sources) as joined, ItemFileWriter(out, schema, overwrite, numbering=numbering) as writer:
        for ids, columns in trained.apply(joined):
            writer.write(ids, columns)


def _nothing(kind: pa.DataType) -> Any:
    """Return the value of the padding row."""
    if pa.types.is_fixed_size_list(kind):
        return [0] * kind.list_size
    if is_list(kind):
        return []
    if is_plain_text(kind):
        return ""
    return False if pa.types.is_boolean(kind) else 0
