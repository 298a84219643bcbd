"""Sections on slices: the metric by how often an item was clicked in training, and by the length of the history.

Shape letters: R examples, I items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fuxictr_mm.data import decoding, parquet
from fuxictr_mm.data.item_columns import decode_target
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.data.vocabulary import Vocabulary
from fuxictr_mm.diagnosis.findings import NOTE, WARNING, Finding
from fuxictr_mm.diagnosis.scorer import by_bucket
from fuxictr_mm.evaluation.intervals import with_interval
from fuxictr_mm.files import StrPath
from fuxictr_mm.terminal import format_table

#: Lower bounds of the buckets of clicks; the last bucket is open.
CLICKS = (0, 1, 3, 6, 11, 21, 51, 101, 201, 501, 1001)

#: What the buckets of each section count.
COUNTED = {"popularity": "clicks in training", "history_length": "items of history"}

#: A bucket whose whole interval is this far below the AUC of all examples is weak.
WEAK_BUCKET = 0.02


class Popularity(NamedTuple):
    """Training examples ``(I,)`` of each item, and those with a click."""

    shown: np.ndarray
    clicked: np.ndarray


def count_items(
    path: StrPath, label: str, num_items: int, target: str = ITEM_ID, vocabulary: Vocabulary | None = None
) -> Popularity:
    """Count the examples of a training file by item, a chunk at a time; ``label`` and ``target`` are its columns.

    Raises
    ------
    DataError, MissingFileError
        No such file, or a column is missing or wrong.
    """
    counts = np.zeros((2, num_items), dtype=np.int64)
    for file in parquet.part_files(path):
        for row, batch in parquet.read_chunks(file, [target, label]):
            where = f"{file}: {target}"
            if vocabulary is None:
                ids = decoding.scalars(batch.column(target), where, row)
                decoding.check_ids(ids, num_items, where, row)
            else:
                ids = decode_target(batch.column(target), where, row, np.ones(num_items, bool), vocabulary)
            clicks = decoding.scalars(batch.column(label), f"{file}: {label}", row, floating=True) == 1
            counts[0] += np.bincount(ids, minlength=num_items)
            counts[1] += np.bincount(ids[clicks], minlength=num_items)
    return Popularity(*counts)


def measure(
    label: np.ndarray,
    prediction: np.ndarray,
    lengths: np.ndarray,
    target: np.ndarray,
    popularity: Popularity | None,
    metric: str = "AUC",
) -> dict[str, Any]:
    """Return the sections ``history_length`` and, where it is known, ``popularity``: lists of buckets.

    Of items without training examples the bucket comes first, with ``cold`` True; they are in no other. ``lengths`` of
    histories and ``target`` are ``(R,)``.
    """

    def describe(rows: np.ndarray) -> dict[str, Any]:
        return describe_rows(label[rows], prediction[rows], metric)

    result = {"history_length": by_bucket(lengths, np.ones(len(label), dtype=bool), describe)}
    if popularity is not None:
        cold = popularity.shown[target] == 0
        rows = np.flatnonzero(cold)
        first = {"name": "never shown", "from": 0, "to": 0, "cold": True, "rows": len(rows)}
        warm = by_bucket(popularity.clicked[target], ~cold, describe, CLICKS)
        result["popularity"] = [first | describe(rows)] if cold.any() else []
        result["popularity"] += [{**entry, "cold": False} for entry in warm]
    return result


def describe_rows(label: np.ndarray, prediction: np.ndarray, metric: str = "AUC") -> dict[str, Any]:
    """Return ``positives`` (of classes), ``rate``, ``mean_prediction`` and the metric with its interval of examples."""
    return {
        **({"positives": int(label.sum())} if metric == "AUC" else {}),
        "rate": float(label.mean()),
        "mean_prediction": float(prediction.mean()),
        **with_interval(label, prediction, metric),
    }


def tables(result: Mapping[str, Any]) -> list[str]:
    """Return a table of each section."""
    found, metric = [], result.get("metric", "AUC")
    key, what = metric.lower(), "clicks" if metric == "AUC" else "mean label"
    for section, counted in COUNTED.items():
        head = [counted if metric == "AUC" else counted.replace("clicks", "rows"), "rows", what, metric, "interval"]
        rows = [
            [
                entry["name"],
                entry["rows"],
                entry["positives"] if metric == "AUC" else f"{entry['rate']:.4f}",
                None if entry[key] is None else f"{entry[key]:.4f}",
                None if entry["low"] is None else f"{entry['low']:.3f} to {entry['high']:.3f}",
            ]
            for entry in result.get(section, [])
        ]
        if rows:
            found.append(format_table(head, rows))
    return found


def findings(result: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings on weak buckets: cold items, and the weakest of the others in each section.

    Of a regression none: an error depends on how far the labels of a bucket are apart.
    """
    if result.get("metric", "AUC") != "AUC":
        return
    overall = result["metrics"]["auc"]
    for section, counted in COUNTED.items():
        weak = [e for e in result.get(section, []) if e["auc"] is not None and e["high"] < overall - WEAK_BUCKET]
        others = [entry for entry in weak if not entry.get("cold")]
        for entry in weak:
            if entry.get("cold"):
                yield Finding(
                    WARNING,
                    section,
                    "weak_on_cold_items",
                    entry["name"],
                    _weak(entry, "of items without training examples", overall),
                    "their score depends on their embeddings: see the AUC drop of each modality, and try "
                    "embeddings without ids",
                )
        if others:
            entry = min(others, key=lambda e: e["high"])
            more = f"; {len(others) - 1} more such groups" if len(others) > 1 else ""
            yield Finding(
                NOTE,
                section,
                f"weak_by_{section}",
                entry["name"],
                _weak(entry, f"with {entry['name']} {counted}", overall) + more,
                "compare with another model on these rows: they may be hard for all models",
            )


def _weak(entry: Mapping[str, Any], which: str, overall: float) -> str:
    interval = f"{entry['low']:.3f} to {entry['high']:.3f}"
    return f"AUC is {entry['auc']:.3f} ({interval}) on {entry['rows']} rows {which}, and {overall:.3f} on all rows"
