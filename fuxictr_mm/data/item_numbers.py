"""The indices of items: their ids, or those of a vocabulary, also in columns that hold ids of other items."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxictr_mm.data import arrow_types, decoding
from fuxictr_mm.data.ids import number_ids, why_numbered
from fuxictr_mm.data.item_parts import Part, decode_column, left_pad, pad_to_longest
from fuxictr_mm.data.schema import ITEM_ID, Feature
from fuxictr_mm.data.vocabulary import UNKNOWN, Vocabularies, Vocabulary, is_text
from fuxictr_mm.errors import DataError
from fuxictr_mm.terminal import plural

logger = logging.getLogger(__name__)

#: Ids below this are never called sparse; beyond it, more than ``MAX_GAP`` unused ids per item are refused.
MANY_ITEMS, MAX_GAP = 1_000_000, 100

#: What is said of items that training did not have.
WITHOUT_ID = "they have their features, but no embedding of their ids"


class ItemNumbers(NamedTuple):
    """How items are numbered: as ``ItemTable`` has it, I with padding."""

    num_items: int
    num_trained: int | None = None
    vocabulary: Vocabulary | None = None


def number_items(
    parts: Sequence[Part],
    limit: int | None,
    ids: str,
    vocabularies: Vocabularies,
    zero_is_padding: Callable[[], bool],
) -> ItemNumbers:
    """Give the rows of all parts their numbers: their ids, or those of a vocabulary, to which new items are added."""
    reason = _why_vocabulary(parts, limit, ids, vocabularies, zero_is_padding)
    if reason is not None:
        build = partial(_build_vocabulary, parts, ids, reason)
        remedy = "; if the run took them as they are, set ids: as_is" if ids == "auto" else ""
        trained = vocabularies.of(ITEM_ID, build, parts[0].key, remedy)
        items_of = _place_by_vocabulary(parts, trained)
        num_items = max(limit or 0, len(items_of) + 1)
        if len(items_of) == len(trained):
            return ItemNumbers(num_items, vocabulary=items_of)
        logger.info(f"{len(items_of) - len(trained)} items are not in {vocabularies.path}: {WITHOUT_ID}")
        return ItemNumbers(num_items, len(trained) + 1, items_of)
    known_items = next((part.known_items for part in parts if part.known_items is not None), None)
    if known_items is None:
        _place_by_id(parts, limit)
        num_items = limit or _infer_num_items(parts)
        _warn_of_item_zero(parts)
        return ItemNumbers(num_items)
    _place_by_id(parts, None)
    num_items = max(limit or 0, _infer_num_items(parts))
    if num_items > known_items + 1:
        logger.info(f"{parts[0].path}: {plural(num_items - known_items - 1, 'new item')}: {WITHOUT_ID}")
    return ItemNumbers(num_items, known_items + 1)


def _why_vocabulary(
    parts: Sequence[Part],
    limit: int | None,
    ids: str,
    vocabularies: Vocabularies,
    zero_is_padding: Callable[[], bool],
) -> str | None:
    """Return the reason why items are numbered by a vocabulary, None if their ids are used as they are."""
    if ITEM_ID in vocabularies:
        return "of a run"
    if (reason := why_numbered((part.keys for part in parts), ids)) or ids != "auto":
        return reason
    count, highest = sum(len(part.keys) for part in parts), max(int(arrow_types.numbers(p.keys).max()) for p in parts)
    if limit is None and highest >= MANY_ITEMS and highest >= MAX_GAP * count:
        return f"the id {highest} of {count} items"
    return "the id 0 with features" if _item_zero(parts) and not zero_is_padding() else None


def _build_vocabulary(parts: Sequence[Part], ids: str, reason: str) -> Vocabulary:
    """Return the vocabulary of the items, in the order of the files."""
    with_zero = ids == "vocabulary" or _item_zero(parts) is not None
    vocabulary = number_ids((part.keys for part in parts), parts[0].where, with_zero)
    if not len(vocabulary):
        raise DataError(f"{parts[0].path}: only padding, expected one row per item")
    logger.info(f"{parts[0].where}: {len(vocabulary)} ids are numbered by a vocabulary ({reason})")
    return vocabulary


def _place_by_vocabulary(parts: Sequence[Part], trained: Vocabulary) -> Vocabulary:
    """Set the numbers of the items; return their vocabulary, in which new items follow the trained ones."""
    vocabulary = trained
    for part in parts:
        if not pa.types.is_integer(part.keys.type):
            empty = np.flatnonzero(arrow_types.numbers(pc.equal(pc.binary_length(part.keys), 0)))
            if empty.size:
                raise DataError(f"{part.where}: row {empty[0]} is empty, expected an id; drop the row")
        new = trained.encode(part.keys, part.where) == UNKNOWN
        if new.any():
            further = part.keys.filter(pa.array(new))  # which follow: the others keep their numbers
            vocabulary = Vocabulary.build([vocabulary.values, further], part.where)
    for part in parts:
        part.set_ids(vocabulary.encode(part.keys, part.where))
    return vocabulary


def _place_by_id(parts: Sequence[Part], limit: int | None) -> None:
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


def _item_zero(parts: Sequence[Part]) -> tuple[Part, str] | None:
    """Return a part and a column in which item 0 has a value that is neither zero nor missing."""
    for part in parts:
        if not pa.types.is_integer(part.keys.type):
            continue
        for row in np.flatnonzero(arrow_types.numbers(part.keys) == 0)[:1].tolist():
            for name in (*part.columns, *part.of_ids):
                if part.has_values(name, row):
                    return part, name
    return None


def _warn_of_item_zero(parts: Sequence[Part]) -> None:
    """Warn if item 0 has features: ids that begin at 0 lose an item, because 0 is padding."""
    if where := _item_zero(parts):
        part, name = where
        logger.warning(
            f"{part.path}: {part.key} 0 has a '{name}', but id 0 is padding, so its features are set to "
            "zero and it is removed from histories; if it is a real item, set ids: vocabulary in dataset_config.yaml"
        )


def _infer_num_items(parts: Sequence[Part]) -> int:
    """Return the largest id plus one; raise an error if tables of that length would be mostly empty."""
    largest, part = max(((int(part.ids.max()), part) for part in parts), key=lambda pair: pair[0])
    count = sum(part.ids.size for part in parts)
    if largest >= MANY_ITEMS and largest >= MAX_GAP * count:
        raise DataError(
            f"{part.path}: {part.key} {largest} for {count} items: tables are as long as the largest id; set ids: "
            f"vocabulary in dataset_config.yaml, or write vocab_size for {part.key} to allow it"
        )
    return largest + 1


def decode_ids(feature: Feature, parts: Sequence[Part], vocabularies: Vocabularies, numbers_of: ItemNumbers) -> None:
    """Decode a column of texts or of ids of other items, after the items have been numbered.

    Its vocabulary, if it has one, is added to ``vocabularies``. Items that training did not have have no embedding, and
    become 0.
    """
    chunks = [(part, row, values) for part in parts for row, values in part.of_ids.get(feature.name, ())]
    if not chunks:
        return
    where = f"{chunks[0][0].path}: {feature.name}"
    vocabulary = numbers_of.vocabulary
    of_items = feature.share_embedding == ITEM_ID and vocabulary is not None
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
            decoded[part.path].append(decode_column(values, feature, where, row, keys, None, part.key))
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
        numbers[(numbers == UNKNOWN) | (numbers >= ((of_items and numbers_of.num_trained) or np.inf))] = 0
        if feature.type == "sequence":
            numbers = left_pad(numbers, lengths, feature.max_len, where, row)
        decoded[part.path].append(numbers.astype(np.int32))
    for part, _, _ in chunks:
        part.columns[feature.name] = np.concatenate(pad_to_longest(decoded[part.path]))


def _entries_of(values: pa.Array, feature: Feature, where: str) -> tuple[pa.Array, np.ndarray]:
    """Return the entries of a column of ids or of lists of ids, and the length of each row ``(rows,)``."""
    if feature.type != "sequence":
        return values, np.ones(len(values), dtype=np.int64)
    entries, offsets = decoding.list_entries(values, where)
    return entries, np.diff(offsets)
