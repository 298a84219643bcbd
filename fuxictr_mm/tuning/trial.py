"""A trial of a grid, and what became of it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuxictr_mm.config import config_hash

FOLLOWED_KEYS = ("model_id", "dataset_id")  # names that follow from the settings: no settings themselves


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial.

    Parameters
    ----------
    expid : str
        Experiment id.
    params : dict
        Its resolved parameters.
    valid, test : dict of str to float
        Metrics; empty where there are none.
    seconds : float
        How long it took; NaN where it failed.
    error : str, optional
        Last line of the output of a trial that failed.
    skipped : bool
        Whether it had finished before.
    """

    expid: str
    params: dict[str, Any]
    valid: dict[str, float] = field(default_factory=dict)
    test: dict[str, float] = field(default_factory=dict)
    seconds: float = math.nan
    error: str | None = None
    skipped: bool = False

    @property
    def score(self) -> float:
        """The monitored metric, or weighted sum of metrics, on valid; higher is better, -inf without one."""
        monitor = self.params["monitor"]
        weights = {monitor: 1.0} if isinstance(monitor, str) else monitor
        value = sum(weight * self.valid.get(name, math.nan) for name, weight in weights.items())
        return -math.inf if math.isnan(value) else -value if self.params["monitor_mode"] == "min" else value


@dataclass(frozen=True)
class Trial:
    """An experiment that is checked and ready to run."""

    expid: str
    params: dict[str, Any]
    record: Path

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
