"""Sizes of an experiment's data, from the footers of its Parquet files: no row is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.data import parquet
from fuxictr_mm.data.item_numbers import MANY_ITEMS, MAX_GAP
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SOURCE, Feature, complete, key_of_items, parse_features
from fuxictr_mm.data.vocabulary import is_text
from fuxictr_mm.errors import MissingFileError


@dataclass(frozen=True)
class ColumnSize:
    """A column by the footers of its files."""

    rows: int
    entries: int  #: Its values; of lists those of all rows, padding included.
    kind: pa.DataType  #: Type of a value.
    dim: int | None = None  #: Length of lists of one length.
    largest: int | None = None  #: Largest value of integers, where the footers have it.
    smallest: int | None = None

    @property
    def length(self) -> int:
        """Mean length of its lists, rounded up; 1 for scalars."""
        return self.dim or -(-self.entries // max(self.rows, 1))


def read_columns(path: str | Path) -> dict[str, ColumnSize]:
    """Return the columns of a file or folder of part files."""
    columns: dict[str, ColumnSize] = {}
    for file in parquet.part_files(path):
        opened = parquet.open_parquet(file)
        footer = opened.metadata
        for field in parquet.schema_of(file, footer):
            kind, dim = field.type, None
            if pa.types.is_fixed_size_list(kind):
                dim = kind.list_size
            if pa.types.is_list(kind) or pa.types.is_large_list(kind) or dim is not None:
                kind = kind.value_type
            found = columns.get(field.name, ColumnSize(0, 0, kind, dim))
            columns[field.name] = replace(found, rows=found.rows + footer.num_rows)
        # That of a list is NAME.list.element, and a name may hold dots as well.
        leaves = [f"{footer.schema.column(index).path}." for index in range(footer.num_columns)]
        names = [max((n for n in columns if leaf.startswith(f"{n}.")), key=len, default="") for leaf in leaves]
        for group in range(footer.num_row_groups):
            for index, name in enumerate(names):
                if name:
                    columns[name] = _with_chunk(columns[name], footer.row_group(group).column(index))
        for name, value in parquet.partition_columns(file).items():
            if name not in opened.schema_arrow.names:
                columns[name] = _with_partition(columns[name], value, footer.num_rows)
    return columns


def _with_chunk(column: ColumnSize, chunk: Any) -> ColumnSize:
    column = replace(column, entries=column.entries + chunk.num_values)
    statistics = chunk.statistics
    if statistics is None or not statistics.has_min_max or not isinstance(statistics.max, int):
        return column
    largest = max(statistics.max, statistics.max if column.largest is None else column.largest)
    smallest = min(statistics.min, statistics.min if column.smallest is None else column.smallest)
    return replace(column, largest=largest, smallest=smallest)


def _with_partition(column: ColumnSize, value: pa.Scalar, rows: int) -> ColumnSize:
    column = replace(column, entries=column.entries + rows)
    if not pa.types.is_integer(value.type) or not value.is_valid:
        return column
    known = [bound for bound in (column.largest, column.smallest, value.as_py()) if bound is not None]
    return replace(column, largest=max(known), smallest=min(known))


@dataclass(frozen=True)
class DataSizes:
    """Sizes of a dataset."""

    features: list[Feature]  #: Complete, as those of a loaded dataset.
    num_items: int  #: Items, padding included.
    #: Of every feature of items, in memory; ``known`` are the flags of the items that are there.
    item_bytes: dict[str, int]
    #: Of every split, if it is in memory.
    split_rows: dict[str, int]
    split_bytes: dict[str, int]
    history: int  #: Items of a history, on average; padding that the files hold counts.


def measure_data(config: ExperimentConfig) -> DataSizes:
    """Return the sizes of the data of an experiment.

    Raises
    ------
    ConfigError, DataError, MissingFileError
        The features are wrong; a file or a column is missing.
    """
    features = parse_features(config.columns)
    dataset, roles = config.dataset, config.dataset.roles
    if ITEM_ID not in {f.name for f in features}:
        features.append(Feature(ITEM_ID, "meta", ITEM_SOURCE))
    wanted = [f for f in features if f.is_item and f.name != ITEM_ID]
    key, columns = _item_columns(dataset.item_files, wanted, roles.target)
    item_id = next((f for f in features if f.is_item and f.name == ITEM_ID), None)
    num_items = item_id.vocab_size if item_id is not None else None
    num_items = num_items or _count_items(key, dataset.ids)
    dims = {f.name: f.max_len or f.pretrain_dim or columns[f.column].length for f in wanted if f.type in _LISTS}
    paths = {name: path for name in ("train", "valid", "test") if (path := dataset.path_of(name))}
    splits = {name: read_columns(path) for name, path in paths.items()}
    of_rows = [f.column for f in _of_rows(features)]
    for name, path in paths.items():
        labels = dataset.label_names if name != "test" else []
        parquet.require_columns(path, list(splits[name]), [roles.target, roles.history, *of_rows, *labels])
    train = splits["train"]
    sizes = {f.name: num_items for f in features if f.is_history or f.name == ITEM_ID}
    for feature in [f for f in features if f.type in ("categorical", "sequence") and f.name not in sizes]:
        column = columns.get(feature.column) or train[feature.column]
        sizes[feature.name] = 1 + (column.rows if column.largest is None else column.largest)
    features = complete(features, dims, sizes)
    item_bytes = {f.name: num_items * _row_bytes(f, columns[f.column]) for f in features if f.name in columns}
    return DataSizes(
        features,
        num_items,
        {**item_bytes, "known": num_items},
        {name: found[roles.target].rows for name, found in splits.items()},
        {name: _split_bytes(found, features, config) for name, found in splits.items()},
        min(train[roles.history].length, config.max_len),
    )


_LISTS = ("sequence", "embedding")


def _of_rows(features: Sequence[Feature]) -> list[Feature]:
    """Return the features that are read from the interactions, besides target and history."""
    return [f for f in features if f.is_context or f.is_further_history]


def _item_columns(
    paths: Sequence[str], wanted: Sequence[Feature], target: str
) -> tuple[ColumnSize, dict[str, ColumnSize]]:
    """Return the key and every wanted column, from the first path that has it, as ``ItemTable.from_parquet`` does."""
    key: ColumnSize | None = None
    found: dict[str, ColumnSize] = {}
    present: set[str] = set()
    absent: MissingFileError | None = None
    for path in paths:
        missing = [f.column for f in wanted if f.column not in found]
        if key is not None and not missing:
            break
        try:
            columns = read_columns(path)
        except MissingFileError as error:
            absent = absent or error
            continue
        name = key_of_items(target, list(columns))
        parquet.require_columns(path, list(columns), [name])
        own = columns[name]
        if key is None or (own.largest or own.rows) > (key.largest or key.rows):
            key = own
        present |= columns.keys()
        found |= {column: columns[column] for column in missing if column in columns}
    missing = [f.column for f in wanted if f.column not in found]
    if absent is not None and (missing or key is None):
        raise absent
    assert key is not None
    parquet.require_columns(", ".join(paths), sorted(present), missing)
    return key, found


def _count_items(key: ColumnSize, ids: str) -> int:
    """Return the number of items with padding: the largest id and one, or the rows where a vocabulary numbers them."""
    sparse = key.largest is not None and key.largest >= max(MANY_ITEMS, MAX_GAP * key.rows)
    numbered = ids == "vocabulary" or is_text(key.kind) or (key.smallest or 0) < 0 or (ids == "auto" and sparse)
    return 1 + (key.rows if numbered or key.largest is None else key.largest)


def _row_bytes(feature: Feature, column: ColumnSize) -> int:
    """Return the bytes of a feature of one item."""
    if feature.type == "embedding":
        as_stored = column.kind == pa.int8() and feature.norm is None and feature.freeze_emb
        return (feature.pretrain_dim or 0) * (1 if as_stored else 4)
    return 4 * ((feature.max_len or 1) if feature.type == "sequence" else 1)


def _split_bytes(columns: Mapping[str, ColumnSize], features: Sequence[Feature], config: ExperimentConfig) -> int:
    """Return the bytes of a split in memory, see ``InteractionTable``."""
    roles, max_len = config.dataset.roles, config.max_len
    rows = columns[roles.target].rows
    total = 4 * rows + 8 * rows  # target, offsets of the histories
    total += 4 * min(columns[roles.history].entries, rows * max_len)
    for feature in _of_rows(features):
        entries = columns[feature.column].entries
        if feature.history is not None:  # a further history, or a sequence along one
            entries = min(entries, rows * (feature.max_len or max_len))
        total += 4 * entries + (8 * rows if feature.type in ("sequence", "meta") else 0)
    total += 4 * rows * sum(label in columns for label in config.dataset.label_names)
    return total + 8 * rows * bool(config.group_id)
