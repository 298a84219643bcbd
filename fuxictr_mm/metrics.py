"""Metrics of predictions, over all examples and within groups of examples (usually those of one user).

The definitions are those of FuxiCTR.

Departures from FuxiCTR:

- Tied scores: FuxiCTR takes them in the order that ``argsort`` leaves, for MRR and NDCG. Here tied examples share the
  mean gain of their positions, the expectation over all orders of the tie (McSherry and Najork, "Computing Information
  Retrieval Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008,
  https://doi.org/10.1007/978-3-540-78646-7_38), as scikit-learn does for AUC and NDCG. The result does not depend on
  the order of the examples.
- ``gAUC_pos`` and ``gAUC_mean`` are added, the two other weights of group AUC in use.
- ``RMSE`` and ``MAE`` are added, for regressions.
- Labels other than 0 and 1 (RMSE and MAE take any number), and predictions that are NaN or infinite, are refused.

Of several labels per example, every metric is computed for each of them, on the examples that have it, and averaged.
Where classifications and regressions are mixed, RMSE and MAE are those of regressions, all others of classifications.

Shape letters: n examples, T labels of an example.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fuxictr_mm.data.groups import NO_GROUP, number_groups
from fuxictr_mm.errors import DataError
from fuxictr_mm.group_metrics import SortedGroups
from fuxictr_mm.metric_names import GROUP_AUC_METRICS, check_metrics, parse_metric, split_task

logger = logging.getLogger(__name__)


def constant_logloss(rate: float) -> float:
    """Return the logloss of predicting the rate of positives for all rows, which a model has to be below.

    Examples
    --------
    >>> round(constant_logloss(0.5), 4), round(constant_logloss(0.1), 4)
    (0.6931, 0.3251)
    """
    return -sum(part * math.log(part) for part in (rate, 1 - rate) if part)


def auc_noise(positives: int, negatives: int) -> float:
    """Return the standard deviation of the AUC of random scores, of independent rows.

    Examples
    --------
    >>> round(auc_noise(100, 300), 4)
    0.0334
    """
    return math.sqrt((positives + negatives + 1) / (12 * positives * negatives))


def find_undefined(
    label: torch.Tensor,
    metrics: Sequence[str],
    group_id: torch.Tensor | None,
    tasks: Sequence[str] = (),
    constant: bool = False,
    kinds: Sequence[str] = (),
) -> dict[str, str]:
    """Return the metrics within groups that are undefined whatever is predicted, each with the reason.

    Parameters
    ----------
    label : torch.Tensor
        ``(n,)`` labels 0 and 1; ``(n, T)`` of several, NaN for one that is missing.
    metrics : sequence of str
        Names as in ``evaluate_tasks``.
    group_id : torch.Tensor or None
        ``(n,)``
    tasks : sequence of str
        Names of several labels.
    constant : bool
        Return MRR and NDCG too where no prediction changes them.
    kinds : sequence of str
        The task of each of several labels; by default they are equal.
    """
    parsed = {name: parse_metric(split_task(name, tasks)[1], tasks) for name in metrics}
    if group_id is None:
        return {name: "there is no group column" for name, metric in parsed.items() if metric.needs_group}
    grouped = group_id != NO_GROUP
    if not grouped.any():
        return {name: "no row has a group" for name, metric in parsed.items() if metric.needs_group}
    names = [name for name, m in parsed.items() if m.needs_group and (constant or m.kind in GROUP_AUC_METRICS)]
    if not names:
        return {}
    index = torch.unique(group_id[grouped], return_inverse=True)[1]
    for column, values in enumerate(label[grouped].view(len(index), -1).unbind(dim=1)):
        if kinds and not parsed[names[0]].is_of(kinds[column], kinds):
            continue
        known = ~values.isnan()
        rows, positives = torch.bincount(index[known]), torch.bincount(index[known], values[known].double())
        # Of several labels, evaluate_tasks leaves out one of a single class.
        if not (tasks and positives.sum() in (0, rows.sum())) and not ((positives > 0) & (positives < rows)).any():
            of = f" of {tasks[column]}" if tasks else ""
            return dict.fromkeys(names, f"none of the {int(index.max()) + 1} groups has rows of both classes{of}")
    return {}


def leave_out(metrics: Sequence[str], undefined: Mapping[str, str], where: str) -> list[str]:
    """Return the metrics that are defined; a warning names each of the others with the reason of ``find_undefined``."""
    for name, reason in undefined.items():
        logger.warning(f"{where}: {reason}: no {name} of these rows")
    return [name for name in metrics if name not in undefined]


def evaluate_metrics(y_true: Any, y_pred: Any, metrics: Sequence[str], group_id: Any = None) -> dict[str, float]:
    r"""Compute metrics of predictions, in float64, on the device of ``y_pred``.

    With label :math:`y`, prediction :math:`p`, and the rank :math:`r` of an example in its group by falling score (ties
    share the mean gain of their ranks)::

        logloss = mean(-y log p - (1 - y) log(1 - p)),  p clipped to [eps, 1 - eps] with eps = 2^-52
        RMSE    = sqrt(mean((y - p)^2)),                MAE = mean(|y - p|)
        AUC     = P(p_positive > p_negative) + P(p_positive = p_negative) / 2
        gAUC    = sum_g w_g AUC_g / sum_g w_g,          w_g rows (gAUC), positives (gAUC_pos), 1 (gAUC_mean, avgAUC)
        MRR     = mean_g(sum(y / r) / sum(y))
        NDCG(k) = mean_g(DCG / best DCG),               DCG = sum over r <= k of y / log2(r + 1)

    A group of one class is left out of the group AUCs; a group without positives counts as 0 in MRR and NDCG. Rows
    without a group (None, NaN) count in metrics over all rows only.

    Parameters
    ----------
    y_true : array_like or torch.Tensor
        ``(n,)``, labels 0 and 1; any finite numbers for RMSE and MAE.
    y_pred : array_like or torch.Tensor
        ``(n,)``, probabilities for logloss, any finite scores for the others.
    metrics : sequence of str
        Names as in ``parse_metric``.
    group_id : array_like or torch.Tensor, optional
        ``(n,)``, numbers or strings; examples with one value are one group, in any order.

    Returns
    -------
    dict of str to float
        The metrics under the names and in the order asked for.

    Raises
    ------
    ConfigError
        If a metric is unknown or its ``group_id`` is missing.
    DataError
        If there are no rows, lengths differ, a label is not 0 or 1, a prediction is not finite (or, for logloss, not
        in [0, 1]), there is only one class but AUC is requested, no row has a group, or no group has both classes.

    Examples
    --------
    >>> evaluate_metrics([0, 1, 1, 0], [0.2, 0.8, 0.4, 0.4], ["AUC", "MRR"], group_id=[7, 7, 9, 9])
    {'AUC': 0.875, 'MRR': 0.875}
    """
    parsed = check_metrics(metrics, group_id)
    label, score = _checked_rows(y_true, y_pred, any(metric.needs_classes for metric in parsed))
    groups = None
    if any(metric.needs_group for metric in parsed):
        index = _group_index(group_id, score)
        if not (grouped := index >= 0).any():
            raise DataError(f"none of the {len(index)} rows has a group; set group_id to another column")
        groups = SortedGroups(label[grouped], score[grouped], index[grouped])
    results = {}
    for metric in parsed:
        if metric.kind == "AUC":
            results[metric.name] = _auc(label, score)
        elif groups is not None and metric.needs_group:
            results[metric.name] = groups.value(metric)
        elif metric.kind == "RMSE":
            results[metric.name] = (label - score).square().mean().sqrt().item()
        elif metric.kind == "MAE":
            results[metric.name] = (label - score).abs().mean().item()
        else:
            results[metric.name] = _log_loss(label, score)
    return results


def evaluate_tasks(
    y_true: torch.Tensor,
    y_pred: torch.Tensor,
    metrics: Sequence[str],
    tasks: Sequence[str],
    group_id: torch.Tensor | None = None,
    kinds: Sequence[str] = (),
) -> dict[str, float]:
    """Compute metrics of several labels, each on the rows that have it.

    Parameters
    ----------
    y_true : torch.Tensor
        ``(n, T)`` labels, NaN for one that is missing.
    y_pred : torch.Tensor
        ``(n, T)``.
    metrics : sequence of str
        Names as in ``parse_metric``, or with a label before them: ``click_AUC``.
    tasks : sequence of str
        Names of the T labels.
    group_id : torch.Tensor, optional
        ``(n,)``
    kinds : sequence of str
        The task of each label; by default they are equal.

    Returns
    -------
    dict of str to float
        ``LABEL_METRIC`` of every label and metric that is of its task, then every metric's mean over these labels, as
        FuxiCTR names them. A label without rows of both classes, or of a regression without rows, is left out, with a
        warning.

    Raises
    ------
    ConfigError, DataError
        As ``evaluate_metrics``; no label is left.
    """
    parsed = {name: parse_metric(name) for name in dict.fromkeys(split_task(name, tasks)[1] for name in metrics)}
    results: dict[str, float] = {}
    left_out = []
    by_task = zip(tasks, kinds or [""] * len(tasks), y_true.unbind(dim=1), y_pred.unbind(dim=1), strict=True)
    for task, kind, label, prediction in by_task:
        names = [name for name, metric in parsed.items() if metric.is_of(kind, kinds)]
        rows = (~label.isnan()).nonzero().squeeze(1)
        label = label[rows]
        if len(rows) == 0 or (any(parsed[name].needs_classes for name in names) and label.min() == label.max()):
            left_out.append(task)
            continue
        group = None if group_id is None else group_id[rows]
        try:
            found = evaluate_metrics(label, prediction[rows], names, group)
        except DataError as error:
            raise DataError(f"label {task}: {error}") from error
        results |= {f"{task}_{name}": value for name, value in found.items()}
    kept = [task for task in tasks if task not in left_out]
    if not kept:
        raise DataError(f"no label of {', '.join(tasks)} has rows of both classes; AUC is undefined")
    if left_out:
        logger.warning(
            f"No metrics of {', '.join(left_out)}: no rows of both classes; means are over {', '.join(kept)}"
        )
    means: dict[str, float] = {}
    for name in parsed:
        values = [results[f"{task}_{name}"] for task in kept if f"{task}_{name}" in results]
        means |= {name: sum(values) / len(values)} if values else {}
    return results | means


def _checked_rows(y_true: Any, y_pred: Any, classes: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels, 0 and 1 with ``classes``, and predictions as ``(n,)`` float64 on the device of the predictions."""
    score = _float64(y_pred)
    label = _float64(y_true).to(score.device)
    if len(label) != len(score):
        raise DataError(f"{len(label)} labels but {len(score)} predictions: expected one prediction per label")
    if len(score) == 0:
        raise DataError("no rows to evaluate: expected at least one label and prediction")
    _refuse(
        ~torch.isfinite(score), score, "predictions are NaN or infinite", "reduce learning_rate, or check the inputs"
    )
    if classes:
        _refuse((label != 0) & (label != 1), label, "labels are neither 0 nor 1", "expected a binary label column")
    _refuse(~torch.isfinite(label), label, "labels are NaN or infinite", "expected numbers")
    return label, score


