"""Part files of item features: their columns, decoded and checked.

Shape letters: D dim, R rows of a file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from fuxictr_mm.data import arrow_types, decoding, parquet
from fuxictr_mm.data.decoding import SCALAR_TYPES, decode_scalar
from fuxictr_mm.data.numbering import known_items
from fuxictr_mm.data.schema import ITEM_ID, Feature, key_of_items
from fuxictr_mm.data.vocabulary import is_text, plain
from fuxictr_mm.errors import DataError

logger = logging.getLogger(__name__)


@dataclass
class Part:
    """Columns of one file."""

    path: Path  #: The file.
    present: list[str]  #: Names of all its columns.
    key: str  #: Name of the column of ids.
    keys: pa.Array  #: ``(rows,)`` ids as they are in the file, see ``vocabulary.plain``.
    columns: dict[str, np.ndarray]  #: Requested columns, decoded.
    #: Requested columns that a vocabulary may number: the first row and the values of each chunk.
    of_ids: dict[str, list[tuple[int, pa.Array]]]
    known_items: int | None = None  #: Of a later log: items with larger ids are new.

    @property
    def where(self) -> str:
        """File and key, for errors."""
        return f"{self.path}: {self.key}"

    def set_ids(self, ids: np.ndarray) -> None:
        """Set the numbers of the items ``(rows,)``, each once."""
        _, first, counts = np.unique(ids, return_index=True, return_counts=True)
        if counts.max() > 1:
            twice = int(counts.argmax())
            raise DataError(
                f"{self.where} {self.keys[int(first[twice])].as_py()} occurs {counts[twice]} times, expected once"
            )
        self.ids = ids

    def has_values(self, name: str, row: int) -> bool:
        """Whether a row of a column has anything but zeros and nulls."""
        if name in self.columns:
            return bool(np.nan_to_num(self.columns[name][row]).any())
        value = next(
            values[row - first].as_py() for first, values in self.of_ids[name] if first <= row < first + len(values)
        )
        return any(value) if isinstance(value, list) else bool(value)


def read_part(path: Path, wanted: Mapping[str, Feature], target: str) -> Part:
    """Return the requested columns of one file; a part file may be empty."""
    schema = parquet.schema_of(path)
    present = schema.names
    key = key_of_items(target, present)
    names = [n for n in wanted if n in present]
    parquet.require_columns(path, present, [key, *names])
    deferred = [n for n in names if _may_be_ids(wanted[n], schema.field(n).type)]
    keys: list[pa.Array] = []
    parts: dict[str, list[np.ndarray]] = {n: [] for n in names if n not in deferred}
    of_ids: dict[str, list[tuple[int, pa.Array]]] = {n: [] for n in deferred}
    for row, batch in parquet.read_chunks(path, [key, *names]):
        keys.append(_keys(batch.column(key), f"{path}: {key}", row))
        for name in names:
            array = batch.column(name)
            if name in deferred:
                of_ids[name].append((row, array))
                continue
            dim = parts[name][-1].shape[-1] if parts[name] else None  # 0 where all so far are null
            parts[name].append(decode_column(array, wanted[name], f"{path}: {name}", row, keys[-1], dim, key))
    if not keys:
        return Part(path, present, key, pa.array([], pa.int64()), {}, {})
    columns = {n: np.concatenate(pad_to_longest(p)) for n, p in parts.items()}
    known = known_items(parquet.metadata_of(path))
    return Part(path, present, key, pa.concat_arrays(keys), columns, of_ids, known)


def _may_be_ids(feature: Feature, kind: pa.DataType) -> bool:
    """Whether a vocabulary may number a column: one of text, or of ids of other items."""
    return feature.type in ("categorical", "sequence") and (is_text(kind) or feature.share_embedding == ITEM_ID)


def _keys(array: pa.Array, where: str, row: int) -> pa.Array:
    """Return ids as ``vocabulary.plain`` does; each row must have one."""
    if array.null_count and is_text(array.type):
        bad = row + int(np.flatnonzero(arrow_types.numbers(array.is_null()))[0])
        raise DataError(f"{where}: row {bad} is null, expected the id of an item; fill or drop such rows")
    if array.null_count or not (is_text(array.type) or pa.types.is_integer(array.type)):
        ids = arrow_types.from_numbers(decoding.scalars(array, where, row))
        return plain(array, where) if pa.types.is_floating(array.type) else ids
    return plain(array, where)


def decode_column(
    array: pa.Array, feature: Feature, where: str, row: int, keys: pa.Array, known_dim: int | None, key: str
) -> np.ndarray:
    """Return a column: ``(R,)`` ids or numbers, or ``(R, D)`` padded ids or embeddings, NaN where one is missing.

    ``where`` and ``row``, its first row, are for errors, as are ``keys``, the ids of the rows, and the name of their
    column; ``known_dim`` is the dim of embeddings before these.
    """
    if feature.type in SCALAR_TYPES:
        return decode_scalar(array, where, row, feature)
    flat, offsets = decoding.lists(array, where, row)
    lengths = np.diff(offsets)
    if feature.type == "sequence":
        rows = row + np.repeat(np.arange(lengths.size), lengths)
        flat = decoding.integers(flat, where, rows)
        decoding.check_ids(flat, feature.vocab_size, where, rows)
        _warn_of_zero_among_ids(flat, offsets, where, row)
        return left_pad(flat, lengths, feature.max_len, where, row).astype(np.int32)
    # A null is an item without an embedding, as after a left join: NaN here, zero in the table.
    present = arrow_types.numbers(array.is_valid())
    dim = feature.pretrain_dim or known_dim or int(np.bincount(lengths[lengths > 0], minlength=1).argmax())
    wrong = present & (lengths != (dim or -1))
    if wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        source = "pretrain_dim" if feature.pretrain_dim else "the dim of the other embeddings"
        raise DataError(
            f"{where}: {key} {keys[bad].as_py()} has an embedding of dim {lengths[bad]}, expected {dim or '1 or more'} "
            f"({source}); write null or zeros where an embedding is missing"
        )
    if flat.dtype == np.int8 and present.all() and feature.norm is None and feature.freeze_emb:
        return flat.reshape(-1, dim)  # a quarter of the memory of float32
    with np.errstate(over="ignore"):  # too large for float32: becomes infinite and is refused below
        embeddings = flat.astype(np.float32).reshape(int(present.sum()), dim)
    finite = np.isfinite(embeddings)
    if not finite.all():
        bad, position = np.argwhere(~finite)[0]
        item = keys[int(np.flatnonzero(present)[bad])].as_py()
        raise DataError(
            f"{where}: {key} {item} holds {embeddings[bad, position]} at position {position}, "
            "expected finite numbers; write null or zeros where an embedding is missing"
        )
    if present.all():
        return embeddings
    with_gaps = np.full((len(keys), dim), np.nan, dtype=np.float32)
    with_gaps[present] = embeddings
    return with_gaps


def pad_to_longest(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Left-pad sequences to the longest part; embeddings have one dim already, or are all null (NaN)."""
    widest = max(p.shape[-1] for p in parts)
    fills = [np.nan if p.dtype.kind == "f" else 0 for p in parts]
    return [
        p if p.ndim == 1 else np.pad(p, ((0, 0), (widest - p.shape[1], 0)), constant_values=fill)
        for p, fill in zip(parts, fills, strict=True)
    ]


def left_pad(flat: np.ndarray, lengths: np.ndarray, max_len: int | None, where: str, row: int) -> np.ndarray:
    """Return the entries of all rows, ``(R, max_len)`` or as long as the longest row, with 0 on the left."""
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


def _warn_of_zero_among_ids(flat: np.ndarray, offsets: np.ndarray, where: str, row: int) -> None:
    """Warn if 0 seems to be an id: beside others in lists of several lengths, which nobody has padded."""
    lengths = np.diff(offsets)
    if row or not lengths.any() or lengths[lengths > 0].min() == lengths.max():
        return
    zeros = np.diff(np.append(0, np.cumsum(flat == 0))[offsets])
    beside = np.flatnonzero((zeros > 0) & (zeros < lengths))
    if beside.size:
        logger.warning(
            f"{where}: row {int(beside[0])} holds the id 0 and others, in lists of several lengths, but 0 "
            "is padding and is ignored; number the values from 1 on, or write them as texts"
        )
