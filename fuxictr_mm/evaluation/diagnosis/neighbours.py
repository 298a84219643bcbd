"""The items whose vectors point the same way as those of a few well-known items.

Shape letters: I items, K neighbours, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fuxictr_mm.data import parquet
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.errors import UserError

TITLE = "item_title"


def nearest_by_cosine(vectors: np.ndarray, item: int, known: np.ndarray, number: int) -> list[tuple[int, float]]:
    """Return the items of highest cosine with one item, and the cosine; none if it has no vector.

    Parameters
    ----------
    vectors : ndarray
        ``(I, D)`` by item id.
    item : int
        Id.
    known : ndarray
        ``(I,)`` bool, ids to choose from; those without a vector are left out.
    number : int
        K.
    """
    lengths = np.linalg.norm(vectors, axis=1).astype(np.float64)
    if lengths[item] == 0:
        return []
    cosine = (vectors @ vectors[item]).astype(np.float64) / np.where(lengths > 0, lengths, 1) / lengths[item]
    chosen = known & (lengths > 0)
    chosen[item] = False
    ids = np.flatnonzero(chosen)
    order = np.lexsort((ids, -cosine[ids]))[:number]
    return [(int(i), float(cosine[i])) for i in ids[order]]


def most_clicked(clicks: np.ndarray, known: np.ndarray, number: int) -> list[int]:
    """Return the ids of the items ``(I,)`` with most clicks, the lower id first of equals."""
    ids = np.flatnonzero(known)
    return [int(i) for i in ids[np.lexsort((ids, -clicks[ids]))[:number]]]


def read_titles(item_files: Sequence[str], ids: Iterable[int]) -> dict[int, str]:
    """Return the titles of some items, from whichever item files have ``item_title``."""
    wanted = np.array(sorted(set(ids)), dtype=np.int64)
    titles: dict[int, str] = {}
    for path in item_files:
        try:
            files = parquet.part_files(path)
        except UserError:
            continue  # a file that the experiment has no need of
        for file in files:
            if not {ITEM_ID, TITLE} <= set(parquet.open_parquet(file).schema_arrow.names):
                continue
            for row, batch in parquet.read_chunks(file, [ITEM_ID, TITLE]):
                found = parquet.scalars(batch.column(ITEM_ID), f"{file}: {ITEM_ID}", row)
                for place in np.flatnonzero(np.isin(found, wanted)):
                    title = batch.column(TITLE)[int(place)].as_py()
                    if title is not None:
                        titles.setdefault(int(found[place]), str(title))
    return titles


def describe(
    columns: Mapping[str, np.ndarray],
    clicks: np.ndarray,
    known: np.ndarray,
    item_files: Sequence[str],
    number_of_items: int = 5,
    number: int = 5,
) -> list[dict[str, Any]]:
    """Return the neighbours of the most clicked items by every vector column.

    Returns
    -------
    list of dict
        ``item_id``, ``title`` (None without one), ``clicks``, and ``columns``, a list of ``column`` and
        ``neighbours``: a list of ``item_id``, ``title`` and ``cosine``.
    """
    known = known.copy()
    known[0] = False
    found = {
        item: {column: nearest_by_cosine(vectors, item, known, number) for column, vectors in columns.items()}
        for item in most_clicked(clicks, known, number_of_items)
    }
    mentioned = {item for near in found.values() for pairs in near.values() for item, _ in pairs} | found.keys()
    titles = read_titles(item_files, mentioned)
    return [
        {
            "item_id": item,
            "title": titles.get(item),
            "clicks": int(clicks[item]),
            "columns": [
                {
                    "column": column,
                    "neighbours": [{"item_id": i, "title": titles.get(i), "cosine": cosine} for i, cosine in pairs],
                }
                for column, pairs in near.items()
            ],
        }
        for item, near in found.items()
    ]
