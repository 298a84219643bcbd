"""Who saw what, after which history, and whether a click followed: one tensor per column.

Shape letters: R rows, N history items of all rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fuxictr_mm.data import parquet
from fuxictr_mm.data import parquet as decoding
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ, Feature
from fuxictr_mm.errors import DataError


@dataclass(frozen=True)
class InteractionTable:
    """Interactions as columns.

    Parameters
    ----------
    context : dict of str to Tensor
        ``(R,)`` int32 ids or float32 numbers, or ``(R, width)`` for a sequence or a vector.
    target : Tensor
        ``(R,)`` int32, the item that was shown.
    history_values : Tensor
        ``(N,)`` int32, the items liked before, oldest first, padding removed.
    history_offsets : Tensor
        ``(R + 1,)`` int64, where each row's history begins and ends.
    label : Tensor or None
        ``(R,)`` float32, 1 for a click; None for a file without labels.
    group : Tensor or None
        ``(R,)`` int64, rows of one group are ranked against each other.
    source : str
        Where the rows come from, for messages.
    """

    context: dict[str, Tensor]
    target: Tensor
    history_values: Tensor
    history_offsets: Tensor
    label: Tensor | None = None
    group: Tensor | None = None
    source: str = "interactions"

    def __len__(self) -> int:
        return self.target.shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of all columns."""
        tensors = [*self.context.values(), self.target, self.history_values, self.history_offsets]
        tensors += [t for t in (self.label, self.group) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def has_labels(self) -> bool:
        """Whether there is a label for every row."""
        return self.label is not None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> InteractionTable:
        """Move every column to a device."""
        return self._map(lambda column: column.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> InteractionTable:
        """Copy every column to where a GPU can read it by itself."""
        return self._map(lambda column: column.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> InteractionTable:
        return InteractionTable(
            {name: change(column) for name, column in self.context.items()},
            change(self.target),
            change(self.history_values),
            change(self.history_offsets),
            None if self.label is None else change(self.label),
            None if self.group is None else change(self.group),
            self.source,
        )

    def slice(self, start: int, stop: int) -> InteractionTable:
        """Return adjacent rows, without a copy of what is large."""
        first, last = int(self.history_offsets[start]), int(self.history_offsets[stop])
        return InteractionTable(
            {name: column[start:stop] for name, column in self.context.items()},
            self.target[start:stop],
            self.history_values[first:last],
            self.history_offsets[start : stop + 1] - first,
            None if self.label is None else self.label[start:stop],
            None if self.group is None else self.group[start:stop],
            self.source,
        )

    @classmethod
    def from_parquet(
        cls, path: str | os.PathLike[str], features: Sequence[Feature], items: ItemTable, **options: Any
    ) -> InteractionTable:
        """Read and check a file, or a folder of part files; all of it is as in ``InteractionFiles``.

        Raises
        ------
        DataError, MissingFileError
            What is wrong, with file, column, row and value.
        """
        files = InteractionFiles(Path(path), features, items.known.numpy(), **options)
        table = concatenate(files.pieces())
        files.summarize([table])
        return table


def concatenate(pieces: Iterable[InteractionTable]) -> InteractionTable:
    """Return the rows of all pieces, in their order; of pieces that nobody else holds, no column is there twice."""
    columns: dict[tuple[str, str], list[Tensor]] = {}
    source = ""
    for piece in pieces:
        source = source or piece.source
        found = {("context", name): column for name, column in piece.context.items()}
        found["", "target"], found["", "history"] = piece.target, piece.history_values
        found["", "lengths"] = piece.history_offsets.diff()
        if piece.label is not None:
            found["", "label"] = piece.label
        if piece.group is not None:
            found["", "group"] = piece.group
        for key, column in found.items():
            columns.setdefault(key, []).append(column)
    # Let go of the parts at once: two copies of all columns would double the peak.
    joined = {key: torch.cat(columns.pop(key)) for key in list(columns)}
    lengths = joined["", "lengths"]
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return InteractionTable(
        {name: column for (kind, name), column in joined.items() if kind == "context"},
        joined["", "target"],
        joined["", "history"],
        offsets,
        joined.get(("", "label")),
        joined.get(("", "group")),
        source,
    )


@dataclass(frozen=True)
class Summary:
    """What is known of interactions once all have been seen.

    Parameters
    ----------
    num_rows : int
        Rows.
    num_history_items : int
        Items of all histories, padding left out.
    largest : dict of str to int
        Largest id of every categorical context column.
    """

    num_rows: int
    num_history_items: int
    largest: dict[str, int]


@dataclass(frozen=True, eq=False)
class InteractionFiles:
    """Interactions on disk: a file or a folder of part files, and how they are read.

    Parameters
    ----------
    path : path
        ``X.parquet``, ``X`` or a folder.
    features : sequence of Feature
        The columns to read are those that do not come from the item files.
    known : ndarray
        ``(I,)`` bool, which items there are: every target and history item must be one.
    label : str
        Label column.
    group_id : str, optional
        Group column.
    max_len : int, optional
        Keep the last ``max_len`` items of each history.
    needs_label : bool
        False for a file that is only scored: the label column may be missing.
    binary_label : bool
        The label must be 0 or 1, and where it is needed, both must occur; False for a regression.
    """

    path: Path
    features: Sequence[Feature]
    known: np.ndarray
    label: str = "label"
    group_id: str | None = None
    max_len: int | None = None
    needs_label: bool = True
    binary_label: bool = True

    def __len__(self) -> int:
        return sum(footer.num_rows for footer in self._footers.values())

    @cached_property
    def _footers(self) -> dict[Path, pq.FileMetaData]:
        return {file: parquet.open_parquet(file).metadata for file in parquet.part_files(self.path)}

    @cached_property
    def has_labels(self) -> bool:
        """Whether there is a label for every row.

        Raises
        ------
        DataError
            Only some part files have the column, or none has one that is needed.
        """
        names = {file: footer.schema.to_arrow_schema().names for file, footer in self._footers.items()}
        if self.needs_label:
            for file, present in names.items():
                parquet.require_columns(file, present, [self.label])
        having = [self.label in present for present in names.values()]
        if any(having) and not all(having):
            raise DataError(
                f"{self.path}: only some part files have a column '{self.label}', expected it in all or in none"
            )
        return all(having)

    @property
    def _context(self) -> list[Feature]:
        return [f for f in self.features if not f.is_item and f.type != "meta" and f.name != ITEM_SEQ]

    def sections(self, most_rows: int | None = None) -> list[parquet.Section]:
        """Return all rows as sections of about ``most_rows`` rows, in the files' order; one per file without it."""
        return [
            section
            for file, footer in self._footers.items()
            for section in parquet.split_sections(file, footer, most_rows or footer.num_rows)
        ]

    def pieces(self, sections: Iterable[parquet.Section] | None = None) -> Iterator[InteractionTable]:
        """Yield the rows of some sections, or all rows, a chunk at a time, each of them checked.

        Raises
        ------
        DataError, MissingFileError
            What is wrong, with file, column, row and value.
        """
        if len(self) == 0:
            raise DataError(f"{self.path}: no rows, expected at least one")
        wanted = [ITEM_ID, ITEM_SEQ, *(f.name for f in self._context)]
        wanted += [self.label] if self.has_labels else []
        wanted += [self.group_id] if self.group_id else []
        for section in self.sections() if sections is None else sections:
            for row, batch in parquet.read_chunks(section.path, list(dict.fromkeys(wanted)), section):
                yield self._decode(batch, section.path, row)

    def _decode(self, batch: pa.RecordBatch, file: Path, row: int) -> InteractionTable:
        def column(name: str) -> tuple[pa.Array, str, int]:
            return batch.column(name), f"{file}: {name}", row

        target = decoding.decode_target(*column(ITEM_ID), self.known)
        history, offsets = decoding.decode_history(*column(ITEM_SEQ), self.known, self.max_len)
        context = {f.name: decoding.decode_context(*column(f.name), f) for f in self._context}
        label = decoding.decode_label(*column(self.label), self.binary_label) if self.has_labels else None
        group = parquet.scalars(*column(self.group_id)) if self.group_id else None
        return InteractionTable(
            {name: torch.from_numpy(values) for name, values in context.items()},
            torch.from_numpy(target),
            torch.from_numpy(history),
            torch.from_numpy(offsets),
            None if label is None else torch.from_numpy(label),
            None if group is None else torch.from_numpy(group),
            str(self.path),
        )

    def summarize(self, pieces: Iterable[InteractionTable] | None = None) -> Summary:
        """Look at all rows, or at the pieces that hold them: with ``pieces()`` this is every check there is.

        Raises
        ------
        DataError
            There is one class where there should be two, or what ``pieces`` raises.
        """
        rows = items = 0
        largest: dict[str, int] = {}
        labels: set[float] = set()
        for piece in self.pieces() if pieces is None else pieces:
            rows += len(piece)
            items += piece.history_values.numel()
            for feature in self._context:
                if feature.type == "categorical":
                    highest = int(piece.context[feature.name].max())
                    largest[feature.name] = max(largest.get(feature.name, 0), highest)
            if piece.label is not None:
                labels |= {float(bound) for bound in piece.label.aminmax()}
        if self.needs_label and self.binary_label and len(labels) == 1:
            raise DataError(
                f"{self.path}: {self.label} is {labels.pop():g} in all {rows} rows, expected both 0 and 1; "
                "nothing can be learned or ranked"
            )
        return Summary(rows, items, largest)
