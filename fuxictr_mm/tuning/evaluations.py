"""What a running trial has reached so far, read from its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the evaluations of the newest run of an experiment, in their order.

    Parameters
    ----------
    folder : Path
        ``model_root/DATASET/EXPID``, which holds a folder with ``metrics.jsonl`` for each run.

    Returns
    -------
    list of dict
        One for each step, the metrics by their names; empty where there is no run. A run that went on after a kill may
        have written one twice.
    """
    newest = max(folder.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        return []
    # A line without its end is still being written.
    lines = [line for line in newest.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    evaluations = {evaluation["step"]: evaluation for evaluation in map(json.loads, lines)}
    return [evaluations[step] for step in sorted(evaluations)]
