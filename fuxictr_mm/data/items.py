"""Item features, one tensor per feature, indexed by item id.

Shape letters: I items (padding included), D dim, M requested ids.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fuxictr_mm.data import parquet
from fuxictr_mm.data.item_numbers import ItemNumbers, decode_ids, number_items
from fuxictr_mm.data.item_parts import Part, pad_to_longest, read_part
from fuxictr_mm.data.numbers import Moments, apply_scale, scale_of
from fuxictr_mm.data.schema import ITEM_ID, Feature
from fuxictr_mm.data.vocabulary import Vocabularies, Vocabulary
from fuxictr_mm.errors import DataError, MissingFileError

logger = logging.getLogger(__name__)


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
        """Return a column as it is stored: 8-bit integers are not decoded."""
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
        read, found = _read_parts(paths, wanted, target)
        numbers = number_items(read, limit, ids, vocabularies, zero_is_padding)
        known = np.zeros(numbers.num_items, dtype=bool)
        known[0] = True
        for part in read:
            known[part.ids] = True
        for name, feature in wanted.items():
            decode_ids(feature, found[name], vocabularies, numbers)
        columns = {n: _assemble(f, found[n], known, numbers, vocabularies) for n, f in wanted.items()}
        scales = {name: wanted[name].scale for name, column in columns.items() if column.dtype == torch.int8}
        return cls(columns, torch.from_numpy(known), numbers.num_trained, numbers.vocabulary, scales)


def _read_parts(
    paths: str | Sequence[str], wanted: Mapping[str, Feature], target: str
) -> tuple[list[Part], dict[str, list[Part]]]:
    """Return all part files that are read, and those that have each wanted column."""
    found: dict[str, list[Part]] = {}
    read: list[Part] = []
    absent: list[MissingFileError] = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        missing = {n: f for n, f in wanted.items() if n not in found}
        if read and not missing:
            break
        try:
            files = parquet.part_files(path)
        except MissingFileError as error:
            # A later file may hold all that is wanted.
            absent.append(error)
            continue
        parts = [part for part in (read_part(file, missing, target) for file in files) if len(part.keys)]
        if not parts:
            raise DataError(f"{path}: no rows, expected one per item")
        read += parts
        for part in parts:
            for name in (*part.columns, *part.of_ids):
                found.setdefault(name, []).append(part)
    missing = {n: f for n, f in wanted.items() if n not in found}
    if absent and (missing or not read):
        raise MissingFileError(f"{absent[0]}{_written_by(missing)}")
    for name, feature in missing.items():
        present = sorted({c for part in read for c in part.present})
        try:
            parquet.require_columns(", ".join(str(part.path) for part in read), present, [name])
        except DataError as error:
            raise DataError(f"{error}{_written_by({name: feature})}") from None
    return read, found


def _written_by(missing: Mapping[str, Feature]) -> str:
    """Return which commands write columns of the items that are missing, as far as it can be told."""
    codes = [name for name, feature in missing.items() if not feature.embedded and feature.type != "embedding"]
    embeddings = [name for name, feature in missing.items() if feature.type == "embedding"]
    commands = {"fuxictr-mm embed quantize": codes, "fuxictr-mm embed encode, reduce, align or pretrain": embeddings}
    return "".join(f"; {', '.join(names)}: written by {command}" for command, names in commands.items() if names)


def _assemble(
    feature: Feature,
    parts: Sequence[Part],
    known: np.ndarray,
    numbers: ItemNumbers,
    vocabularies: Vocabularies,
) -> Tensor:
    """Write the rows of all part files to the rows of their ids; numbers are scaled by those of items in training."""
    columns = [part.columns[feature.name] for part in parts]
    if feature.type == "embedding" and not any(c.shape[1] for c in columns):
        files = ", ".join(str(part.path) for part in parts)
        raise DataError(f"{files}: {feature.name}: null in every row, expected a list of numbers for most items")
    if feature.type == "embedding" and len({c.shape[1] for c in columns} - {0}) > 1:
        listing = ", ".join(f"{p.path.name} {c.shape[1]}" for p, c in zip(parts, columns, strict=True))
        raise DataError(f"column '{feature.name}': dims differ between files ({listing}), expected one dim")
    columns = pad_to_longest(columns)
    values = np.zeros((known.size, *columns[0].shape[1:]), dtype=np.result_type(*columns))
    filled = np.zeros(known.size, dtype=bool)
    for part, column in zip(parts, columns, strict=True):
        twice = np.flatnonzero(filled[part.ids])
        if twice.size:
            item = part.keys[int(twice[0])].as_py()
            raise DataError(f"{part.where} {item} is also in another part file, expected once")
        filled[part.ids] = ~np.isnan(column[:, 0]) if feature.type == "embedding" else True
        values[part.ids] = column if filled[part.ids].all() else np.nan_to_num(column)
    values[0] = 0
    filled[0] = True
    missing = np.flatnonzero(known & ~filled)
    if missing.size:
        files = ", ".join(part.path.name for part in parts)
        first = missing[0] if numbers.vocabulary is None else numbers.vocabulary.decode(missing[:1])[0].as_py()
        to = "zero" if feature.fill_na is None else f"{feature.fill_na:g}"
        logger.warning(
            f"{files}: {missing.size} of {int(known.sum()) - 1} items have no '{feature.name}' "
            f"(first: {parts[0].key} {first}); they are set to {to}"
        )
    if feature.type == "numeric":
        return torch.from_numpy(_scaled(feature, values, missing, filled, numbers.num_trained, vocabularies, parts))
    if values.dtype == np.int8:
        return torch.from_numpy(values)
    return torch.from_numpy(normalize(values, feature.norm, feature.scale, numbers.num_trained))


def _scaled(
    feature: Feature,
    values: np.ndarray,
    missing: np.ndarray,
    filled: np.ndarray,
    num_trained: int | None,
    vocabularies: Vocabularies,
    parts: Sequence[Part],
) -> np.ndarray:
    """Return numbers of items ``(I,)``, scaled; the padding item, and one without a number, are zero."""
    if feature.fill_na is not None:
        values[missing] = feature.fill_na
        filled[missing] = True
    if feature.normalizer is None:
        return values
    filled[0] = False
    counted = values[:num_trained][filled[:num_trained]]
    where = f"{', '.join(str(part.path) for part in parts)}: {feature.name}"
    scale = scale_of(feature, vocabularies, partial(Moments.of, counted), where)
    return apply_scale(np.where(filled, values, scale[0]), scale, where, 0)


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
