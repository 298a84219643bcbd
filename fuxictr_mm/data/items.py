"""Item features, one tensor per feature, indexed by item id.

Shape letters: I items (padding included), D dim, M requested ids.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from fuxictr_mm.data import arrow_types, decoding, parquet
from fuxictr_mm.data.decoding import SCALAR_TYPES, decode_scalar
from fuxictr_mm.data.schema import ITEM_ID, Feature, key_of_items
from fuxictr_mm.data.vocabulary import UNKNOWN, Vocabularies, Vocabulary, is_text, plain
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
    num_trained : int, optional
        Items from this number on are new: a model has no parameters of their ids. All have by default.
    vocabulary : Vocabulary, optional
        By which the ids of the files become numbers of items, new ones included; they are numbers by default.
    scales : mapping of str to float, optional
        Factors on columns of 8-bit integers, which are embeddings that become float32 when they are read.
    """

    known: Tensor

    def __init__(
        self,
        columns: Mapping[str, Tensor],
        known: Tensor,
        num_trained: int | None = None,
        vocabulary: Vocabulary | None = None,
        scales: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.names = tuple(columns)
        self.scales = dict(scales or {})
        self.vocabulary = vocabulary
        self.num_trained = known.numel() if num_trained is None else num_trained
        self.register_buffer("known", known, persistent=False)
        for name, column in columns.items():
            self.register_buffer(f"column_{name}", column, persistent=False)

    @property
    def num_items(self) -> int:
        """I, including the padding row."""
        return self.known.numel()

    def __getitem__(self, name: str) -> Tensor:
        return self._decoded(name, self.get_buffer(f"column_{name}"))

    def _decoded(self, name: str, column: Tensor) -> Tensor:
        return column.float() * self.scales.get(name, 1.0) if column.dtype == torch.int8 else column

    def stored(self, name: str) -> Tensor:
        """Return a column as it is kept: 8-bit integers are not decoded."""
        return self.get_buffer(f"column_{name}")

    def dim(self, name: str) -> int:
        """Return the dim of an embedding, or the length of a sequence."""
        return self.get_buffer(f"column_{name}").shape[1]

    def _rows(self, name: str, ids: Tensor) -> Tensor:
        return self._decoded(name, self.get_buffer(f"column_{name}").index_select(0, ids))

    def trained_ids(self, ids: Tensor) -> Tensor:
        """Return ids ``(M,)`` with 0, whose embedding is zero, in place of new items, which have no embedding."""
        return ids if self.num_trained == self.num_items else ids * (ids < self.num_trained)

    def rows(self, ids: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the named features of the items ``ids`` ``(M,)``, each ``(M, ...)``; ``item_id`` is the id itself."""
        return {n: self.trained_ids(ids) if n == ITEM_ID else self._rows(n, ids) for n in names}

    @classmethod
    def from_parquet(
        cls,
        paths: str | Sequence[str],
        features: Sequence[Feature],
        *,
        target: str = ITEM_ID,
        ids: Literal["auto", "as_is", "vocabulary"] = "as_is",
        vocabularies: Vocabularies | None = None,
        zero_is_padding: Callable[[], bool] = lambda: False,
    ) -> ItemTable:
        """Read item features from one file or several, joined on their key.

        Rows may be in any order and row 0 may be missing. A column is taken from the first path that has it; a path
        that adds no column is not opened and need not exist. A path may be a folder of part files.

        Parameters
        ----------
        paths : str or sequence of str
            The item files.
        features : sequence of Feature
            Those with ``source: item`` are read.
        target : str
            Name of the key, where a file has no ``item_id``.
        ids : {"auto", "as_is", "vocabulary"}
            Whether the ids are the numbers of the items, or a vocabulary gives the numbers; see ``DatasetConfig``.
        vocabularies : Vocabularies, optional
            Those of a run; or those that are built here, of the ids and of columns of text, are added.
        zero_is_padding : callable
            Returns whether histories are padded with 0; called where item 0 has features, with ``ids="auto"``. They are
            then no reason for a vocabulary.

        Raises
        ------
        DataError, MissingFileError
            A missing column; a duplicate id, a negative one or one beyond ``vocab_size``; an embedding of another dim
            than the others or with values that are not finite.
        """
        vocabularies = Vocabularies() if vocabularies is None else vocabularies
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
            parts = [part for part in (_read_file(file, missing, target) for file in files) if len(part.keys)]
            if not parts:
                raise DataError(f"{path}: no rows, expected one per item")
            read += parts
            for part in parts:
                for name in (*part.columns, *part.of_ids):
                    found.setdefault(name, []).append(part)
        if absent and not (read and wanted.keys() <= found.keys()):
            raise absent[0]
        for name in wanted:
            if name not in found:
                present = sorted({c for part in read for c in part.present})
                parquet.require_columns(", ".join(str(part.path) for part in read), present, [name])
        num_trained = items_of = None
        reason = _why_vocabulary(read, found, limit, ids, vocabularies, zero_is_padding)
        if reason is None:
            _place_by_id(read, limit)
            num_items = limit or _infer_num_items(read)
            _warn_of_item_zero(found)
        else:
            build = partial(_number_items, read, found, ids, reason)
            remedy = "; if the run took them as they are, set ids: as_is" if ids == "auto" else ""
            trained = vocabularies.of(ITEM_ID, build, read[0].key, remedy)
            items_of = _place_by_vocabulary(read, trained)
            num_items = max(limit or 0, len(items_of) + 1)
            if len(items_of) > len(trained):
                num_trained = len(trained) + 1
                logger.info(
                    f"{len(items_of) - len(trained)} items are not in {vocabularies.path}: they have their features, "
                    "and no embedding of their ids"
                )
        known = np.zeros(num_items, dtype=bool)
        known[0] = True
        for part in read:
            known[part.ids] = True
        for name, feature in wanted.items():
            _decode_ids(feature, found[name], vocabularies, items_of, num_trained)
        columns = {n: _assemble(f, found[n], num_items, known, items_of, num_trained) for n, f in wanted.items()}
        scales = {name: wanted[name].scale for name, column in columns.items() if column.dtype == torch.int8}
        return cls(columns, torch.from_numpy(known), num_trained, items_of, scales)


def _why_vocabulary(
    parts: Sequence[_Part],
    found: Mapping[str, Sequence[_Part]],
    limit: int | None,
    ids: str,
    vocabularies: Vocabularies,
    zero_is_padding: Callable[[], bool],
) -> str | None:
    """Return why items are numbered by a vocabulary, None where their ids are their numbers."""
    if ITEM_ID in vocabularies:
        return "of a run"
    if ids != "auto":
        return "ids: vocabulary" if ids == "vocabulary" else None
    if any(not pa.types.is_integer(part.keys.type) for part in parts):
        return "texts"
    lowest, highest = _bounds(parts)
    if lowest < 0:
        return f"the negative id {lowest}"
    count = sum(len(part.keys) for part in parts)
    if highest >= decoding.MAX_IDS or (limit is None and highest >= MANY_ITEMS and highest >= MAX_GAP * count):
        return f"the id {highest} of {count} items"
    return "the id 0 with features" if _item_zero(found) and not zero_is_padding() else None


def _bounds(parts: Sequence[_Part]) -> tuple[int, int]:
    """Return the smallest and the largest integer id."""
    bounds = [arrow_types.numbers(part.keys) for part in parts]
    return min(int(b.min()) for b in bounds), max(int(b.max()) for b in bounds)


def _number_items(parts: Sequence[_Part], found: Mapping[str, Sequence[_Part]], ids: str, reason: str) -> Vocabulary:
    """Return the vocabulary of the items, in the order of the files."""
    with_zero = ids == "vocabulary" or _item_zero(found) is not None
    vocabulary = Vocabulary.build([_without_padding(part, with_zero) for part in parts], parts[0].where)
    if not len(vocabulary):
        raise DataError(f"{parts[0].path}: no items but padding, expected one row per item")
    logger.info(f"{parts[0].where}: {len(vocabulary)} ids are numbered by a vocabulary ({reason})")
    return vocabulary


def _without_padding(part: _Part, with_zero: bool) -> pa.Array:
    """Return the ids of a part, without the id 0 unless it is an item."""
    if with_zero or not pa.types.is_integer(part.keys.type):
        return part.keys
    return part.keys.filter(pc.not_equal(part.keys, pa.scalar(0, part.keys.type)))


def _place_by_vocabulary(parts: Sequence[_Part], trained: Vocabulary) -> Vocabulary:
    """Set the numbers of the items; return their vocabulary, in which new items follow the trained ones."""
    vocabulary = trained
    for part in parts:
        if not pa.types.is_integer(part.keys.type):
            empty = np.flatnonzero(arrow_types.numbers(pc.equal(pc.binary_length(part.keys), 0)))
            if empty.size:
                raise DataError(f"{part.where}: row {empty[0]} is empty, expected an id; drop the row")
        new = trained.encode(part.keys, part.where) == UNKNOWN
        if new.any():
            vocabulary = vocabulary.extended(part.keys.filter(pa.array(new)), part.where)
    for part in parts:
        part.set_ids(vocabulary.encode(part.keys, part.where))
    return vocabulary


def _place_by_id(parts: Sequence[_Part], limit: int | None) -> None:
    """Set the numbers of the items: their ids."""
    for part in parts:
        if not pa.types.is_integer(part.keys.type):
            raise DataError(
                f"{part.where}: holds {str(part.keys.type).removeprefix('large_')}, expected numbers; set ids: auto in "
                "dataset_config.yaml"
            )
        if pa.types.is_uint64(part.keys.type):
            highest = int(arrow_types.numbers(part.keys).max())
            if highest >= decoding.MAX_IDS:
                raise DataError(
                    f"{part.where}: holds the id {highest}, expected 0 to {decoding.MAX_IDS - 1}; set ids: vocabulary "
                    "in dataset_config.yaml"
                )
        ids = arrow_types.numbers(part.keys).astype(np.int64)
        decoding.check_ids(ids, limit, part.where, 0)
        part.set_ids(ids)


def _item_zero(found: Mapping[str, Sequence[_Part]]) -> tuple[_Part, str] | None:
    """Return a part and a column in which item 0 has a value that is neither zero nor missing."""
    for name, parts in found.items():
        for part in parts:
            if not pa.types.is_integer(part.keys.type):
                continue
            rows = np.flatnonzero(arrow_types.numbers(part.keys) == 0)
            if rows.size and part.has_values(name, int(rows[0])):
                return part, name
    return None


def _warn_of_item_zero(found: Mapping[str, Sequence[_Part]]) -> None:
    """Warn if item 0 has features: ids that begin at 0 lose an item, because 0 is padding."""
    if where := _item_zero(found):
        part, name = where
        logger.warning(
            f"{part.path}: {part.key} 0 has a '{name}', but id 0 is padding: its features are set to zero and "
            "it is dropped from histories; if it is a real item, set ids: vocabulary in dataset_config.yaml"
        )


def _infer_num_items(parts: Sequence[_Part]) -> int:
    """Return the largest id plus one; tables of that length must not be mostly empty."""
    largest, part = max(((int(part.ids.max()), part) for part in parts), key=lambda pair: pair[0])
    count = sum(part.ids.size for part in parts)
    if largest >= MANY_ITEMS and largest >= MAX_GAP * count:
        raise DataError(
            f"{part.path}: {part.key} {largest} for {count} items: tables are as long as the largest id; set ids: "
            f"vocabulary in dataset_config.yaml, or write vocab_size for {part.key} to allow it"
        )
    return largest + 1


@dataclass
class _Part:
    """Columns of one file.

    Parameters
    ----------
    path : Path
        The file.
    present : list of str
        Names of all its columns.
    key : str
        Name of the column of ids.
    keys : pyarrow.Array
        ``(rows,)`` ids as they are in the file, see ``vocabulary.plain``.
    columns : dict of str to ndarray
        Requested columns, decoded.
    of_ids : dict of str to list
        Requested columns that a vocabulary may number: the first row and the values of each chunk.
    """

    path: Path
    present: list[str]
    key: str
    keys: pa.Array
    columns: dict[str, np.ndarray]
    of_ids: dict[str, list[tuple[int, pa.Array]]]

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


def _as_list(paths: str | os.PathLike[str] | Sequence[str]) -> list[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _read_file(path: Path, wanted: Mapping[str, Feature], target: str) -> _Part:
    """Return the requested columns of one file; a part file may have no rows."""
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
            dim = parts[name][0].shape[-1] if parts[name] else None
            parts[name].append(_decode(array, wanted[name], f"{path}: {name}", row, keys[-1], dim, key))
    if not keys:
        return _Part(path, present, key, pa.array([], pa.int64()), {}, {})
    columns = {n: np.concatenate(_pad_to_longest(p)) for n, p in parts.items()}
    return _Part(path, present, key, pa.concat_arrays(keys), columns, of_ids)


def _may_be_ids(feature: Feature, kind: pa.DataType) -> bool:
    """Whether a vocabulary may number a column: one of text, or of ids of other items."""
    return feature.type in ("categorical", "sequence") and (is_text(kind) or feature.share_embedding == ITEM_ID)


def _keys(array: pa.Array, where: str, row: int) -> pa.Array:
    """Return ids as ``vocabulary.plain`` does; each row must have one."""
    if array.null_count or not (is_text(array.type) or pa.types.is_integer(array.type)):
        ids = arrow_types.from_numbers(decoding.scalars(array, where, row))
        return plain(array, where) if pa.types.is_floating(array.type) else ids
    return plain(array, where)


def _decode_ids(
    feature: Feature,
    parts: Sequence[_Part],
    vocabularies: Vocabularies,
    items_of: Vocabulary | None,
    num_trained: int | None,
) -> None:
    """Decode a column that was kept as it is until the items were numbered.

    Parameters
    ----------
    feature : Feature
        Ids of other items, or texts.
    parts : sequence of _Part
        The parts that have the column.
    vocabularies : Vocabularies
        That of the column is added, if it has one.
    items_of : Vocabulary or None
        That of the items.
    num_trained : int, optional
        Items from this number on have no embedding, and become 0.
    """
    chunks = [(part, row, values) for part in parts for row, values in part.of_ids.get(feature.name, ())]
    if not chunks:
        return
    where = f"{chunks[0][0].path}: {feature.name}"
    of_items = feature.share_embedding == ITEM_ID and items_of is not None
    vocabulary = items_of
    if not of_items:
        vocabulary = None
        if feature.name in vocabularies or any(is_text(values.type) for _, _, values in chunks):
            entries = (_entries_of(values, feature, where)[0] for _, _, values in chunks)
            vocabulary = vocabularies.of(feature.name, lambda: Vocabulary.build(entries, where))
    decoded: dict[Path, list[np.ndarray]] = {part.path: [] for part, _, _ in chunks}
    for part, row, values in chunks:
        where = f"{part.path}: {feature.name}"
        if vocabulary is None:
            keys = part.keys.slice(row, len(values))
            decoded[part.path].append(_decode(values, feature, where, row, keys, None, part.key))
            continue
        entries, lengths = _entries_of(values, feature, where)
        numbers = vocabulary.encode(entries, where)
        if of_items and (numbers == UNKNOWN).any():
            bad = int(np.flatnonzero(numbers == UNKNOWN)[0])
            raise DataError(
                f"{where}: holds the item id {entries[bad].as_py()!r} in row "
                f"{row + int(np.searchsorted(np.cumsum(lengths), bad, side='right'))}, which no item file has; add the "
                "item or remove the id"
            )
        numbers[(numbers == UNKNOWN) | (numbers >= (num_trained if of_items and num_trained else np.inf))] = 0
        if feature.type == "sequence":
            numbers = _left_pad(numbers, lengths, feature.max_len, where, row)
        decoded[part.path].append(numbers.astype(np.int32))
    for part, _, _ in chunks:
        part.columns[feature.name] = np.concatenate(_pad_to_longest(decoded[part.path]))


def _entries_of(values: pa.Array, feature: Feature, where: str) -> tuple[pa.Array, np.ndarray]:
    """Return the entries of a column of ids or of lists of ids, and the length of each row ``(rows,)``."""
    if feature.type != "sequence":
        return values, np.ones(len(values), dtype=np.int64)
    entries, offsets = decoding.list_entries(values, where)
    return entries, np.diff(offsets)


def _pad_to_longest(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Left-pad sequences to the longest part; embeddings have one dim already, or are all null (NaN)."""
    widest = max(p.shape[-1] for p in parts)
    fills = [np.nan if p.dtype.kind == "f" else 0 for p in parts]
    return [
        p if p.ndim == 1 else np.pad(p, ((0, 0), (widest - p.shape[1], 0)), constant_values=fill)
        for p, fill in zip(parts, fills, strict=True)
    ]


def _decode(
    array: pa.Array, feature: Feature, where: str, row: int, keys: pa.Array, known_dim: int | None, key: str
) -> np.ndarray:
    if feature.type in SCALAR_TYPES:
        return decode_scalar(array, where, row, feature)
    flat, offsets = decoding.lists(array, where, row)
    lengths = np.diff(offsets)
    if feature.type == "sequence":
        rows = row + np.repeat(np.arange(lengths.size), lengths)
        flat = decoding.integers(flat, where, rows)
        decoding.check_ids(flat, feature.vocab_size, where, rows)
        _warn_of_zero_among_ids(flat, offsets, where, row)
        return _left_pad(flat, lengths, feature.max_len, where, row).astype(np.int32)
    # A null is an item without an embedding, as after a left join: NaN here, zero in the table.
    present = arrow_types.numbers(array.is_valid())
    dim = feature.pretrain_dim or known_dim or int(np.bincount(lengths[lengths > 0], minlength=1).argmax())
    wrong = present & (lengths != (dim or -1))
    if wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        source = "pretrain_dim" if feature.pretrain_dim else "the dim of the other embeddings"
        raise DataError(
            f"{where}: {key} {keys[bad].as_py()} has an embedding of dim {lengths[bad]}, expected {dim} ({source}); "
            "write null or zeros where an embedding is missing"
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


def _warn_of_zero_among_ids(flat: np.ndarray, offsets: np.ndarray, where: str, row: int) -> None:
    """Warn if 0 seems to be an id: beside others in lists of several lengths, which nobody has padded."""
    lengths = np.diff(offsets)
    if row or not lengths.any() or lengths[lengths > 0].min() == lengths.max():
        return
    zeros = np.diff(np.append(0, np.cumsum(flat == 0))[offsets])
    beside = np.flatnonzero((zeros > 0) & (zeros < lengths))
    if beside.size:
        logger.warning(
            f"{where}: row {int(beside[0])} holds the id 0 beside others, in lists of several lengths, but 0 is "
            "padding and is not used; number the values from 1 on, or write them as texts"
        )


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


def _assemble(
    feature: Feature,
    parts: Sequence[_Part],
    num_items: int,
    known: np.ndarray,
    vocabulary: Vocabulary | None,
    num_trained: int | None,
) -> Tensor:
    """Write the rows of all part files to the rows of their ids."""
    columns = [part.columns[feature.name] for part in parts]
    if feature.type == "embedding" and not any(c.shape[1] for c in columns):
        files = ", ".join(str(part.path) for part in parts)
        raise DataError(f"{files}: {feature.name}: null in every row, expected a list of numbers for most items")
    if feature.type == "embedding" and len({c.shape[1] for c in columns} - {0}) > 1:
        listing = ", ".join(f"{p.path.name} {c.shape[1]}" for p, c in zip(parts, columns, strict=True))
        raise DataError(f"column '{feature.name}': dims differ between files ({listing}), expected one dim")
    columns = _pad_to_longest(columns)
    values = np.zeros((num_items, *columns[0].shape[1:]), dtype=np.result_type(*columns))
    filled = np.zeros(num_items, dtype=bool)
    for part, column in zip(parts, columns, strict=True):
        twice = np.flatnonzero(filled[part.ids])
        if twice.size:
            item = part.keys[int(twice[0])].as_py()
            raise DataError(f"{part.where} {item} is in another part file as well, expected once")
        filled[part.ids] = ~np.isnan(column[:, 0]) if feature.type == "embedding" else True
        values[part.ids] = column if filled[part.ids].all() else np.nan_to_num(column)
    values[0] = 0
    filled[0] = True
    missing = np.flatnonzero(known & ~filled)
    if missing.size:
        files = ", ".join(part.path.name for part in parts)
        first = missing[0] if vocabulary is None else vocabulary.decode(missing[:1])[0].as_py()
        logger.warning(
            f"{files}: {missing.size} of {int(known.sum()) - 1} items have no '{feature.name}' "
            f"(first: {parts[0].key} {first}); they are set to zero"
        )
    if values.dtype == np.int8:
        return torch.from_numpy(values)
    return torch.from_numpy(normalize(values, feature.norm, feature.scale, num_trained))


def normalize(values: np.ndarray, norm: str | None, scale: float = 1.0, num_trained: int | None = None) -> np.ndarray:
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
    num_trained : int, optional
        Items from this number on are new, and do not count in mean and variance of ``standard``.

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
        axis, counted = (
            (1, found) if norm == "layer" else (0, found[np.flatnonzero(present) < (num_trained or len(values))])
        )
        mean, deviation = counted.mean(axis=axis, keepdims=True), counted.std(axis=axis, keepdims=True)
        found -= mean
        found /= np.where(deviation > 1e-12, deviation, 1)
    normalized = np.zeros_like(values)
    normalized[present] = found * scale
    return normalized
