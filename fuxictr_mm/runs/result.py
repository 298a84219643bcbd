"""The result of a finished run, in its folder and, of the newest run, in ``EXPID.json``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from fuxictr_mm.errors import DataError
from fuxictr_mm.files import read_json
from fuxictr_mm.runs.evaluations import _is_number


@dataclass(frozen=True)
class Result:
    """Metrics of a finished run, and the hashes of what it was trained with, which only ``EXPID.json`` has."""

    valid: dict[str, float]  #: Metrics of the validation rows.
    seconds: float  #: Wall time.
    test: dict[str, float] = field(default_factory=dict)  #: Metrics of the test rows; empty where there are none.
    config_hash: str = ""  #: ``ExperimentConfig.fingerprint``.
    settings_hash: str = ""  #: The same, without paths.
    model_code: str | None = None  #: Hash of the model's file; None of older versions.
    data: dict[str, str] = field(default_factory=dict)  #: Hashes of ``data_hashes``; empty of older versions.
    parameters: int | None = None  #: Trainable parameters.
    valid_rows: int | None = None  #: Rows of the validation file.

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read the file of a result; a DataError names what is wrong in it."""
        found = {key: value for key, value in read_json(path).items() if value is not None}
        for name in ("valid", "test"):
            metrics = found.get(name)
            if metrics is None and name == "test":
                continue
            if not isinstance(metrics, dict) or not all(map(_is_number, metrics.values())):
                raise DataError(f"{path}: {name} is {metrics!r}, expected metrics")
        if not _is_number(found.get("seconds")):
            raise DataError(f"{path}: seconds is {found.get('seconds')!r}, expected a number")
        if not isinstance(found.get("data", {}), dict):
            raise DataError(f"{path}: data is {found['data']!r}, expected hashes by setting")
        return cls(**{each.name: found[each.name] for each in fields(cls) if each.name in found})
