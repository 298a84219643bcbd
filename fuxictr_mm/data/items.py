"""Item features, one tensor per feature, indexed by item id.

Shape letters: I items (padding included), D dim, M requested ids.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from fuxictr_mm.data import parquet
from fuxictr_mm.data.parquet import SCALAR_TYPES, decode_scalar
from fuxictr_mm.data.schema import ITEM_ID, Feature
from fuxictr_mm.errors import DataError, MissingFileError

logger = logging.getLogger(__name__)

#: Ids below this are never called sparse; beyond it, more than ``MAX_GAP`` unused ids per item are refused.
MANY_ITEMS, MAX_GAP = 1_000_000, 100


class ItemTable(nn.Module):
    """Item feature table: buffers that move with the model and are not part of its state dict.

    Parameters
    ----------
    columns : mapping of str to Tensor
        ``(I,)`` or ``(I, D)``; row 0 is padding and zero.
    known : Tensor
        ``(I,)`` bool, True for ids of the item files and for row 0.
    """

    known: Tensor

    def __init__(self, columns: Mapping[str, Tensor], known: Tensor) -> None:
        super().__init__()
        self.names = tuple(columns)
        self.register_buffer("known", known, persistent=False)
        for name, column in columns.items():
            self.register_buffer(f"column_{name}", column, persistent=False)

    @property
    def num_items(self) -> int:
        """I, including the padding row."""
        return self.known.numel()

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(f"column_{name}")

    def rows(self, ids: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the named features of the items ``ids`` ``(M,)``, each ``(M, ...)``; ``item_id`` is the id itself."""
        return {n: ids if n == ITEM_ID else self[n].index_select(0, ids) for n in names}

    @classmethod
    def from_parquet(cls, paths: str | Sequence[str], features: Sequence[Feature]) -> ItemTable:
        """Read item features from one file or several, joined on ``item_id``.

        Rows may be in any order and row 0 may be missing. A column is taken from the first path that has it; a path
        that adds no column is not opened and need not exist. A path may be a folder of part files.

        Raises
        ------
        DataError, MissingFileError
            A missing column; a duplicate id, a negative one or one beyond ``vocab_size``; an embedding of another dim
            than the others or with values that are not finite.
        """
        wanted = {f.name: f for f in features if (f.is_item or f.in_item_dict) and f.name != ITEM_ID}
        limit = next((f.vocab_size for f in features if f.name == ITEM_ID), None)
        found: dict[str, list[_Part]] = {}
        read: list[_Part] = []
        absent: list[MissingFileError] = []
        for path in _as_list(paths):
            missing = {n: f for n, f in wanted.items() if n not in found}
            if read and not missing:
                break
            try:
                files = parquet.part_files(path)
            except MissingFileError as error:
                # A later file may hold all that is wanted.
                absent.append(error)
                continue
            parts = [part for part in (_read_file(file, missing, limit) for file in files) if part.ids.size]
            if not parts:
                raise DataError(f"{path}: no rows, expected one per item")
            read += parts
            for part in parts:
                for name in part.columns:
                    found.setdefault(name, []).append(part)
        if absent and not (read and wanted.keys() <= found.keys()):
            raise absent[0]
        for name in wanted:
            if name not in found:
                present = sorted({c for part in read for c in part.present})
                parquet.require_columns(", ".join(str(part.path) for part in read), present, [name])
        num_items = limit or _infer_num_items(read)
        known = np.zeros(num_items, dtype=bool)
        known[0] = True
        for part in read:
            known[part.ids] = True
        _warn_of_item_zero(found)
        columns = {name: _assemble(feature, found[name], num_items, known) for name, feature in wanted.items()}
        return cls(columns, torch.from_numpy(known))


def _warn_of_item_zero(found: Mapping[str, Sequence[_Part]]) -> None:
    """Warn if item 0 has features: ids that begin at 0 lose an item, because 0 is padding."""
    for name, parts in found.items():
        for part in parts:
            if part.columns[name][part.ids == 0].any():
                logger.warning(
                    f"{part.path}: {ITEM_ID} 0 has a '{name}', but id 0 is padding: its features are set to zero and "
                    "it is dropped from histories; if it is a real item, number the items from 1 on"
                )
                return


