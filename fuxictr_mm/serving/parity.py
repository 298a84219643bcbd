"""Differences between an export and its model."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fuxictr_mm.errors import UserError
from fuxictr_mm.terminal import item_bar
from fuxictr_mm_serving import Export
from fuxictr_mm_serving.parquet import read_part, split

if TYPE_CHECKING:
    from fuxictr_mm.data.dataset import Dataset
    from fuxictr_mm.experiment import Experiment
    from fuxictr_mm_serving.graphs import Graph

logger = logging.getLogger(__name__)

#: Times the model's own rounding errors that an export may differ, whose operations are in another order, and the
#: difference beyond which it is not rounding: scores of the model may depend on the other rows of a batch.
ROUNDINGS, LARGEST_ROUNDING = 4, 1e-3

#: Of scores. Rounding makes few that differ much, whose logits are large; what is wrong with a graph is so for most.
MOST = 0.95

#: Validation rows that are scored by the folded graphs, and candidates of each, the row's own and others. Weights of 8
#: bits are read by these graphs in a way of their own: more rows are scored, which have an AUC. The rows with the
#: longest histories, whose differences are larger, are among them.
FOLD_ROWS, FOLD_ROWS_WITH_AUC, FOLD_CANDIDATES, FOLD_LONGEST = 50, 1000, 20, 10


def compare(
    experiment: Experiment,
    folder: Path,
    graphs: Mapping[str, Graph] | None,
    expected: np.ndarray,
    dataset: Dataset,
    tolerance: float,
    rounding: Callable[[], np.ndarray] | None,
    auc_loss: float | None = None,
    model: Any = None,
) -> dict[str, Any]:
    """Return the differences between export and model over the validation rows, of folded graphs over some of them.

    Folded graphs score several candidates of a row. Without the ``model``, or where the rows are not in memory, scores
    of candidates that are not the row's own are compared with those of the graph of rows. ``rounding`` returns by how
    much scores of the model itself change with the size of a batch. It is called if the tolerance is exceeded, and
    several times the largest is tolerated, 1e-3 at most, where as many scores are as near. With ``auc_loss``, single
    scores may differ by any amount, and the AUC may be lower by this much.

    Raises
    ------
    UserError
        They are beyond the tolerance, or the AUC has lost more; there is no AUC; a score is not finite.
    """
    exported = Export(folder, check_bytes=0, graphs=graphs).of_numbers  # as the rows are
    exported.longest_history = None  # the model has scored these rows, however long
    path = str(experiment.config.dataset.valid_data)
    found: list[np.ndarray] = []
    folded: dict[str, Any] = {}
    of_folded = np.zeros(1)
    has_auc = exported.manifest.precision == "int8-weights" or auc_loss is not None
    sample = _Sample(exported, FOLD_ROWS_WITH_AUC if has_auc else FOLD_ROWS) if exported.is_folded else None
    with item_bar(len(expected), "export", experiment.config.verbose) as bar:
        bar.unit = " rows"
        for part in split(path, sys.maxsize):
            for columns in read_part(part, exported.columns, texts=exported.texts):
                found.append(exported.score_rows(columns, path))
                if sample is not None:
                    sample.add(columns)
                bar.update(len(found[-1]))
    if sample is not None:
        rows, scores = sample.score()
        own = scores[:, 0]
        others = _of_model(model, dataset, rows, sample.numbers()) if model is not None else None
        if others is None:  # of fewer rows, as the graph computes a history for each candidate
            others, scores = sample.score_as_rows(rows[:FOLD_ROWS]), scores[:FOLD_ROWS]
        of_folded = np.concatenate(
            [group.reshape(-1) for group in (differences(own, expected[rows]), differences(scores[:, 1:], others))]
        )
        if has_auc and np.isfinite(own).all():
            both = {"model": _auc(dataset, expected[rows], rows), "export": _auc(dataset, own, rows)}
            folded = {"auc_folded": {"rows": len(rows), **both}}
    scores = np.concatenate(found)
    of_rows = differences(scores, expected)
    if not all(np.isfinite(group).all() for group in (of_rows, of_folded)):
        raise UserError(
            f"{experiment.config.expid}: scores of the export are not all finite, expected those of the model; choose "
            "another --precision; nothing is written"
        )
    auc = {"model": _auc(dataset, expected), "export": _auc(dataset, scores)}
    if auc_loss is None:
        tolerance = check(experiment.config.expid, [of_rows, of_folded], tolerance, rounding)
    else:
        check_auc(experiment.config.expid, [auc, *folded.values()], auc_loss)
    return {
        "rows": len(scores),
        "largest_difference": float(of_rows.max()),
        "largest_difference_folded": float(of_folded.max()),
        **({"tolerance": tolerance} if auc_loss is None else {"auc_loss": auc_loss}),
        "auc": auc,
        **folded,
    }


def check(
    expid: str, found: Sequence[np.ndarray], tolerance: float, rounding: Callable[[], np.ndarray] | None
) -> float:
    """Return the tolerance that counts for some groups of differences; see ``compare``."""
    largest = float(np.max([group.max() for group in found]))  # also NaN
    if rounding is not None and largest > tolerance:
        own = rounding()
        logger.warning(
            f"{expid}: scores of the export differ by {largest:.2g} from those of the model, which "
            f"change by {own.max():.2g} with the size of a batch"
        )
        most = np.max([np.quantile(group, MOST) for group in found])
        if most <= max(ROUNDINGS * np.quantile(own, MOST), tolerance / 10):
            tolerance = max(tolerance, min(ROUNDINGS * float(own.max()), LARGEST_ROUNDING))
    if not largest <= tolerance:
        raise UserError(
            f"{expid}: scores of the export differ by {largest:.2g} from those of the model, "
            f"expected {tolerance:g} or less (--tolerance, or --auc-loss in its place); nothing is written"
        )
    return tolerance


def check_auc(expid: str, found: Sequence[Mapping[str, Any]], auc_loss: float) -> None:
    """Compare the AUC of an export with the model's.

    Raises
    ------
    UserError
        It is lower by more than ``auc_loss``; there is none.
    """
    for auc in found:
        model, export = (one if isinstance(one, dict) else {"": one} for one in (auc["model"], auc["export"]))
        for label, expected in model.items():
            if expected is None or export[label] is None:
                raise UserError(f"{expid}: the validation rows have no AUC; remove --auc-loss, or use --tolerance")
            if not expected - export[label] <= auc_loss:
                raise UserError(
                    f"{expid}: the AUC of the export{label and f' ({label})'} is {export[label]:.4f} instead of "
                    f"{expected:.4f}, expected a loss of {auc_loss:g} or less (--auc-loss); nothing is written"
                )


def differences(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the difference of each score, relative to scores beyond 1, as of a regression.

    Examples
    --------
    >>> differences(np.array([0.5, 2000.0]), np.array([0.25, 1000.0]))
    array([0.25, 1.  ])
    """
    return np.abs(found - expected) / np.maximum(np.abs(expected), 1)


