"""The evaluations of a run, and its monitored metric."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuxictr_mm.errors import DataError
from fuxictr_mm.metric_names import ERRORS
from fuxictr_mm.runs.paths import METRICS

#: Metrics for which lower is better.
FALLING = ("logloss", "binary_crossentropy", *ERRORS)


def is_falling(metric: str) -> bool:
    """Whether lower is better, also of one label's metric, such as ``click_logloss``."""
    return metric.endswith(tuple(f"_{name}" for name in FALLING)) or metric in FALLING


def cost_name(metric: str) -> str:
    """Return what a part of a model costs that is missing, such as ``AUC drop`` or ``RMSE increase``."""
    return f"{metric} {'increase' if is_falling(metric) else 'drop'}"


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the evaluations of the newest run in ``RunPaths.runs`` by their steps, also while it trains."""
    newest = newest_evaluations(folder)
    lines = [] if newest is None else read_lines(newest[0])
    return list({line["step"]: line for line in lines}.values())  # a killed run may have written a step twice


def newest_evaluations(folder: Path) -> tuple[Path, int] | None:
    """Return the file that ``read_evaluations`` reads and when it was last written, None if there is none."""
    files = [(path, path.stat().st_mtime_ns) for path in folder.glob(f"*/{METRICS}")]
    return max(files, key=lambda file: file[1], default=None)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line; an incomplete last line is left out.

    Raises
    ------
    DataError
        Another line is damaged, or the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a file of evaluations") from error
    entries = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not _is_number(entry.get("step")):
            raise DataError(f"{path}, line {number}: is not an evaluation of a run; delete the line")
        entries.append(entry)
    return entries


def monitored(settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> float:
    """Return the monitored metric, or weighted sum of metrics; NaN where it is not among them."""
    monitor = settings["monitor"]
    weights = {monitor: 1.0} if isinstance(monitor, str) else monitor
    return sum(weight * metrics.get(name, math.nan) for name, weight in weights.items())


def best_epoch_was_last(history: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> bool:
    """Whether the best evaluation is of the last epoch that the settings allow, so that more epochs may be better."""
    if not {"monitor", "monitor_mode", "epochs"} <= settings.keys():
        return False
    sign = -1 if settings["monitor_mode"] == "min" else 1
    values = [(sign * monitored(settings, line), line.get("epoch")) for line in history]
    best = max((value for value, _ in values if not math.isnan(value)), default=math.nan)
    return next((epoch == settings["epochs"] for value, epoch in values if value == best), False)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