def _float64(values: Any) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.detach().double().flatten()
    # By way of numpy: torch makes float32 of a list of floats.
    return torch.from_numpy(np.array(values, dtype=np.float64).ravel())


def _refuse(wrong: torch.Tensor, values: torch.Tensor, what: str, remedy: str) -> None:
    count = int(wrong.sum())
    if count:
        row = int(wrong.int().argmax())
        raise DataError(f"{count} of {len(values)} {what}, first {values[row].item()!r} in row {row}; {remedy}")


def _group_index(group_id: Any, score: torch.Tensor) -> torch.Tensor:
    """Return the groups numbered from 0 by rising id, ``(n,)`` int64, and -1 for rows without one."""
    none = NO_GROUP
    if not isinstance(group_id, torch.Tensor):
        group_id, none = number_groups(group_id), -1
    group = torch.as_tensor(group_id).to(score.device).flatten()
    if len(group) != len(score):
        raise DataError(f"{len(group)} group ids but {len(score)} predictions: expected one group id per row")
    grouped = group != none
    index = torch.full_like(group, -1, dtype=torch.int64)
    index[grouped] = torch.unique(group[grouped], return_inverse=True)[1]
    return index


def _auc(label: torch.Tensor, score: torch.Tensor) -> float:
    positives = int(label.sum())
    if positives in (0, len(label)):
        only = label[0].int().item()
        raise DataError(f"AUC is undefined: all {len(label)} labels are {only}; expected rows of both classes")
    return SortedGroups(label, score, torch.zeros_like(label, dtype=torch.int64)).mean_auc("AUC")


def _log_loss(label: torch.Tensor, score: torch.Tensor) -> float:
    _refuse((score < 0) | (score > 1), score, "predictions are outside [0, 1]", "logloss needs probabilities")
    eps = torch.finfo(torch.float64).eps
    probability = score.clamp(eps, 1 - eps)
    return -torch.where(label == 1, probability.log(), (1 - probability).log()).mean().item()
