"""Whether the metrics of an experiment are defined of its validation and test rows, before training begins."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fuxictr_mm.config import ExperimentConfig
from fuxictr_mm.data.dataset import Dataset
from fuxictr_mm.errors import DataError
from fuxictr_mm.metrics import find_undefined, leave_out, parse_metric, split_task
from fuxictr_mm.training import distributed

logger = logging.getLogger(__name__)


def check_metrics_of_valid(config: ExperimentConfig, dataset: Dataset) -> None:
    """Refuse metrics of the validation rows that no training could change, before it begins.

    Raises
    ------
    DataError
        No group has rows of both classes; a metric of classes is to be computed of labels other than 0 and 1.
    """
    monitored = [config.monitor] if isinstance(config.monitor, str) else list(config.monitor)
    for name, reason in _beyond_classes(config, dataset, "valid", [*monitored, *config.metrics]).items():
        raise DataError(
            f"{config.dataset.valid_data}: {reason}, which {name} needs; for a regression write metrics: [RMSE, MAE], "
            "monitor: RMSE, monitor_mode: min"
        )
    found = {f"monitor: {k}": v for k, v in _undefined(config, dataset, "valid", monitored, constant=True).items()}
    found |= {f"metrics: {k}": v for k, v in _undefined(config, dataset, "valid", config.metrics).items()}
    for name, reason in found.items():
        raise DataError(
            f"{config.dataset.valid_data}: {reason} (group_id: {config.group_id}), which {name} needs; set another "
            "metric, or group_id to a coarser column"
        )


def _tasks(config: ExperimentConfig) -> list[str]:
    """Return the names of several labels; empty for one."""
    labels = config.dataset.label_names
    return labels if len(labels) > 1 else []


def _beyond_classes(config: ExperimentConfig, dataset: Dataset, split: str, metrics: Sequence[str]) -> dict[str, str]:
    """Return metrics that need labels 0 and 1, with the reason, of regressions whose labels are other numbers."""
    if set(config.tasks.values()) != {"regression"}:
        return {}
    names = [name for name in metrics if parse_metric(split_task(name, _tasks(config))[1]).needs_classes]
    if not names:
        return {}
    label = distributed.gather_rows(dataset.splits[split].labels_and_groups()[0])
    others = label[(label != 0) & (label != 1) & ~label.isnan()]
    return dict.fromkeys(names, f"a label is {others[0]:g} instead of 0 or 1") if len(others) else {}


def _undefined(
    config: ExperimentConfig, dataset: Dataset, split: str, metrics: Sequence[str], constant: bool = False
) -> dict[str, str]:
    tasks = _tasks(config)
    if not any(parse_metric(split_task(name, tasks)[1]).needs_group for name in metrics):
        return {}  # a split on disk would be read
    label, group = dataset.splits[split].labels_and_groups()
    group = None if group is None else distributed.gather_rows(group)
    kinds = list(config.tasks.values())
    return find_undefined(distributed.gather_rows(label), metrics, group, tasks, constant, kinds)


def metrics_of_test(config: ExperimentConfig, dataset: Dataset) -> list[str]:
    """Return the metrics that can be computed of the test rows, and warn of the others."""
    if not _test_has_labels(config, dataset):
        return []
    metrics = config.metrics
    undefined = _beyond_classes(config, dataset, "test", metrics)
    undefined |= _undefined(config, dataset, "test", [name for name in metrics if name not in undefined])
    return leave_out(metrics, undefined, str(config.dataset.test_data))


def _test_has_labels(config: ExperimentConfig, dataset: Dataset) -> bool:
    """Whether the test rows have labels; warns of one that is the same in all rows, a placeholder."""
    summary = dataset.summaries.get("test")
    if summary is None or not summary.labels:
        return False
    if all(len(v) < 2 for v in summary.labels):
        values = ", ".join(f"{min(v):g}" if v else "missing" for v in summary.labels)
        logger.warning(
            f"{config.dataset.test_data}: the label is {values} in all {summary.num_rows} rows and "
            "is treated as a placeholder; no test metrics are computed"
        )
        return False
    return True
