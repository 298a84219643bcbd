"""The configuration files of the trials of a study."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from fuxictr_mm.checking import SettingsError
from fuxictr_mm.config import config_hash
from fuxictr_mm.data.fingerprint import data_hashes
from fuxictr_mm.errors import ConfigError, UserError
from fuxictr_mm.tuning.source import Source
from fuxictr_mm.tuning.space import Point, check_points
from fuxictr_mm.tuning.trial import load_each
from fuxictr_mm.tuning.tuner_file import Tuner
from fuxictr_mm.yaml_files import write_entries


def write_experiment(folder: Path, tuner: Tuner, expid: str, point: Point) -> None:
    """Write the file of an experiment, and that of its dataset, which several experiments may share."""
    dataset_id, data = _dataset(tuner, point)
    entry = {**tuner.model, **{k: v for k, v in point.items() if k not in tuner.dataset_keys}, "dataset_id": dataset_id}
    write_entries(folder / "dataset_config" / f"{dataset_id}.yaml", {dataset_id: data}, tuner.path)
    write_entries(folder / "model_config" / f"{expid}.yaml", {expid: entry}, tuner.path)


def expid_of(tuner: Tuner, number: int, point: Point) -> str:
    """Return the experiment id of a trial."""
    dataset_id, data = _dataset(tuner, point)
    settings = {**tuner.model, **data, **point, "dataset_id": dataset_id, "study": tuner.study}
    return f"{tuner.name}_{tuner.search}_{number:04d}_{config_hash(settings)[:8]}"


def check_settings(tuner: Tuner, source: Source) -> dict[str, str]:
    """Return hashes of the data; refuse, before anything is written, a value of the space that would fail later.

    Raises
    ------
    ConfigError, MissingFileError
        A value is invalid, or the folder is that of a grid.
    """
    if (tuner.folder / "model_config.yaml").exists():
        raise ConfigError(
            f"{tuner.folder}: holds model_config.yaml, perhaps of a grid; give the study another name, study: NAME"
        )
    found: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for row, point in enumerate(check_points(tuner.space)):
            names.append(f"{tuner.name}_{tuner.search}_check{row}")
            write_experiment(Path(folder), tuner, names[-1], point)
        load = partial(source.load, config=Path(folder))
        try:
            experiments = load_each(names, load, folder)
        except UserError as error:
            kind = ConfigError if isinstance(error, SettingsError) else type(error)
            raise kind(str(error).replace(folder, str(tuner.path))) from error
        for experiment in experiments:
            for name, value in data_hashes(experiment.config.to_dict()).items():
                found.setdefault(name, set()).add(value)
    return {f"data of {name}": " ".join(sorted(values)) for name, values in found.items()}


def _dataset(tuner: Tuner, point: Point) -> tuple[str, dict[str, Any]]:
    keys = tuner.dataset_keys
    data = {**tuner.dataset, **{key: value for key, value in point.items() if key in keys}}
    return (f"{tuner.dataset_id}_{config_hash(data)[:8]}" if keys else tuner.dataset_id), data
