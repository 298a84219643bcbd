"""Vectors of items in Parquet files keyed by ``item_id``: read in chunks, joined.

Shape letters: I items (padding left out), n items of a chunk, D width.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from fuxictr_mm.data import parquet
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.errors import ConfigError, DataError, UserError

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
    for section in parquet.split_sections(file, parquet.open_parquet(file).metadata, CHUNK_ROWS):
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
