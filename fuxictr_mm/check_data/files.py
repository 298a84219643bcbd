"""The files of a dataset folder, read in chunks by the names and numbers that the checks use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from fuxictr_mm.check_data.arrays import is_number, split_lists
from fuxictr_mm.check_data.translation import Translation
from fuxictr_mm.data import parquet
from fuxictr_mm.data.arrow_types import is_list, is_plain_text, plain_type
from fuxictr_mm.data.numbering import extended_in, known_items
from fuxictr_mm.data.parquet import metadata_of, open_parquet, part_files, schema_of
from fuxictr_mm.errors import DataError, first_line
from fuxictr_mm.terminal import progress_bar
from fuxictr_mm_serving.prepared import ITEM_FILE, MANIFEST, ROW_SOURCES, SOURCE_ID

#: Numbers and rows in a chunk: they bound its memory to some 8 MB, whatever the length of its lists.
CHUNK_VALUES, CHUNK_ROWS = 1 << 20, 1 << 16

#: In the order of time: a later split must not show in an earlier one.
SPLITS = ("train", "valid", "test")
ITEM_FILES = ("item_info", "item_feature", "item_emb")


@dataclass
class DataFile:
    """A split or an item file: a Parquet file, or a folder of part files.

    By default, columns and ids are those of the file.
    """

    path: Path
    translation: Translation = field(default_factory=Translation, repr=False, kw_only=True)

    @property
    def file(self) -> str:
        """Name of the file, for findings."""
        return self.path.name

    @property
    def name(self) -> str:
        """Name of the split or item file: that of its file or folder, or the value of a Hive partition."""
        return name_of(self.path)

    @property
    def sources(self) -> set[str]:
        """Columns of ``fuxictr-mm prepare`` that say where rows or items come from, which are not features."""
        if not (self.path.parent / MANIFEST).is_file():
            return set()
        return set(ROW_SOURCES) if self.name in SPLITS else {SOURCE_ID} if self.file == ITEM_FILE else set()

    @cached_property
    def continues(self) -> bool:
        """Whether ``fuxictr-mm prepare`` wrote it after an earlier folder, whose clicks its histories have as well."""
        return any(
            extended_in(metadata) or known_items(metadata) is not None
            for metadata in map(metadata_of, part_files(self.path))
        )

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the file, or of the first of part files; extension types are their storage."""
        schema = schema_of(part_files(self.path)[0])
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise DataError(f"{self.path}: several columns are named {', '.join(twice)}, expected one of each name")
        # Of dictionaries, the checks look at the values.
        kinds = [f.type if pa.types.is_dictionary(f.type) else plain_type(f.type) for f in schema]
        schema = pa.schema([f.with_type(kind) for f, kind in zip(schema, kinds, strict=True)])
        return self.translation.schema(schema)

    def chunks(self, columns: Sequence[str], what: str = "", verbose: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield ``(first row, record batch)`` of the file or of all part files, the columns in the order asked for.

        Rows of small files come together: a chunk costs the checks some 20 ms, whatever it holds.
        """
        row, path = 0, self.path
        try:
            first = schema_of(part_files(path)[0])
            there = self.translation.names_on_disk(first.names, columns)
            rows, values = self._size(there)
            size = int(np.clip(CHUNK_VALUES / max(values, 1), 256, CHUNK_ROWS))
            chunks = _joined(parquet.read_rows(path, there, max_rows=size), size)
            total = -(-rows // size)
            for row, batch in progress_bar(chunks, what or path.name, verbose=verbose, total=total):
                _check_kinds(path, batch, first)
                yield row, self.translation.batch(path, batch.select(there), columns)
        except DataError:
            raise
        except (pa.ArrowException, ValueError, IndexError) as error:
            reason = first_line(error)
            raise DataError(f"{path}: damaged after row {row} ({reason})") from None

    def first_chunk(self, column: str) -> pa.Array | None:
        """Return the first rows of a column; None where there are none. The check of a column reports its damage."""
        try:
            return next((batch.column(0) for _, batch in self.chunks([column])), None)
        except DataError:
            return None

    def values_per_row(self, columns: Sequence[str]) -> float:
        """Return how many numbers a row of these columns has, in the row group where it has most."""
        return self._size(columns)[1]

    def _size(self, columns: Sequence[str]) -> tuple[int, float]:
        """Return the number of rows, and ``values_per_row``, from the footers."""
        rows, most = 0, 0.0
        for file in part_files(self.path):
            footer = open_parquet(file).metadata
            rows += footer.num_rows
            for group in map(footer.row_group, range(footer.num_row_groups)):
                chunks = (group.column(c) for c in range(group.num_columns))
                values = sum(c.num_values for c in chunks if c.path_in_schema.split(".")[0] in columns)
                most = max(most, values / max(group.num_rows, 1))
        return rows, most

    def list_lengths(self, column: str) -> Counter[int]:
        """Return how many lists of a column have each length, the empty ones left out."""
        kind = self.schema.field(column).type
        if pa.types.is_fixed_size_list(kind):
            return Counter([kind.list_size])
        counts: Counter[int] = Counter()
        for _, batch in self.chunks([column]):
            counts.update(np.diff(split_lists(batch.column(0))[1]).tolist())
        del counts[0]
        return counts

    def common_length(self, column: str) -> int:
        """Return the length of most lists of a column, the empty ones left out; 0 where all are empty."""
        counts = self.list_lengths(column)
        return counts.most_common(1)[0][0] if counts else 0


def data_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder, and folders of part files such as ``train`` or ``split=train``."""
    files = {name_of(path): path for path in sorted(folder.glob("*.parquet"))}
    for path in sorted(path for path in folder.glob("*") if path.is_dir()):
        if name_of(path) in (*SPLITS, *ITEM_FILES) and not path.name.endswith(".parquet"):
            files.setdefault(name_of(path), path)
    return sorted(files.values())


def name_of(path: Path) -> str:
    """Return the name of a split or item file, see ``DataFile.name``."""
    return path.name.removesuffix(".parquet").rpartition("=")[2]


def _check_kinds(path: Path, batch: pa.RecordBatch, first: pa.Schema) -> None:
    """Raise a DataError for a column that is text in one part file and numbers or lists in the ``first``."""
    for column in batch.schema:
        kinds = [plain_type(first.field(column.name).type), plain_type(column.type)]
        if len({_kind(kind) for kind in kinds if not pa.types.is_null(kind)}) > 1:
            raise DataError(
                f"{path}: {column.name} holds {kinds[0]} in the first part file and {kinds[1]} in another; write "
                "all of them with one type"
            )


def _kind(kind: pa.DataType) -> str:
    if is_list(kind):
        return "lists"
    return "text" if is_plain_text(kind) else "numbers" if is_number(kind) else "others"


def _joined(chunks: Iterable[tuple[int, pa.RecordBatch]], size: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Join chunks of equal types that follow one another to at most ``size`` rows."""
    first, waiting = 0, list[pa.RecordBatch]()
    try:
        for row, batch in chunks:
            rows = sum(b.num_rows for b in waiting)
            if waiting and (rows + batch.num_rows > size or batch.schema != waiting[0].schema):
                yield first, pa.concat_batches(waiting)
                waiting = []
            first = first if waiting else row
            waiting.append(batch)
    except DataError:  # after what is before the damage
        if waiting:
            yield first, pa.concat_batches(waiting)
        raise
    if waiting:
        yield first, pa.concat_batches(waiting)
