"""AUC by how often an item was clicked in training, and by the length of the history.

Shape letters: R rows, I items.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from fuxictr_mm.data import parquet
from fuxictr_mm.data.schema import ITEM_ID
from fuxictr_mm.diagnosis.scorer import CLICKS, LENGTHS, by_bucket
from fuxictr_mm.evaluation.significance import auc_with_interval


class Popularity(NamedTuple):
    """What training rows say of each item.

    Parameters
    ----------
    shown, clicked : ndarray
        ``(I,)`` rows of training data that show the item, and those with a click.
    """

    shown: np.ndarray
    clicked: np.ndarray


def count_items(path: str | os.PathLike[str], label: str, num_items: int) -> Popularity:
    """Count the rows of a training file, a chunk at a time.

    Raises
    ------
    DataError, MissingFileError
        No such file, or a column is missing or wrong.
    """
    counts = np.zeros((2, num_items), dtype=np.int64)
    for file in parquet.part_files(path):
        for row, batch in parquet.read_chunks(file, [ITEM_ID, label]):
            ids = parquet.scalars(batch.column(ITEM_ID), f"{file}: {ITEM_ID}", row)
            parquet.check_ids(ids, num_items, f"{file}: {ITEM_ID}", row)
            clicks = parquet.scalars(batch.column(label), f"{file}: {label}", row, floating=True) == 1
            counts[0] += np.bincount(ids, minlength=num_items)
            counts[1] += np.bincount(ids[clicks], minlength=num_items)
    return Popularity(*counts)


def describe_rows(label: np.ndarray, prediction: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """Return ``positives``, ``rate``, ``mean_prediction`` and the AUC with its interval of some rows."""
    return {
        "positives": int(label[rows].sum()),
        "rate": float(label[rows].mean()),
        "mean_prediction": float(prediction[rows].mean()),
        **auc_with_interval(label[rows], prediction[rows]),
    }


def by_history_length(label: np.ndarray, prediction: np.ndarray, lengths: np.ndarray) -> list[dict[str, Any]]:
    """Return what ``describe_rows`` says of each bucket of history lengths ``(R,)``."""
    return by_bucket(
        lengths, np.ones(len(label), dtype=bool), lambda rows: describe_rows(label, prediction, rows), LENGTHS
    )


def by_popularity(
    label: np.ndarray, prediction: np.ndarray, target: np.ndarray, popularity: Popularity
) -> list[dict[str, Any]]:
    """Return what ``describe_rows`` says of each bucket of clicks of the target ``(R,)`` in training.

    Items that no training row shows come first, with ``cold`` True; they are in no other bucket.
    """

    def describe(rows: np.ndarray) -> dict[str, Any]:
        return describe_rows(label, prediction, rows)

    cold = popularity.shown[target] == 0
    entries = []
    if cold.any():
        rows = np.flatnonzero(cold)
        entries = [{"name": "never shown", "from": 0, "to": 0, "cold": True, "rows": len(rows), **describe(rows)}]
    warm = by_bucket(popularity.clicked[target], ~cold, describe, CLICKS)
    return entries + [{**entry, "cold": False} for entry in warm]