def _spread(count: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


class _Sample:
    """Validation rows that the folded graphs score: ``wanted``, first those with the longest histories of all."""

    def __init__(self, exported: Export, wanted: int) -> None:
        self.exported, self.wanted = exported, wanted
        self.count = 0
        self.others: list[Any] = []  # candidates beside the row's own
        self.spread: dict[int, dict[str, Any]] = {}  # rows of the first columns, by number
        self.chosen: dict[int, dict[str, Any]] = {}  # those that are scored
        self.longest: list[tuple[int, int, dict[str, Any]]] = []  # length, number, row

    def add(self, columns: Mapping[str, Any]) -> None:
        """Take rows, whose numbers follow those of before."""

        def row(place: int) -> dict[str, Any]:
            return {name: column[place] for name, column in columns.items()}

        history = self.exported.history
        lengths = np.diff(self.exported.items.histories(columns[history], history, strict=True)[1])
        if not self.spread:
            self.spread = {int(place): row(place) for place in _spread(len(lengths), self.wanted)}
            self.others = list(columns[self.exported.target][: FOLD_CANDIDATES - 1])
        places = np.argsort(-lengths, kind="stable")[:FOLD_LONGEST]
        found = [*self.longest, *((int(lengths[place]), self.count + int(place), row(place)) for place in places)]
        self.longest = sorted(found, key=lambda entry: -entry[0])[:FOLD_LONGEST]
        self.count += len(lengths)

    def score(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers ``(S,)`` of rows, and folded scores ``(S, M)`` or ``(S, M, T)``, the row's own first."""
        chosen = {number: row for _, number, row in self.longest}
        others = [number for number in self.spread if number not in chosen]
        chosen |= {others[i]: self.spread[others[i]] for i in _spread(len(others), self.wanted - len(chosen))}
        exported, self.chosen = self.exported, chosen
        found = []
        for user in chosen.values():
            state = exported.user_state(user, user[exported.history])
            found.append(exported.score_candidates(state, [user[exported.target], *self.others])[0])
        return np.array(list(chosen)), np.stack(found)

    def score_as_rows(self, numbers: np.ndarray) -> np.ndarray:
        """Return scores ``(S, M - 1)`` or ``(S, M - 1, T)`` of the others by the graph of rows."""
        found = []
        for number in numbers:
            columns = {name: [value] * len(self.others) for name, value in self.chosen[int(number)].items()}
            found.append(self.exported.score_rows(columns | {self.exported.target: self.others}))
        return np.stack(found)

    def numbers(self) -> np.ndarray:
        """Return the item numbers ``(M - 1,)`` of the others."""
        return self.exported.items.numbers(self.others, self.exported.target)


def _of_model(model: Any, dataset: Dataset, rows: np.ndarray, items: np.ndarray) -> np.ndarray | None:
    """Return the model's scores ``(S, M)``, or ``(S, M, T)``, of items in validation rows; None if not in memory."""
    import torch

    from fuxictr_mm.data.interactions import InteractionTable
    from fuxictr_mm.data.loaders import gather

    if not isinstance(table := dataset.splits["valid"], InteractionTable):
        return None
    found = []
    with torch.no_grad():
        for row in rows.tolist():
            batch = gather(table, torch.full((len(items),), row))
            batch = replace(batch, target=torch.from_numpy(items).to(batch.target))
            found.append(model(batch)["y_pred"].numpy())
    scores = np.stack(found)
    return scores[..., 0] if scores.shape[2] == 1 else scores


def _auc(
    dataset: Dataset, scores: np.ndarray, rows: np.ndarray | None = None
) -> float | dict[str, float | None] | None:
    """Return the AUC over the validation rows, all or some of them, of several labels that of each.

    None for a regression, and for rows that are not in memory.
    """
    labels = dataset.feature_map.labels
    label = getattr(dataset.splits["valid"], "label", None)
    if label is None or not hasattr(label, "numpy"):
        return None
    label = label.numpy() if rows is None else label.numpy()[rows]
    truth, scores = (array.reshape(-1, len(labels)).T for array in (label, scores))
    found = [_auc_of_label(*columns) for columns in zip(truth, scores, strict=True)]
    return found[0] if len(found) == 1 else dict(zip(labels, found, strict=True))


def _auc_of_label(truth: np.ndarray, scores: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    kept = ~np.isnan(truth)  # one of several labels may be missing
    if set(np.unique(truth[kept])) != {0.0, 1.0}:
        return None
    return float(roc_auc_score(truth[kept], scores[kept]))
