"""Who saw what, after which history, and whether a click followed: one tensor per column.

Shape letters: R rows, N history items of all rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fuxictr_mm.data import parquet
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

    def to(self, device: torch.device | str) -> InteractionTable:
        """Move every column to a device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return InteractionTable(
            {n: c.to(device) for n, c in self.context.items()},
            self.target.to(device),
            self.history_values.to(device),
            self.history_offsets.to(device),
            move(self.label),
            move(self.group),
            self.source,
        )

    @classmethod
    def from_parquet(
        cls,
        path: str | os.PathLike[str],
        features: Sequence[Feature],
        items: ItemTable,
        *,
        label: str = "label",
        group_id: str | None = None,
        max_len: int | None = None,
        needs_label: bool = True,
        binary_label: bool = True,
    ) -> InteractionTable:
        """Read a file, or a folder of part files, a chunk of rows at a time.

        Parameters
        ----------
        path : path
            ``X.parquet``, ``X`` or a folder.
        features : sequence of Feature
            The columns to read are those that do not come from the item files.
        items : ItemTable
            Every target and history item must have a row there.
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

        Raises
        ------
        DataError, MissingFileError
            What is wrong, with file, column, row and value.
        """
        context = [f for f in features if not f.is_item and f.type != "meta" and f.name != ITEM_SEQ]
        collected = _Columns()
        for file in parquet.part_files(path):
            present = parquet.open_parquet(file).schema_arrow.names
            has_label = label in present
            if needs_label and not has_label:
                parquet.require_columns(file, present, [label])
            wanted = [ITEM_ID, ITEM_SEQ, *(f.name for f in context)]
            wanted += [label] if has_label else []
            wanted += [group_id] if group_id else []
            for row, batch in parquet.read_chunks(file, list(dict.fromkeys(wanted))):
                collected.add_target(batch.column(ITEM_ID), file, row, items)
                collected.add_history(batch.column(ITEM_SEQ), file, row, items, max_len)
                for feature in context:
                    collected.add_context(batch.column(feature.name), feature, file, row)
                if has_label:
                    collected.add_label(batch.column(label), file, row, label, binary_label)
                if group_id:
                    collected.add("group", parquet.scalars(batch.column(group_id), f"{file}: {group_id}", row))
        return collected.to_table(Path(path), context, label, both_classes=needs_label and binary_label)


@dataclass
class _Columns:
    """Chunks of every column, in the order read."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, name: str, values: np.ndarray) -> None:
        self.parts.setdefault(name, []).append(values)

    def add_target(self, array: object, file: Path, row: int, items: ItemTable) -> None:
        ids = parquet.scalars(array, f"{file}: {ITEM_ID}", row)
        _check_items(ids, f"{file}: {ITEM_ID}", row, items)
        self.add("target", ids.astype(np.int32))

    def add_history(self, array: object, file: Path, row: int, items: ItemTable, max_len: int | None) -> None:
        where = f"{file}: {ITEM_SEQ}"
        flat, offsets = parquet.lists(array, where, row)
        # Padding is zero, on either side or in between; what is left counts from the end of its row.
        kept = np.flatnonzero(flat)
        ends = np.searchsorted(kept, offsets)
        lengths = np.diff(ends)
        if max_len is not None and lengths.size and lengths.max() > max_len:
            from_end = np.repeat(ends[1:], lengths) - np.arange(kept.size)
            kept = kept[from_end <= max_len]
            lengths = np.minimum(lengths, max_len)
        rows = row + np.repeat(np.arange(lengths.size), lengths)
        ids = parquet.whole(flat[kept], where, rows)
        _check_items(ids, where, rows, items)
        self.add("history", ids.astype(np.int32))
        self.add("lengths", lengths)

    def add_context(self, array: object, feature: Feature, file: Path, row: int) -> None:
        where = f"{file}: {feature.name}"
        if feature.type == "categorical":
            ids = parquet.scalars(array, where, row)
            parquet.check_ids(ids, feature.vocab_size, where, row)
            self.add(feature.name, ids.astype(np.int32))
        elif feature.type == "numeric":
            self.add(feature.name, parquet.scalars(array, where, row, floating=True))
        else:
            raise DataError(
                f"{where}: a {feature.type} column of the interactions, expected categorical or numeric; "
                "sequences and vectors are read from item files (source: item)"
            )

    def add_label(self, array: object, file: Path, row: int, name: str, binary: bool) -> None:
        values = parquet.scalars(array, f"{file}: {name}", row, floating=True)
        wrong = (values != 0) & (values != 1)
        if binary and wrong.any():
            bad = int(np.flatnonzero(wrong)[0])
            raise DataError(f"{file}: {name}: row {row + bad} is {values[bad]:g}, expected 0 or 1")
        self.add("label", values)

    def to_table(self, path: Path, context: Sequence[Feature], label: str, both_classes: bool) -> InteractionTable:
        rows = sum(part.size for part in self.parts.get("target", []))
        if rows == 0:
            raise DataError(f"{path}: no rows, expected at least one")
        joined = {name: self._join(name) for name in list(self.parts)}
        labels = joined.get("label")
        if labels is not None and labels.size != rows:
            raise DataError(f"{path}: only some part files have a column '{label}', expected it in all or in none")
        if both_classes and labels is not None and labels.min() == labels.max():
            raise DataError(
                f"{path}: {label} is {labels[0]:g} in all {rows} rows, expected both 0 and 1; "
                "nothing can be learned or ranked"
            )
        offsets = np.concatenate(([0], np.cumsum(joined["lengths"], dtype=np.int64)))
        return InteractionTable(
            {f.name: torch.from_numpy(joined[f.name]) for f in context},
            torch.from_numpy(joined["target"]),
            torch.from_numpy(joined["history"]),
            torch.from_numpy(offsets),
            None if labels is None else torch.from_numpy(labels),
            torch.from_numpy(joined["group"]) if "group" in joined else None,
            str(path),
        )

    def _join(self, name: str) -> np.ndarray:
        # Let go of the chunks at once: two copies of all columns would double the peak.
        return np.concatenate(self.parts.pop(name))


def _check_items(ids: np.ndarray, where: str, row_of: np.ndarray | int, items: ItemTable) -> None:
    """Raise for padding or an id that no item file has; ``row_of`` is the first row or the row of every id."""
    good = (ids > 0) & (ids < items.num_items)
    good[good] = items.known.numpy()[ids[good]]
    if good.all():
        return
    first = int(np.flatnonzero(~good)[0])
    row = row_of + first if isinstance(row_of, int) else int(row_of[first])
    unknown = np.unique(ids[~good])
    reason = "0, which is padding" if ids[first] == 0 else f"{ids[first]}, which no item file has"
    raise DataError(
        f"{where}: row {row} holds the item id {reason} ({unknown.size} such ids in these rows; the item files have "
        f"{int(items.known.sum()) - 1} ids up to {items.num_items - 1}); add the items or drop the rows"
    )
