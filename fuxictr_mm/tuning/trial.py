"""A trial, and what became of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuxictr_mm.config import config_hash
from fuxictr_mm.locks import FileLock

FOLLOWED_KEYS = ("model_id", "dataset_id")  # names that follow from the settings: no settings themselves


def monitored(params: Mapping[str, Any], metrics: Mapping[str, float]) -> float:
    """Return the monitored metric, or weighted sum of metrics; NaN where it is not among them."""
    monitor = params["monitor"]
    weights = {monitor: 1.0} if isinstance(monitor, str) else monitor
    return sum(weight * metrics.get(name, math.nan) for name, weight in weights.items())


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial.

    Parameters
    ----------
    expid : str
        Experiment id.
    params : dict
        Its parameters: the monitor and its mode, and at least those that are tuned.
    valid, test : dict of str to float
        Metrics; empty where there are none.
    seconds : float
        How long it took; NaN where it failed.
    error : str, optional
        Last line of the output of a trial that failed.
    skipped : bool
        Whether it had finished before.
    pruned : bool
        Whether it was ended early; ``valid`` is what it had reached.
    """

    expid: str
    params: dict[str, Any]
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    error: str | None = None
    skipped: bool = False
    pruned: bool = False

    @property
    def state(self) -> str:
        """``finished``, ``pruned`` or ``failed``."""
        return "failed" if self.error is not None else "pruned" if self.pruned else "finished"

    @property
    def score(self) -> float:
        """The monitored metric, or weighted sum of metrics, on valid; higher is better, -inf without one."""
        value = monitored(self.params, self.valid)
        return -math.inf if math.isnan(value) else -value if self.params["monitor_mode"] == "min" else value


@dataclass(frozen=True)
class Trial:
    """An experiment that is checked and ready to run.

    Parameters
    ----------
    expid : str
        Experiment id.
    params : dict
        Resolved parameters.
    record : Path
        Its result, once it has finished.
    lock : FileLock, optional
        Keeps other processes off its files.
    number : int
        Of the trial in its study.
    """

    expid: str
    params: dict[str, Any]
    record: Path
    lock: FileLock | None = None
    number: int = -1

    def result(self, skipped: bool = False) -> TrialResult | None:
        """Return the result that is on disk, None if there is none of these very parameters."""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None  # not finished, or not by us: run it
        if not isinstance(record, dict) or record.get("config_hash") != config_hash(self.params):
            return None
        return TrialResult(
            self.expid, self.params, record["valid"], record["test"] or {}, record["seconds"], skipped=skipped
        )

    def release(self) -> None:
        """Let other processes at its files."""
        if self.lock is not None:
            self.lock.release()
