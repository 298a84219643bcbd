"""Which files of a folder are what: splits, item files, titles and vectors.

Shape letters: I rows of an item file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from fuxictr_mm.data.parquet import MAX_IDS
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ
from fuxictr_mm.embeddings.quality.findings import Report
from fuxictr_mm.embeddings.quality.reading import (
    ids_of,
    is_list_of,
    is_number,
    numbers,
    read_chunks,
    read_schema,
    split_lists,
)
from fuxictr_mm.errors import MissingFileError

#: In the order of time: a later split must not show in an earlier one.
SPLITS = ("train", "valid", "test")
ITEM_FILES = ("item_info", "item_feature", "item_emb")


@dataclass
class ItemFile:
    """An item file that can be read.

    Parameters
    ----------
    path : Path
        The file.
    schema : pyarrow.Schema
        Its columns.
    ids : ndarray of int64, (I,)
        ``item_id`` of each row, -1 where it is none.
    id_lists : list of str
        Columns of lists of ids, such as tags: of integers, or of floating-point numbers that are whole.
    """

    path: Path
    schema: pa.Schema
    ids: np.ndarray
    id_lists: list[str]

    @property
    def vectors(self) -> list[str]:
        """Columns of floating-point lists, those of ids left out."""
        return [f.name for f in self.schema if is_list_of(f.type, floating=True) and f.name not in self.id_lists]


@dataclass
class Layout:
    """The files of a folder.

    Parameters
    ----------
    folder : Path
        Where they lie.
    splits : dict of str to Path
        The splits that are there.
    items : list of ItemFile
        The item files that can be read.
    item_paths : list of Path
        All item files.
    others : list of str
        Parquet files that are neither.
    """

    folder: Path
    splits: dict[str, Path] = field(default_factory=dict)
    items: list[ItemFile] = field(default_factory=list)
    item_paths: list[Path] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def known_ids(self) -> np.ndarray:
        """Return the ids that some item file has, sorted, without padding."""
        ids = np.unique(np.concatenate([item.ids for item in self.items] or [np.empty(0, np.int64)]))
        return ids[ids > 0]


def find_layout(folder: Path, report: Report) -> Layout:
    """Find the files of a folder and read the ids of its item files.

    Raises
    ------
    MissingFileError
        There is no such folder, or none of the files is in it.
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected one with train.parquet and item files")
    layout = Layout(folder)
    for path in sorted(folder.glob("*.parquet")):
        if path.stem in SPLITS:
            layout.splits[path.stem] = path
        elif path.stem in ITEM_FILES or _is_item_file(path):
            layout.item_paths.append(path)
        else:
            layout.others.append(path.name)
    layout.splits = {name: layout.splits[name] for name in SPLITS if name in layout.splits}
    if not layout.splits and not layout.item_paths:
        names = ", ".join(f"{name}.parquet" for name in (*SPLITS, *ITEM_FILES))
        raise MissingFileError(f"{folder}: holds none of {names}")
    for path in layout.item_paths:
        with report.reading(path):
            item = _read_item_file(path, report)
            if item is not None:
                layout.items.append(item)
    return layout


def _is_item_file(path: Path) -> bool:
    report = Report()
    with report.reading(path):
        names = read_schema(path).names
        return ITEM_ID in names and ITEM_SEQ not in names and "user_id" not in names
    return False


def _read_item_file(path: Path, report: Report) -> ItemFile | None:
    schema = read_schema(path)
    if not has_columns(path, schema, [ITEM_ID], report):
        return None
    if not is_number(schema.field(ITEM_ID).type):
        report.add("column-type", path.name, ITEM_ID, found=f"holds {schema.field(ITEM_ID).type}")
        return None
    parts = []
    for row, columns in read_chunks(path, [ITEM_ID]):
        ids, good = ids_of(columns[ITEM_ID])
        good &= ids < MAX_IDS
        ids = np.where(good, ids, -1)
        bad = np.flatnonzero(~good)
        report.add("bad-item-id", path.name, ITEM_ID, row + bad, ids[bad], columns[ITEM_ID].take(bad).to_pylist())
        parts.append(ids)
    if not parts:
        report.add("empty-file", path.name)
    id_lists = [f.name for f in schema if is_list_of(f.type, floating=False) or _holds_ids(path, f)]
    return ItemFile(path, schema, np.concatenate(parts or [np.empty(0, np.int64)]), id_lists)


def _holds_ids(path: Path, field: pa.Field) -> bool:
    """Whether a column of floating-point lists holds ids, by its first chunk: nearly all whole, and not all 0 or 1."""
    if not is_list_of(field.type, floating=True):
        return False
    # Damage is told by the check that reads the column.
    with Report(()).reading(path):
        for _, columns in read_chunks(path, [field.name]):
            values = numbers(split_lists(columns[field.name])[0])
            values = values[np.isfinite(values)]
            return bool(values.size and (values == np.floor(values)).mean() >= 0.99 and np.abs(values).max() > 1)
    return False


def has_columns(path: Path, schema: pa.Schema, wanted: Sequence[str], report: Report) -> bool:
    """Whether all columns are there; reports those that are not."""
    missing = [name for name in wanted if name not in schema.names]
    for name in missing:
        report.add("missing-column", path.name, name, found=f"no such column (columns: {', '.join(schema.names)})")
    return not missing
