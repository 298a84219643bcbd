"""Interactions on disk: which rows and columns are read, and how they are decoded.

Shape letters: R rows, T labels of a row, one for each task.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fuxictr_mm.data import arrow_types, decoding, item_columns, parquet
from fuxictr_mm.data.groups import decode_group
from fuxictr_mm.data.interactions import Column, InteractionTable
from fuxictr_mm.data.labels import decode_label, decode_weight, label_kinds
from fuxictr_mm.data.numbers import Moments, apply_scale
from fuxictr_mm.data.schema import ITEM_ID, Feature
from fuxictr_mm.data.vocabulary import Conversion, Vocabulary, is_text
from fuxictr_mm.errors import DataError
from fuxictr_mm.jagged import Jagged

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class InteractionFiles:
    """Interactions on disk: a file or a folder of part files, and how it is read."""

    path: Path  #: ``X.parquet``, ``X`` or a folder.
    features: Sequence[Feature]  #: Those that do not come from the item files are read.
    known: np.ndarray  #: ``(I,)`` bool, True for ids of the item files: those of every target and history item.
    labels: Sequence[str] = ("label",)  #: Label columns. Of several, values may be missing.
    group_id: str | None = None  #: Group column; without ``needs_label`` it may be missing.
    max_len: int | None = None  #: Keep the last ``max_len`` items of each history.
    #: False for a file that is scored only: label columns may be missing, or hold placeholders throughout: nulls,
    #: texts, or one number other than 0 and 1.
    needs_label: bool = True
    numeric_labels: Collection[str] = ()  #: Labels of regressions, any numbers; the others must be 0 or 1.
    both_classes: bool = True  #: Of a label that must be 0 or 1, both must occur if ``needs_label``.
    conversion: Conversion = field(default_factory=Conversion)  #: How columns become numbers.
    has_items: bool = True  #: False for a dataset without target and history.
    weight: str | None = None  #: Column of the weights of rows.
    parts: Sequence[slice] | None = None  #: The rows that are read, one part after other; all of them by default.

    def __len__(self) -> int:
        if self.parts is not None:
            return sum(part.stop - part.start for part in self.parts)
        return sum(footer.num_rows for footer in self._footers.values())

    def select(self, parts: Sequence[slice]) -> InteractionFiles:
        """Return some rows of these files; row groups that hold none of them are not read."""
        return self.changed(parts=parts)

    def changed(self, **changes: Any) -> InteractionFiles:
        """Return these files, to be read in another way."""
        changed = replace(self, **changes)
        changed.__dict__["_footers"] = self._footers  # which are read once
        return changed

    @cached_property
    def _footers(self) -> dict[Path, pq.FileMetaData]:
        return {file: parquet.open_parquet(file).metadata for file in parquet.part_files(self.path)}

    @property
    def metadata(self) -> dict[Path, dict[bytes, bytes]]:
        """Metadata of each file."""
        return {file: footer.metadata or {} for file, footer in self._footers.items()}

    @property
    def _texts(self) -> set[str]:
        """The columns that hold texts by their ``dtype`` or the item files; folders of a partition tell no type."""
        items = self.conversion.vocabularies.get(ITEM_ID)
        targets = {self.conversion.target} if items is not None and is_text(items.values.type) else set()
        return targets | {f.column for f in self.features if f.is_text}

    @cached_property
    def _schemas(self) -> dict[Path, pa.Schema]:
        return {file: parquet.schema_of(file, footer, self._texts) for file, footer in self._footers.items()}

    @cached_property
    def present_labels(self) -> list[str]:
        """The label columns that the files have.

        Raises
        ------
        DataError
            Only some part files have a column, or none has one that is needed.
        """
        if self.needs_label:
            for file, schema in self._schemas.items():
                parquet.require_columns(file, schema.names, list(self.labels))
        return [name for name in self.labels if self.has_column(name) and not self._is_placeholder(name)]

    def has_column(self, name: str) -> bool:
        """Whether the files have a column.

        Raises
        ------
        DataError
            Only some part files have it.
        """
        having = [name in schema.names for schema in self._schemas.values()]
        if any(having) and not all(having):
            raise DataError(f"{self.path}: only some part files have a column '{name}', expected it in all or in none")
        return all(having)

    def _is_placeholder(self, name: str) -> bool:
        """Whether a label column holds no label in any row, where none is needed; logged. Stops at the first label."""
        if self.needs_label:
            return False
        found: set[str] = set()
        # Those of all processes, which must agree.
        for _, _, batch in replace(self, parts=None)._read([name]):
            found |= label_kinds(batch.column(0), name not in self.numeric_labels)
            if "label" in found or len(found - {"null"}) > 1:
                return False
        value = next(iter(found - {"null"}), "null")
        logger.warning(
            f"{self.path}: {name} is {value} in all rows and is treated as a placeholder; no test metrics are computed"
        )
        return True

    @cached_property
    def has_groups(self) -> bool:
        """Whether there is a group column to read."""
        return bool(self._group_columns)

    @cached_property
    def _group_columns(self) -> list[str]:
        """The group column, if there is one to read."""
        name = self.group_id
        return [name] if name and (self.needs_label or self.has_column(name)) else []

    def labels_and_groups(self) -> tuple[Tensor, Tensor | None]:
        """Return labels and groups, which metrics need besides predictions; no other column is read."""
        labels = [torch.zeros((0, len(self.labels)) if len(self.labels) > 1 else 0)]
        groups = [torch.zeros(0, dtype=torch.int64)]
        for file, row, batch in self._read([*self.present_labels, *self._group_columns]):
            labels.append(torch.from_numpy(self._decode_labels(batch, file, row)))
            for name in self._group_columns:
                groups.append(torch.from_numpy(decode_group(batch.column(name), f"{file}: {name}", row)))
        return torch.cat(labels), torch.cat(groups) if self.has_groups else None

    def group_texts(self) -> pa.ChunkedArray | None:
        """Return the groups of all rows where they are texts, in their order; otherwise None."""
        if not self.has_groups:
            return None
        chunks = [batch.column(0) for _, batch in parquet.read_rows(self.path, self._group_columns, parquet.CHUNK_ROWS)]
        if not all(arrow_types.is_plain_text(chunk.type) for chunk in chunks):
            return None
        return pa.chunked_array([chunk.cast(pa.large_string()) for chunk in chunks], pa.large_string())

    @property
    def _context(self) -> list[Feature]:
        return [f for f in self.features if f.is_context and f.history is None]

    @property
    def _histories(self) -> list[Feature]:
        """The further histories, then the sequences along any history."""
        found = [f for f in self.features if f.history is not None]
        return sorted(found, key=lambda feature: not feature.is_further_history)

    def row_group_ranges(self, max_rows: int | None = None) -> list[parquet.RowGroupRange]:
        """Return the rows as ranges of about ``max_rows`` rows, in their order; by default one per file and part."""
        ranges: list[parquet.RowGroupRange] = []
        for part in [slice(0, sys.maxsize)] if self.parts is None else self.parts:
            row = 0
            for file, footer in self._footers.items():
                start, stop = max(part.start - row, 0), min(part.stop - row, footer.num_rows)
                if start < stop:
                    ranges += parquet.split_row_groups(file, footer, max_rows or footer.num_rows, start, stop)
                row += footer.num_rows
        return ranges

    def chunks(self, ranges: Iterable[parquet.RowGroupRange] | None = None) -> Iterator[InteractionTable]:
        """Yield the rows of some ranges of row groups, or of all, in chunks, and check them.

        Raises
        ------
        DataError, MissingFileError
            With the file, the column, the row and the value.
        """
        if not any(footer.num_rows for footer in self._footers.values()):
            raise DataError(f"{self.path}: no rows, expected at least one")
        wanted = [self.conversion.target, self.conversion.history] if self.has_items else []
        wanted += [f.column for f in [*self._context, *self._histories]]
        wanted += [] if self.weight is None else [self.weight]
        dims: dict[str, int] = {}
        for file, row, batch in self._read([*wanted, *self.present_labels, *self._group_columns], ranges):
            chunk = self._decode(batch, file, row)
            for name, column in chunk.context.items():
                if (
                    isinstance(column, Tensor)
                    and column.dim() > 1
                    and dims.setdefault(name, dim := column.shape[1]) != dim
                ):
                    raise DataError(
                        f"{file}: {name}: row {row} has {dim} numbers, expected {dims[name]} as in the rows before"
                    )
            yield chunk

    def _read(
        self, columns: Sequence[str], ranges: Iterable[parquet.RowGroupRange] | None = None
    ) -> Iterator[tuple[Path, int, pa.RecordBatch]]:
        """Yield some columns in chunks, of ranges of row groups or of all, with the file and the first row of each."""
        wanted = list(dict.fromkeys(columns))
        for rows in self.row_group_ranges() if ranges is None else ranges:
            for row, batch in parquet.read_chunks(rows.path, wanted, rows, texts=self._texts):
                yield rows.path, row, batch

    def _decode(self, batch: pa.RecordBatch, file: Path, row: int) -> InteractionTable:
        def column(name: str) -> tuple[pa.Array, str, int]:
            return batch.column(name), f"{file}: {name}", row

        how = self.conversion
        item_ids = how.vocabularies.get(ITEM_ID)
        target = np.zeros(batch.num_rows, np.int32)
        history, offsets = np.zeros(0, np.int32), np.zeros(batch.num_rows + 1, np.int64)
        positions: dict[str, item_columns.Positions] = {}
        if self.has_items:
            target = item_columns.decode_target(*column(how.target), self.known, item_ids)
            lengths = {how.history: self.max_len}
            lengths |= {f.column: f.max_len or self.max_len for f in self._histories if f.is_further_history}
            for name, max_len in lengths.items():
                positions[name] = item_columns.decode_positions(
                    *column(name), self.known, max_len, item_ids, how.zero_ends
                )
            history, offsets = positions[how.history].items, positions[how.history].offsets
        context = {}
        for f in self._context:
            decoded = decoding.decode_context(*column(f.column), f, how.vocabularies.get(f.name))
            if isinstance(decoded, np.ndarray):
                decoded = apply_scale(decoded, how.scales.get(f.name), f"{file}: {f.column}", row)
            context[f.name] = _to_column(decoded)
        for f in self._histories:
            of = positions[str(f.history)]
            entries = of.items if f.is_further_history else item_columns.decode_along(*column(f.column), f, of)
            context[f.name] = _to_column((entries, of.offsets))
        label = self._decode_labels(batch, file, row) if self.present_labels else None
        group = decode_group(*column(self._group_columns[0])) if self.has_groups else None
        weight = None if self.weight is None else decode_weight(*column(self.weight))
        return InteractionTable(
            context,
            torch.from_numpy(target),
            torch.from_numpy(history),
            torch.from_numpy(offsets),
            None if label is None else torch.from_numpy(label),
            None if group is None else torch.from_numpy(group),
            str(self.path),
            None if weight is None else torch.from_numpy(weight),
        )

    def _decode_labels(self, batch: pa.RecordBatch, file: Path, row: int) -> np.ndarray:
        """Return the labels, ``(R,)``, or ``(R, T)`` of several; a missing value or column is NaN."""
        several = len(self.labels) > 1
        columns = [
            decode_label(batch.column(name), f"{file}: {name}", row, name not in self.numeric_labels, missing=several)
            if name in self.present_labels
            else np.full(batch.num_rows, np.nan, np.float32)
            for name in self.labels
        ]
        return np.stack(columns, axis=1) if several else columns[0]

    def columns_of_ids(self, always: bool) -> list[Feature]:
        """Return the context columns that a vocabulary numbers: those of text.

        Parameters
        ----------
        always : bool
            Return categorical columns of integers without ``vocab_size`` as well.
        """
        schemas = self._schemas.values()

        def holds_text(column: str) -> bool:
            # A name that occurs twice is refused where the column is read.
            return any(is_text(s.field(column).type) for s in schemas if s.names.count(column) == 1)

        categorical = [f for f in self._context if f.type == "categorical"]
        return [f for f in categorical if holds_text(f.column) or (always and f.vocab_size is None)]

    def build_vocabulary(self, column: str) -> Vocabulary:
        """Number the values of a column as they come first in all rows.

        Raises
        ------
        DataError, MissingFileError
            No such file or column; its part files hold values of several types.
        """
        return Vocabulary.build((batch.column(0) for _, _, batch in self._read([column])), f"{self.path}: {column}")

    def moments(self, feature: Feature) -> Moments:
        """Return the statistics of a numeric column over all rows, before it is scaled.

        Raises
        ------
        DataError, MissingFileError
            No such file or column; a value that is not a finite number.
        """
        found = Moments()
        for file, row, batch in self._read([feature.column]):
            where = f"{file}: {feature.column}"
            found.add(Moments.of(decoding.decode_numbers(batch.column(0), where, row, feature)))
        return found


def _to_column(decoded: np.ndarray | tuple[np.ndarray, np.ndarray]) -> Column:
    if isinstance(decoded, tuple):
        return Jagged(torch.from_numpy(decoded[0]), torch.from_numpy(decoded[1]))
    return torch.from_numpy(decoded)