def _infer_num_items(parts: Sequence[_Part]) -> int:
    """Return the largest id plus one; tables of that length must not be mostly empty."""
    largest, path = max((int(part.ids.max()), part.path) for part in parts)
    count = sum(part.ids.size for part in parts)
    if largest >= MANY_ITEMS and largest >= MAX_GAP * count:
        raise DataError(
            f"{path}: {ITEM_ID} {largest} for {count} items: tables are as long as the largest id; number the items "
            f"from 1 to {count} (histories and targets as well), or write vocab_size for {ITEM_ID} to allow it"
        )
    return largest + 1


@dataclass(frozen=True)
class _Part:
    """Columns of one file: all column names, the ids ``(rows,)``, and the requested columns."""

    path: Path
    present: list[str]
    ids: np.ndarray
    columns: dict[str, np.ndarray]


def _as_list(paths: str | os.PathLike[str] | Sequence[str]) -> list[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _read_file(path: Path, wanted: Mapping[str, Feature], limit: int | None) -> _Part:
    """Return the requested columns of one file; a part file may have no rows."""
    present = parquet.open_parquet(path).schema_arrow.names
    parquet.require_columns(path, present, [ITEM_ID])
    names = [n for n in wanted if n in present]
    id_parts: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {n: [] for n in names}
    for row, batch in parquet.read_chunks(path, [ITEM_ID, *names]):
        ids = parquet.scalars(batch.column(ITEM_ID), f"{path}: {ITEM_ID}", row)
        parquet.check_ids(ids, limit, f"{path}: {ITEM_ID}", row)
        id_parts.append(ids)
        for name in names:
            dim = parts[name][0].shape[-1] if parts[name] else None
            parts[name].append(_decode(batch.column(name), wanted[name], f"{path}: {name}", row, ids, dim))
    ids = np.concatenate(id_parts) if id_parts else np.zeros(0, dtype=np.int64)
    if ids.size == 0:
        return _Part(path, present, ids, {})
    unique, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
        raise DataError(f"{path}: {ITEM_ID} {unique[counts.argmax()]} occurs {counts.max()} times, expected once")
    return _Part(path, present, ids, {n: np.concatenate(_pad_to_longest(p)) for n, p in parts.items()})


def _pad_to_longest(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Left-pad sequences to the longest part; embeddings have one dim already, or are all null (NaN)."""
    widest = max(p.shape[-1] for p in parts)
    fill = np.nan if parts[0].dtype.kind == "f" else 0
    return [p if p.ndim == 1 else np.pad(p, ((0, 0), (widest - p.shape[1], 0)), constant_values=fill) for p in parts]


def _decode(
    array: pa.Array, feature: Feature, where: str, row: int, ids: np.ndarray, known_dim: int | None
) -> np.ndarray:
    if feature.type in SCALAR_TYPES:
        return decode_scalar(array, where, row, feature)
    flat, offsets = parquet.lists(array, where, row)
    lengths = np.diff(offsets)
    if feature.type == "sequence":
        rows = row + np.repeat(np.arange(lengths.size), lengths)
        flat = parquet.integers(flat, where, rows)
        parquet.check_ids(flat, feature.vocab_size, where, rows)
        return _left_pad(flat, lengths, feature.max_len, where, row).astype(np.int32)
    # A null is an item without an embedding, as after a left join: NaN here, zero in the table.
    present = parquet.numbers(array.is_valid())
    dim = feature.pretrain_dim or known_dim or int(np.bincount(lengths[lengths > 0], minlength=1).argmax())
    wrong = present & (lengths != (dim or -1))
    if wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        source = "pretrain_dim" if feature.pretrain_dim else "the dim of the other embeddings"
        raise DataError(
            f"{where}: {ITEM_ID} {ids[bad]} has an embedding of dim {lengths[bad]}, expected {dim} ({source}); "
            "write null or zeros where an embedding is missing"
        )
    with np.errstate(over="ignore"):  # too large for float32: becomes infinite and is refused below
        embeddings = flat.astype(np.float32).reshape(int(present.sum()), dim)
    finite = np.isfinite(embeddings)
    if not finite.all():
        bad, position = np.argwhere(~finite)[0]
        raise DataError(
            f"{where}: {ITEM_ID} {ids[present][bad]} holds {embeddings[bad, position]} at position {position}, "
            "expected finite numbers; write null or zeros where an embedding is missing"
        )
    if present.all():
        return embeddings
    with_gaps = np.full((len(ids), dim), np.nan, dtype=np.float32)
    with_gaps[present] = embeddings
    return with_gaps


def _left_pad(flat: np.ndarray, lengths: np.ndarray, max_len: int | None, where: str, row: int) -> np.ndarray:
    longest = int(lengths.max(initial=0))
    length = max_len or max(longest, 1)
    if longest > length:
        bad = row + int(lengths.argmax())
        raise DataError(f"{where}: row {bad} has {longest} entries, expected at most max_len {length}; raise max_len")
    if (lengths == length).all():
        return flat.reshape(-1, length)
    padded = np.zeros((lengths.size, length), dtype=flat.dtype)
    padded[np.arange(length) >= length - lengths[:, None]] = flat
    return padded


def _assemble(feature: Feature, parts: Sequence[_Part], num_items: int, known: np.ndarray) -> Tensor:
    """Write the rows of all part files to the rows of their ids."""
    columns = [part.columns[feature.name] for part in parts]
    if feature.type == "embedding" and not any(c.shape[1] for c in columns):
        files = ", ".join(str(part.path) for part in parts)
        raise DataError(f"{files}: {feature.name}: null in every row, expected a list of numbers for most items")
    if feature.type == "embedding" and len({c.shape[1] for c in columns} - {0}) > 1:
        listing = ", ".join(f"{p.path.name} {c.shape[1]}" for p, c in zip(parts, columns, strict=True))
        raise DataError(f"column '{feature.name}': dims differ between files ({listing}), expected one dim")
    columns = _pad_to_longest(columns)
    values = np.zeros((num_items, *columns[0].shape[1:]), dtype=columns[0].dtype)
    filled = np.zeros(num_items, dtype=bool)
    for part, column in zip(parts, columns, strict=True):
        twice = part.ids[filled[part.ids]]
        if twice.size:
            raise DataError(f"{part.path}: {ITEM_ID} {twice[0]} is in another part file as well, expected once")
        filled[part.ids] = ~np.isnan(column[:, 0]) if feature.type == "embedding" else True
        values[part.ids] = column if filled[part.ids].all() else np.nan_to_num(column)
    values[0] = 0
    filled[0] = True
    missing = np.flatnonzero(known & ~filled)
    if missing.size:
        files = ", ".join(part.path.name for part in parts)
        logger.warning(
            f"{files}: {missing.size} of {int(known.sum()) - 1} items have no '{feature.name}' "
            f"(first: {ITEM_ID} {missing[0]}); they are set to zero"
        )
    return torch.from_numpy(normalize(values, feature.norm, feature.scale))


def normalize(values: np.ndarray, norm: str | None, scale: float = 1.0) -> np.ndarray:
    """Normalise frozen embeddings, once for all batches.

    Parameters
    ----------
    values : ndarray
        ``(I, D)`` float32. An item without an embedding is zero, and stays so.
    norm : {None, "l2", "layer", "standard"}
        ``l2``: every embedding has length 1. ``layer``: mean 0 and variance 1 over its dims. ``standard``: mean 0 and
        variance 1 of each dim over the items that have an embedding; a dim that is constant becomes zero.
    scale : float
        What the result is multiplied by.

    Returns
    -------
    ndarray
        ``(I, D)`` float32; ``values`` itself if there is nothing to do.

    Examples
    --------
    >>> normalize(np.array([[0, 0], [3, 4]], dtype=np.float32), "l2", 10).tolist()
    [[0.0, 0.0], [6.0, 8.0]]
    """
    if norm is None:
        return values if scale == 1 else values * np.float32(scale)
    present = values.any(axis=1)
    found = values[present].astype(np.float64)
    if norm == "l2":
        found /= np.linalg.norm(found, axis=1, keepdims=True)
    elif found.size:
        axis = 1 if norm == "layer" else 0
        found -= found.mean(axis=axis, keepdims=True)
        deviation = found.std(axis=axis, keepdims=True)
        found /= np.where(deviation > 1e-12, deviation, 1)
    normalized = np.zeros_like(values)
    normalized[present] = found * scale
    return normalized
