"""The splits and the item files of a dataset folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from fuxictr_mm.check_data.arrays import as_id, is_number, is_number_list, split_lists, to_series
from fuxictr_mm.check_data.checks import ERROR, Action, Fault, Report, declare
from fuxictr_mm.check_data.columns import check_types, require
from fuxictr_mm.check_data.files import ITEM_FILES, SPLITS, DataFile, data_files, name_of
from fuxictr_mm.check_data.translation import USER_ID, Translation
from fuxictr_mm.data.decoding import MAX_IDS
from fuxictr_mm.data.schema import ITEM_ID, ITEM_SEQ
from fuxictr_mm.errors import DataError, MissingFileError

TITLE = "item_title"

#: Fraction of the numbers of a column that are exceptions: fractions among integers, outliers, negative ones among ids.
RARE = 0.01

EMPTY_FILE = declare("empty-file", ERROR, "no rows", "at least one row")
BAD_ITEM_ID = declare(
    "bad-item-id", ERROR, "null, negative, fractional or too large item ids", "integers below 2^31", Action.DROP_ROW
)


@dataclass
class ItemFile(DataFile):
    """An item file that can be read."""

    #: ``item_id`` of each row, ``(I,)`` int64, -1 where the value is not an id.
    ids: np.ndarray
    #: Columns of lists of ids, such as tags.
    id_lists: list[str]
    #: Ids of all item files, sorted, without padding.
    known: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def numbers(self) -> list[str]:
        """Columns of numbers, and of lists of ids."""
        numbers = [f.name for f in self.schema if is_number(f.type) and not pa.types.is_boolean(f.type)]
        return [name for name in numbers + self.id_lists if name not in {ITEM_ID, *self.sources}]

    @property
    def embeddings(self) -> list[str]:
        """Columns of lists of numbers that are not ids."""
        return [f.name for f in self.schema if is_number_list(f.type) and f.name not in self.id_lists]

    def fault(
        self, column: str, rows: np.ndarray, values: Sequence[object] | np.ndarray | None = None, **texts: str
    ) -> Fault:
        """Return rows ``(R,)`` of a column as a fault."""
        frame = pl.DataFrame({"row": rows, ITEM_ID: self.ids[rows]})
        value = pl.lit(None) if values is None else pl.Series(values, strict=False)
        return Fault(self.file, column, frame.with_columns(value=value), **texts)


@dataclass
class Layout:
    """The files of a folder: splits by name, and item files, of which ``items`` are those that can be read."""

    splits: dict[str, DataFile]
    item_files: list[DataFile] = field(default_factory=list)
    items: list[ItemFile] = field(default_factory=list)
    #: Files that are neither, and columns (``file: column (type)``) that no check looks at.
    not_checked: list[str] = field(default_factory=list)
    #: Between the files and the checks.
    translation: Translation = field(default_factory=Translation)
    #: Columns whose numbers are ids, as ``dataset_config.yaml`` has it.
    categories: Collection[str] = ()
    #: Embeddings that it gives a ``norm`` or a ``scale``.
    scaled: Collection[str] = ()
    #: The column of the weights of rows, where there is one.
    weight: str | None = None


def find_layout(folder: Path, report: Report, translation: Translation, title_column: str = TITLE) -> Layout:
    """Find the files of a folder, read the ids of its item files, and check the types of their columns."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected one with train.parquet and item files")
    files = {name_of(path): DataFile(path, translation=translation) for path in data_files(folder)}
    layout = Layout({name: files.pop(name) for name in SPLITS if name in files}, translation=translation)
    for name, file in files.items():
        if name in ITEM_FILES or _is_item_file(file):
            layout.item_files.append(file)
        else:
            layout.not_checked.append(file.file)
    if not layout.splits and not layout.item_files:
        names = ", ".join(f"{name}.parquet" for name in (*SPLITS, *ITEM_FILES))
        raise MissingFileError(f"{folder}: holds none of {names}")
    for file in layout.item_files:
        with report.reading(file.path):
            item = _read_item_file(file, report)
            if item is not None:
                layout.items.append(item)
                layout.not_checked += check_types(item, {ITEM_ID, title_column, *item.sources}, report)
    ids = np.unique(np.concatenate([item.ids for item in layout.items] or [np.empty(0, np.int64)]))
    for item in layout.items:
        item.known = ids[ids > 0]
    return layout


def _is_item_file(file: DataFile) -> bool:
    try:
        names = file.schema.names
    except (DataError, MissingFileError):
        return False
    return ITEM_ID in names and ITEM_SEQ not in names and USER_ID not in names


def _read_item_file(file: DataFile, report: Report) -> ItemFile | None:
    if not require(file, {ITEM_ID: "integers"}, report):
        return None
    parts = [np.empty(0, np.int64)]
    for row, batch in file.chunks([ITEM_ID]):
        ids = pl.DataFrame({"value": to_series(batch.column(0))}).with_row_index("row", row)
        ids = ids.select("row", pl.when(as_id("value") < MAX_IDS).then(as_id("value")).alias(ITEM_ID), "value")
        report.add(BAD_ITEM_ID, Fault(file.file, ITEM_ID, ids.filter(pl.col(ITEM_ID).is_null())))
        parts.append(ids[ITEM_ID].fill_null(-1).to_numpy())
    if len(parts) == 1:
        report.add(EMPTY_FILE, Fault(file.file))
    id_lists = [f.name for f in file.schema if is_number_list(f.type) and _holds_ids(file, f)]
    return ItemFile(file.path, np.concatenate(parts), id_lists, translation=file.translation)


def _holds_ids(file: DataFile, column: pa.Field) -> bool:
    """Whether lists hold ids, by their first chunk: nearly all are integers, not all 0 or 1, hardly any below -1."""
    array = file.first_chunk(column.name)
    if array is None:
        return False
    values = split_lists(array)[0].to_numpy(zero_copy_only=False).astype(np.float64)  # nulls are NaN
    values = values[np.isfinite(values)]
    if values.size and (values < -1).mean() > RARE:
        return False
    if pa.types.is_integer(column.type.value_type):
        return True
    return bool(values.size and (values == np.floor(values)).mean() >= 1 - RARE and np.abs(values).max() > 1)
