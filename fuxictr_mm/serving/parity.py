"""Differences between an export and its model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.errors import UserError
from fuxictr_mm_serving import Export
from fuxictr_mm_serving.parquet import read_part, split
from fuxictr_mm_serving.scoring import PART_ROWS

if TYPE_CHECKING:
    from fuxictr_mm.data.dataset import Dataset
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm_serving.graphs import Graph

logger = logging.getLogger(__name__)

#: Times the model's own rounding errors that an export may differ, whose operations are in another order, and the
#: difference beyond which it is not rounding: scores of the model may depend on the other rows of a batch.
ROUNDINGS, LARGEST_ROUNDING = 4, 1e-3

#: Validation users whose candidates are scored by the folded graphs, and candidates of each.
FOLD_USERS, FOLD_CANDIDATES = 50, 20


def compare(
    experiment: Experiment,
    folder: Path,
    graphs: Mapping[str, Graph] | None,
    expected: np.ndarray,
    dataset: Dataset,
    tolerance: float,
    rounding: Callable[[], float] | None,
) -> dict[str, Any]:
    """Return the differences between export and model over the validation rows.

    ``rounding`` returns by how much scores of the model itself change with the size of a batch. It is called if the
    tolerance is exceeded, and several times what it returns is tolerated, 1e-3 at most.

    Raises
    ------
    UserError
        They are beyond the tolerance.
    """
    exported = Export(folder, check_bytes=0, graphs=graphs).of_numbers  # as the rows are
    path = str(experiment.config.dataset.valid_data)
    found, differences = [], [0.0]
    for part in split(path, PART_ROWS):
        for columns in read_part(part, exported.columns, texts=exported.texts):
            found.append(exported.score_rows(columns, path))
            if exported.is_folded and len(found) == 1:
                differences += [_compare_fold(exported, columns, row) for row in range(min(FOLD_USERS, len(found[0])))]
    scores = np.concatenate(found)
    largest_of_rows, largest_folded = difference(scores, expected), float(np.max(differences))
    largest = float(np.max([largest_of_rows, largest_folded]))  # also NaN
    tolerance = check(experiment.config.expid, largest, tolerance, rounding)
    return {
        "rows": len(scores),
        "largest_difference": largest_of_rows,
        "largest_difference_folded": largest_folded,
        "tolerance": tolerance,
        "auc": {"model": _auc(dataset, expected), "export": _auc(dataset, scores)},
    }


def check(expid: str, largest: float, tolerance: float, rounding: Callable[[], float] | None) -> float:
    """Return the tolerance that counts for the largest difference; see ``compare``.

    Raises
    ------
    UserError
        The difference is beyond it.
    """
    if rounding is not None and largest > tolerance:
        own = rounding()
        tolerance = max(tolerance, min(ROUNDINGS * own, LARGEST_ROUNDING))
        logger.warning(
            f"{expid}: scores of the export differ by {largest:.2g} from those of the model, which "
            f"change by {own:.2g} with the size of a batch"
        )
    if not largest <= tolerance:
        raise UserError(
            f"{expid}: scores of the export differ by {largest:.2g} from those of the model, "
            f"expected {tolerance:g} or less (--tolerance); nothing is written"
        )
    return tolerance


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference of a score, relative to scores beyond 1, as of a regression.

    Examples
    --------
    >>> difference(np.array([0.5, 2000.0]), np.array([0.25, 1000.0]))
    1.0
    """
    return float((np.abs(found - expected) / np.maximum(np.abs(expected), 1)).max())


def _compare_fold(exported: Any, columns: Mapping[str, Any], row: int) -> float:
    """Return the largest difference between the folded graphs and rows, for the user of a row."""
    user = {name: column[row] for name, column in columns.items()}
    candidates = list(columns[exported.target][:FOLD_CANDIDATES])
    count = len(candidates)
    rows = {name: [value] * count for name, value in user.items()} | {exported.target: candidates}
    state = exported.user_state(user, user[exported.history])
    return difference(exported.score_candidates(state, candidates)[0], exported.score_rows(rows))


def _auc(dataset: Dataset, scores: np.ndarray) -> float | dict[str, float | None] | None:
    """Return the AUC over the validation rows, of several labels that of each.

    None for a regression, and for rows that are not in memory.
    """
    labels = dataset.feature_map.labels
    label = getattr(dataset.splits["valid"], "label", None)
    if label is None or not hasattr(label, "numpy"):
        return None
    truth, scores = (array.reshape(-1, len(labels)).T for array in (label.numpy(), scores))
    found = [_auc_of_label(*columns) for columns in zip(truth, scores, strict=True)]
    return found[0] if len(found) == 1 else dict(zip(labels, found, strict=True))


def _auc_of_label(truth: np.ndarray, scores: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    kept = ~np.isnan(truth)  # one of several labels may be missing
    if set(np.unique(truth[kept])) != {0.0, 1.0}:
        return None
    return float(roc_auc_score(truth[kept], scores[kept]))
