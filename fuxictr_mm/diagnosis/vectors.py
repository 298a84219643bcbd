"""Sections on item embeddings: their spectrum, what a reduction kept, and the nearest neighbours of well-known items.

Shape letters: I items, D embedding dim, K neighbours.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_mm.data import parquet
from fuxictr_mm.data.ids import AS_IS, Numbering
from fuxictr_mm.diagnosis.findings import WARNING, Finding
from fuxictr_mm.errors import UserError
from fuxictr_mm.reduction.pca import Moments
from fuxictr_mm.reduction.reducer import Reducer
from fuxictr_mm.reduction.summary import summarize
from fuxictr_mm.terminal import format_table

logger = logging.getLogger(__name__)

TITLE = "item_title"

#: Components in the curve of kept variance; of more, this many are listed, evenly on a logarithmic scale.
LISTED = 256

#: Items whose embeddings are in memory as float64 at once.
CHUNK_ROWS = 4096

#: A larger fraction of items without an embedding is reported.
MISSING_EMBEDDINGS = 0.05

#: Embeddings of a smaller effective rank have collapsed.
COLLAPSED_RANK = 2.0


def measure(
    columns: Sequence[str],
    read: Callable[[str], np.ndarray],
    clicks: np.ndarray,
    known: np.ndarray,
    item_files: Sequence[str],
    numbering: Numbering = AS_IS,
) -> dict[str, Any]:
    """Return the sections ``vectors`` and ``neighbours``, described in ``docs/diagnosis.md``; none without columns.

    ``read`` returns a column of embeddings ``(I, D)`` by item id, row 0 is padding: one is in memory at a time.
    ``clicks`` and ``known`` (bool, items of the item files) are ``(I,)``. Titles and reducers are looked for in
    ``item_files``, whose ids ``numbering`` numbers.
    """
    if not columns:
        return {}
    ids = np.flatnonzero(known[1:]) + 1
    described = [{**describe(name, read(name), ids), "reduction": find_reduction(name, item_files)} for name in columns]
    return {"vectors": described, "neighbours": find_neighbours(columns, read, clicks, ids, item_files, numbering)}


def describe(column: str, vectors: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
    """Return the statistics of the embeddings ``(I, D)`` of some items."""
    moments = Moments(vectors.shape[1])
    norms: np.ndarray = np.zeros(len(ids))
    for start in range(0, len(ids), CHUNK_ROWS):
        chunk = vectors[ids[start : start + CHUNK_ROWS]].astype(np.float64)
        norms[start : start + CHUNK_ROWS] = norm = np.linalg.norm(chunk, axis=1)
        moments.update(chunk[norm > 0])
    norms = norms[norms > 0] if moments.count else np.zeros(1)
    # Of the principal components, the largest first.
    variances = np.linalg.eigvalsh(moments.scatter / max(moments.count, 1))[::-1].clip(min=0)
    total = float(variances.sum())
    kept = np.cumsum(variances) / total if total > 0 else np.zeros(len(variances))
    components = np.arange(1, len(kept) + 1)
    if len(kept) > LISTED:
        components = np.unique(np.geomspace(1, len(kept), LISTED).round().astype(int))
    return {
        "column": column,
        "width": vectors.shape[1],
        "items": len(ids),
        "zero_share": 1 - moments.count / len(ids) if len(ids) else 0.0,
        "norm_mean": float(norms.mean()),
        "norm_deviation": float(norms.std()),
        "norm_min": float(norms.min()),
        "norm_max": float(norms.max()),
        "variance": total,
        "effective_rank": effective_rank(variances),
        "participation_ratio": participation_ratio(variances),
        "components_90": int(np.searchsorted(kept, 0.9) + 1) if total > 0 else 0,
        "components_99": int(np.searchsorted(kept, 0.99) + 1) if total > 0 else 0,
        "kept": [{"components": int(n), "kept": float(kept[n - 1])} for n in components],
    }


def effective_rank(variances: np.ndarray) -> float:
    r"""Return :math:`\exp(-\sum_j q_j \log q_j)`, :math:`q_j` the fraction of variance of component j.

    Roy and Vetterli: The Effective Rank, EUSIPCO 2007, https://ieeexplore.ieee.org/document/7098875

    Examples
    --------
    >>> round(effective_rank(np.array([2.0, 2.0, 0.0])), 6), effective_rank(np.zeros(3))
    (2.0, 0.0)
    """
    from scipy.stats import entropy

    return float(np.exp(entropy(variances))) if variances.sum() > 0 else 0.0


def participation_ratio(variances: np.ndarray) -> float:
    r"""Return :math:`(\sum_j \lambda_j)^2 / \sum_j \lambda_j^2`, the number of components if all are equal.

    Examples
    --------
    >>> participation_ratio(np.array([2.0, 2.0, 0.0]))
    2.0
    """
    squares = float((variances**2).sum())
    return float(variances.sum()) ** 2 / squares if squares > 0 else 0.0


def find_reduction(column: str, item_files: Sequence[str]) -> dict[str, Any] | None:
    """Return the variance that ``fuxictr-mm embed reduce`` kept, None without a reducer next to the column's file.

    ``kept`` is the fraction of all variance; for a joint PCA, ``made_of`` lists ``modality`` and ``share``.
    """
    holding = [file for path in item_files for file in _part_files(path) if column in parquet.schema_of(file).names]
    # A column is read from the first file that has it.
    path = holding[0].with_suffix(".reducer.safetensors") if holding else None
    if path is None or not path.is_file():
        return None
    try:
        reducer = Reducer.load(path)
    except UserError as error:
        logger.warning(f"{error}; the kept variance is left out")
        return None
    for entry in summarize(reducer, "")["strategies"]:
        if column.endswith(entry["column"]):
            found = {"file": str(path), **{key: entry[key] for key in ("strategy", "width", "kept")}}
            found["kept_of"] = [{"modality": m, "kept": kept} for m, kept in entry["kept_of"].items()]
            if "made_of" in entry:
                found["made_of"] = [{"modality": m, "share": share} for m, share in entry["made_of"].items()]
            return found
    return None


def _part_files(path: str) -> list[Path]:
    try:
        return parquet.part_files(path)
    except UserError:
        return []  # a file that the experiment does not need


def find_neighbours(
    columns: Sequence[str],
    read: Callable[[str], np.ndarray],
    clicks: np.ndarray,
    ids: np.ndarray,
    item_files: Sequence[str],
    numbering: Numbering = AS_IS,
    num_items: int = 5,
    number: int = 5,
) -> list[dict[str, Any]]:
    """Return the K nearest neighbours of the most clicked items of ``ids`` by each embedding column."""
    most_clicked = ids[np.lexsort((ids, -clicks[ids]))[:num_items]].tolist()
    found = {column: nearest_by_cosine(read(column), most_clicked, ids, number) for column in columns}
    mentioned = sorted(
        {item for near in found.values() for pairs in near.values() for item, _ in pairs} | {*most_clicked}
    )
    titles = read_titles(item_files, mentioned, numbering)
    ids_of = dict(zip(mentioned, numbering.shown(np.array(mentioned, dtype=np.int64)), strict=True))
    return [
        {
            "item_id": ids_of[item],
            "title": titles.get(item),
            "clicks": int(clicks[item]),
            "columns": [
                {
                    "column": column,
                    "neighbours": [
                        {"item_id": ids_of[i], "title": titles.get(i), "cosine": cosine} for i, cosine in near[item]
                    ],
                }
                for column, near in found.items()
            ],
        }
        for item in most_clicked
    ]


def nearest_by_cosine(
    vectors: np.ndarray, items: Sequence[int], ids: np.ndarray, number: int
) -> dict[int, list[tuple[int, float]]]:
    """Return the K items of ``ids`` of highest cosine with each item, and the cosine; of equals the lower id first.

    An item whose embedding in ``vectors`` ``(I, D)`` is zero has no neighbours, and is none.
    """
    norms = np.linalg.norm(vectors, axis=1).astype(np.float64)
    found: dict[int, list[tuple[int, float]]] = {item: [] for item in items}
    for item in items:
        if norms[item] == 0:
            continue
        cosine = (vectors @ vectors[item]).astype(np.float64) / np.where(norms > 0, norms, 1) / norms[item]
        others = ids[(norms[ids] > 0) & (ids != item)]
        order = np.lexsort((others, -cosine[others]))[:number]
        found[item] = [(int(i), float(cosine[i])) for i in others[order]]
    return found


def read_titles(item_files: Sequence[str], items: Sequence[int], numbering: Numbering) -> dict[int, str]:
    """Return the titles of some items, from the item files that have ``item_title``; the first title counts."""
    titles: dict[int, str] = {}
    for file in (file for path in item_files for file in _part_files(path)):
        present = parquet.schema_of(file).names
        key = numbering.key(present)
        if not {key, TITLE} <= set(present):
            continue
        for row, batch in parquet.read_chunks(file, [key, TITLE]):
            found = numbering.numbers(batch.column(key), f"{file}: {key}", row, known=False)
            for index in np.flatnonzero(np.isin(found, items)):
                title = batch.column(TITLE)[int(index)].as_py()
                if title is not None:
                    titles.setdefault(int(found[index]), str(title))
    return titles


def tables(result: Mapping[str, Any]) -> list[str]:
    """Return a table of the embeddings, and the neighbours of the two most clicked items."""
    if "vectors" not in result:
        return []
    header = ["embedding", "dim", "effective rank", "participation", "for 90 %", "missing", "norm", "reduction kept"]
    rows = [
        [
            entry["column"],
            entry["width"],
            f"{entry['effective_rank']:.1f}",
            f"{entry['participation_ratio']:.1f}",
            entry["components_90"],
            f"{entry['zero_share']:.1%}",
            f"{entry['norm_mean']:.3g}",
            f"{entry['reduction']['kept']:.1%}" if entry["reduction"] else None,
        ]
        for entry in result["vectors"]
    ]
    lines = []
    for item in result["neighbours"][:2]:
        lines.append(f"nearest to {_title(item)}, {item['clicks']} clicks:")
        for column in item["columns"]:
            near = "; ".join(f"{_title(n)} ({n['cosine']:.2f})" for n in column["neighbours"][:3])
            lines.append(f"  {column['column']}: {near or 'its embedding is zero'}")
    return [format_table(header, rows), "\n".join(lines)]


def _title(item: Mapping[str, Any]) -> str:
    return f"{item['item_id']} {textwrap.shorten(item['title'], 40)!r}" if item["title"] else str(item["item_id"])


def findings(result: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings on missing and collapsed embeddings."""
    for entry in result.get("vectors", []):
        column, rank = entry["column"], entry["effective_rank"]
        if entry["zero_share"] > MISSING_EMBEDDINGS:
            yield Finding(
                WARNING,
                "vectors",
                "vectors_missing",
                column,
                f"{entry['zero_share']:.1%} of {entry['items']} items have no {column} (all zeros)",
                "encode the missing titles or images; until then the model represents these items only by their ids",
            )
        if entry["width"] > COLLAPSED_RANK and 0 < rank < COLLAPSED_RANK:
            yield Finding(
                WARNING,
                "vectors",
                "vectors_collapsed",
                column,
                f"{column} varies in {rank:.1f} of {entry['width']} directions",
                "the embeddings hardly distinguish items: encode them again, or scale them before the reduction",
            )
