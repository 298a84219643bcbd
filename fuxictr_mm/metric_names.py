"""Names of metrics in YAML: parsed, and checked before anything is trained."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fuxictr_mm.errors import ConfigError

#: Metrics of a regression.
ERRORS = ("RMSE", "MAE")
_ROW_METRICS = ("AUC", "logloss", "binary_crossentropy", *ERRORS)
GROUP_AUC_METRICS = ("gAUC", "gAUC_pos", "gAUC_mean", "avgAUC")
_NDCG = re.compile(r"NDCG(?:\(\s*(?:k\s*=\s*)?([1-9]\d*)\s*\)|@([1-9]\d*))")

KNOWN_METRICS = (*_ROW_METRICS, *GROUP_AUC_METRICS, "MRR", "NDCG(k=10)")


@dataclass(frozen=True)
class Metric:
    """A metric by its name in YAML, parsed."""

    name: str  #: The name as given; results are returned under it.
    kind: str  #: The metric without its cutoff: one of ``KNOWN_METRICS``, or ``NDCG``.
    k: int | None = None  #: The cutoff of NDCG; None for the others.

    @property
    def needs_group(self) -> bool:
        """Whether the metric is computed within groups."""
        return self.kind not in _ROW_METRICS

    @property
    def needs_classes(self) -> bool:
        """Whether labels must be 0 or 1."""
        return self.kind not in ERRORS

    def is_of(self, kind: str, kinds: Sequence[str]) -> bool:
        """Whether the metric is computed of labels of a kind of task, given the kinds of all labels."""
        return len(set(kinds)) < 2 or self.needs_classes == (kind == "binary_classification")


def parse_metric(name: str, tasks: Sequence[str] = ()) -> Metric:
    """Parse the name of a metric.

    Parameters
    ----------
    name : str
        One of ``AUC``, ``logloss`` (also ``binary_crossentropy``), ``gAUC`` (groups weighted by rows, as in FuxiCTR),
        ``gAUC_pos`` (by positives, as in RecBole), ``gAUC_mean`` (unweighted, as in TorchEasyRec; FuxiCTR's name
        ``avgAUC`` is kept), ``MRR``, ``NDCG(k=10)``, also written ``NDCG@10``, or of a regression ``RMSE`` or
        ``MAE``.
    tasks : sequence of str
        Names of several labels, for the error.

    Returns
    -------
    Metric

    Raises
    ------
    ConfigError
        The metric is unknown.

    Examples
    --------
    >>> parse_metric("NDCG@5")
    Metric(name='NDCG@5', kind='NDCG', k=5)
    """
    if isinstance(name, str):
        if ndcg := _NDCG.fullmatch(name.strip()):
            return Metric(name, "NDCG", int(ndcg[1] or ndcg[2]))
        if name in KNOWN_METRICS:
            return Metric(name, name)
    known = [*KNOWN_METRICS, *(f"{task}_{metric}" for task in tasks for metric in KNOWN_METRICS)]
    by_lower_case = {metric.lower(): metric for metric in known}
    nearest = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    hint = f"; did you mean {by_lower_case[nearest[0]]!r}?" if nearest else ""
    of_one = f", or one of them of a label: {', '.join(f'{task}_AUC' for task in tasks)}" if tasks else ""
    raise ConfigError(f"unknown metric {name!r}: expected one of {', '.join(KNOWN_METRICS)}{of_one}{hint}")


def takes_one_class(name: str) -> bool:
    """Whether a metric is defined of rows of one class, which cannot be ranked."""
    return name in _ROW_METRICS and name != "AUC"


def split_task(name: str, tasks: Sequence[str] = ()) -> tuple[str | None, str]:
    """Return the label that a metric is of, None for the mean of all, and the metric.

    Examples
    --------
    >>> split_task("click_AUC", ["click", "like"])
    ('click', 'AUC')
    """
    found = [task for task in tasks if isinstance(name, str) and name.startswith(f"{task}_")]
    task = max(found, key=len, default=None)
    return (None, name) if task is None else (task, name[len(task) + 1 :])


def check_metrics(
    names: Sequence[str], group_id: Any = None, tasks: Sequence[str] = (), kinds: Sequence[str] = ()
) -> list[Metric]:
    """Check the metrics of a configuration before anything is trained.

    Parameters
    ----------
    names : sequence of str
        Names as in ``parse_metric``.
    group_id : object, optional
        The column of groups, its name or its values; None without groups.
    tasks : sequence of str
        Names of several labels, of which ``LABEL_METRIC`` is a metric.
    kinds : sequence of str
        The task of each of these labels; by default they are equal.

    Returns
    -------
    list of Metric

    Raises
    ------
    ConfigError
        If ``names`` is not a list, holds an unknown name, a metric of a label that has another kind of task, or needs a
        group column that is not given.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"metrics: {names!r} is not a list of metric names; write metrics: [AUC, logloss]")
    kind_of = dict(zip(tasks, kinds, strict=False))
    metrics = []
    for name in names:
        task, rest = split_task(name, tasks)
        metric = parse_metric(rest, tasks)
        metrics.append(metric)
        if task in kind_of and not metric.is_of(kind_of[task], kinds):
            right = "AUC or logloss" if metric.kind in ERRORS else " or ".join(ERRORS)
            raise ConfigError(f"metric {name!r}: the task of {task} is {kind_of[task]}; write {task}_{right}")
        if metric.needs_group and group_id is None:
            raise ConfigError(f"metric {metric.name!r} is computed within groups: set group_id, e.g. group_id: user_id")
    return metrics
