"""Checks of item ids across item files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.embeddings.quality.findings import Report
from fuxictr_mm.embeddings.quality.layout import ItemFile, Layout
from fuxictr_mm.embeddings.quality.reading import is_list_of, is_number, read_chunks


def check_items(layout: Layout, report: Report) -> None:
    """Look for items twice, items that a file lacks, and padding that is not zero."""
    known = layout.known_ids()
    for item in layout.items:
        name = item.path.name
        again = later_rows(item.ids)
        again = again[item.ids[again] >= 0]
        report.add("duplicate-item", name, ITEM_ID, again, item.ids[again])
        lacking = np.setdiff1d(known, item.ids)
        report.add("partial-item", name, ITEM_ID, np.full(len(lacking), -1), lacking)
        if report.wants("padding-row"):
            with report.reading(item.path):
                _check_padding(item, report)


def later_rows(keys: np.ndarray) -> np.ndarray:
    """Return the places whose key stands earlier as well, sorted.

    Examples
    --------
    >>> later_rows(np.array([3, 5, 3, 3]))
    array([2, 3])
    """
    _, first = np.unique(keys, return_index=True)
    later = np.ones(len(keys), dtype=bool)
    later[first] = False
    return np.flatnonzero(later)


def _check_padding(item: ItemFile, report: Report) -> None:
    rows = np.flatnonzero(item.ids == 0)
    if not rows.size:
        return
    fields = [f for f in item.schema if f.name != ITEM_ID]
    names = [f.name for f in fields if _can_be_zero(f.type)]
    for start, columns in read_chunks(item.path, names):
        if start > rows[-1]:
            break
        for row in rows[(rows >= start) & (rows < start + len(columns[names[0]]))] if names else ():
            for name in names:
                value = columns[name][int(row - start)].as_py()
                if not _is_zero(value):
                    report.add("padding-row", item.path.name, name, [row], [0], [value])


def _can_be_zero(kind: pa.DataType) -> bool:
    return is_number(kind) or is_list_of(kind, floating=True) or is_list_of(kind, floating=False)


def _is_zero(value: Any) -> bool:
    return not any(value) if isinstance(value, list) else not value
