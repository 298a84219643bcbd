"""The items whose vectors point the same way as those of a few well-known items.

Shape letters: I items, K neighbours, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
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


def describe_neighbours(
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


logger = logging.getLogger(__name__)


#: Components are listed up to this number; beyond it the curve is thinned out.
LISTED = 256


def spectrum(vectors: np.ndarray) -> np.ndarray:
    """Return the variances of the principal components of ``(I, D)``, the largest first, ``(D,)`` float64."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    return np.linalg.eigvalsh(centred.T @ centred / max(len(vectors), 1))[::-1].clip(min=0)


def effective_rank(variances: np.ndarray) -> float:
    r"""Return :math:`\exp(-\sum_j q_j \log q_j)`, :math:`q_j` the share of component j in the variance.

    Roy and Vetterli: The Effective Rank, EUSIPCO 2007, https://ieeexplore.ieee.org/document/7098875

    Examples
    --------
    >>> round(effective_rank(np.array([2.0, 2.0, 0.0])), 6), effective_rank(np.zeros(3))
    (2.0, 0.0)
    """
    total = variances.sum()
    if total <= 0:
        return 0.0
    shares = variances[variances > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def participation_ratio(variances: np.ndarray) -> float:
    r"""Return :math:`(\sum_j \lambda_j)^2 / \sum_j \lambda_j^2`, as many as there are equal components.

    Examples
    --------
    >>> participation_ratio(np.array([2.0, 2.0, 0.0]))
    2.0
    """
    squares = float((variances**2).sum())
    return float(variances.sum()) ** 2 / squares if squares > 0 else 0.0


def describe(column: str, vectors: np.ndarray) -> dict[str, Any]:
    """Return what is known of the vectors ``(I, D)`` of all known items, padding left out."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    has_vector = norms > 0
    found, lengths = vectors[has_vector], norms[has_vector]
    variances = spectrum(found) if len(found) else np.zeros(vectors.shape[1])
    total = float(variances.sum())
    kept = np.cumsum(variances) / total if total > 0 else np.zeros(len(variances))
    listed = np.unique(np.geomspace(1, len(kept), LISTED).round().astype(int)) if len(kept) > LISTED else None
    components = np.arange(1, len(kept) + 1) if listed is None else listed
    return {
        "column": column,
        "width": vectors.shape[1],
        "items": len(vectors),
        "zero_share": float(1 - has_vector.mean()) if len(vectors) else 0.0,
        "norm_mean": float(lengths.mean()) if len(found) else 0.0,
        "norm_deviation": float(lengths.std()) if len(found) else 0.0,
        "norm_min": float(lengths.min()) if len(found) else 0.0,
        "norm_max": float(lengths.max()) if len(found) else 0.0,
        "variance": total,
        "effective_rank": effective_rank(variances),
        "participation_ratio": participation_ratio(variances),
        "components_90": int(np.searchsorted(kept, 0.9) + 1) if total > 0 else 0,
        "components_99": int(np.searchsorted(kept, 0.99) + 1) if total > 0 else 0,
        "kept": [{"components": int(n), "kept": float(kept[n - 1])} for n in components],
    }


def find_reduction(column: str, item_files: Sequence[str]) -> dict[str, Any] | None:
    """Return what the reduction that made a column kept, where its reducer lies beside the column's file.

    Returns
    -------
    dict or None
        ``file``, ``strategy``, ``width``, ``kept`` (share of all variance), ``kept_of`` (a list of ``modality`` and
        ``kept``), and for a joint PCA ``made_of`` (a list of ``modality`` and ``share``).
    """
    for path in _files_with(column, item_files):
        beside = path.with_suffix(".reducer.safetensors")
        if not beside.is_file():
            return None
        from fuxictr_mm.embeddings.reduce import Reducer, summarize

        try:
            reducer = Reducer.load(beside)
        except UserError as error:
            logger.warning(f"{error}; what it kept is left out")
            return None
        for entry in summarize(reducer, "")["strategies"]:
            if column.endswith(entry["column"]):
                found = {"file": str(beside), "strategy": entry["strategy"], "width": entry["width"]}
                found |= {"kept": entry["kept"]}
                found["kept_of"] = [{"modality": m, "kept": share} for m, share in entry["kept_of"].items()]
                if "made_of" in entry:
                    found["made_of"] = [{"modality": m, "share": share} for m, share in entry["made_of"].items()]
                return found
        return None
    return None


def _files_with(column: str, item_files: Sequence[str]) -> list[Path]:
    """Return the item files that have a column, the one that is read first."""
    found = []
    for path in item_files:
        try:
            files = parquet.part_files(path)
        except UserError:
            continue  # a file that the experiment has no need of
        found += [file for file in files if column in parquet.open_parquet(file).schema_arrow.names]
    return found
