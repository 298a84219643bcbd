"""A tuner YAML: what is tuned, over which values, and how."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fuxictr_mm.checking import check_types, matches, nearest
from fuxictr_mm.config import (
    DATASET_KEYS,
    DEFAULTS,
    EXPERIMENT_KEYS,
    PATH_KEYS,
    load_dataset_config,
    load_model_config,
    model_schema,
)
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.registry import load_model_class
from fuxictr_mm.tuning.space import RANGE_KEYS, Space, read_range
from fuxictr_mm.tuning.trial import FOLLOWED_KEYS
from fuxictr_mm.yaml_file import load_yaml

SEARCHES = ("grid", "random", "tpe")
BASE_KEYS = ("base_config", "base_expid", "dataset_id", "model_config", "dataset_config", "tuner_space", "search")

#: Keys of a study, for ``search: random`` and ``tpe``.
STUDY_KEYS: dict[str, Any] = {
    "trials": int,
    "seed": int,
    "pruning": bool | dict,
    "study": str,
    "storage": str,
}
WARMUP = 1  # evaluations that a trial gets in any case, with pruning: True


@dataclass(frozen=True)
class Tuner:
    """A tuner YAML that has been read and checked.

    Parameters
    ----------
    path : Path
        The YAML.
    name : str
        First part of the experiment ids.
    model, dataset : dict
        Settings of the base experiment and of its dataset.
    dataset_id : str
        Dataset of the base experiment.
    space : dict
        Values to try of each tuned setting: a list, or a range.
    search : {"grid", "random", "tpe"}
        How points are chosen.
    trials : int
        Points in all; of no meaning for a grid.
    seed : int
        Decides which points are drawn.
    warmup : int or None
        Evaluations before a trial may be pruned; None: none is pruned.
    study : str
        Name of the study and of its folder.
    storage : str or None
        Database URL; None: SQLite in the folder.
    """

    path: Path
    name: str
    model: dict[str, Any]
    dataset_id: str
    dataset: dict[str, Any]
    space: Space
    search: Literal["grid", "random", "tpe"] = "grid"
    trials: int = 0
    seed: int = 0
    warmup: int | None = None
    study: str = ""
    storage: str | None = None

    @property
    def folder(self) -> Path:
        """The configuration folder of the trials."""
        return self.path.with_name(self.study) if self.search != "grid" else self.path.with_suffix("")

    @property
    def dataset_keys(self) -> set[str]:
        """The tuned settings that belong to the dataset, not to the experiment."""
        return {key for key in self.space if _belongs_to_dataset(key, self.model, self.dataset)}

    def setting(self, key: str) -> Any:
        """Return a setting of the base experiment, its default if it has none."""
        return {**DEFAULTS, **self.model, **self.dataset}.get(key)


def read_tuner(tuner_yaml: Path, model_zoo: Path | None = None) -> Tuner:
    """Read and check a tuner YAML.

    Parameters
    ----------
    tuner_yaml : Path
        Holds ``base_expid`` and ``tuner_space``, and where the base comes from: ``base_config`` (a folder, its own by
        default) or ``model_config`` and ``dataset_config`` inline. ``dataset_id`` takes the place of the one of the
        experiment. ``search`` and the keys of a study say how points are chosen.
    model_zoo : Path, optional
        A folder of model files to search first.

    Raises
    ------
    ConfigError, MissingFileError
        A key is unknown or its value wrong, a list is empty or repeats a value, a list-valued setting is given as a
        flat list, or a range cannot be.
    """
    tuner_yaml = Path(tuner_yaml)
    if tuner_yaml.suffix != ".yaml":
        raise ConfigError(f"{tuner_yaml}: expected a tuner file that ends in .yaml; give it with --config")
    tuner = load_yaml(tuner_yaml)
    known = (*BASE_KEYS, *STUDY_KEYS)
    for key in tuner:
        if key not in known:
            raise ConfigError(f"{tuner_yaml}: unknown key '{key}'{nearest(key, known)}")
    for key in ("base_expid", "tuner_space"):
        if not tuner.get(key):
            raise ConfigError(f"{tuner_yaml}: {key} is missing; see run_param_tuner.py --help")
    settings = _read_study(tuner_yaml, tuner)
    model, dataset_id, dataset = _read_base(tuner_yaml, tuner)
    name = str(tuner["base_expid"])
    if model.get("dataset_id") == "TBD":
        name = f"{model['model']}_{dataset_id}"
    space = _read_space(tuner_yaml, tuner["tuner_space"], settings["search"], model, dataset, model_zoo)
    result = Tuner(tuner_yaml, name, model, dataset_id, dataset, space, **settings)
    _check_monitor(result)
    return result


def _read_study(tuner_yaml: Path, tuner: Mapping[str, Any]) -> dict[str, Any]:
    """Return how points are chosen: ``search`` and, unless it is a grid, the settings of the study."""
    search = tuner.get("search", "grid")
    if search not in SEARCHES:
        listing = ", ".join(SEARCHES)
        raise ConfigError(f"{tuner_yaml}: search is {search!r}, expected one of {listing}{nearest(search, SEARCHES)}")
    given = {key: tuner[key] for key in STUDY_KEYS if key in tuner}
    if search == "grid":
        if given:
            key = next(iter(given))
            raise ConfigError(f"{tuner_yaml}: {key} has no meaning for search: grid; leave it out, or search: tpe")
        return {"search": search}
    problems = check_types(given, STUDY_KEYS, str(tuner_yaml))
    if problems:
        raise ConfigError("; ".join(problems))
    if "trials" not in given:
        raise ConfigError(f"{tuner_yaml}: trials is missing; search: {search} needs the number of points, trials: 50")
    if given["trials"] < 1:
        raise ConfigError(f"{tuner_yaml}: trials is {given['trials']}, expected 1 or more")
    if given.get("seed", 0) < 0:
        raise ConfigError(f"{tuner_yaml}: seed is {given['seed']}, expected 0 or more")
    study = given.get("study", tuner_yaml.stem)
    if not re.fullmatch(r"\w[\w.-]*", study):
        raise ConfigError(f"{tuner_yaml}: study is '{study}', expected letters, digits, '_', '-': it names a folder")
    return {
        "search": search,
        "trials": given["trials"],
        "seed": given.get("seed", 0),
        "warmup": _read_pruning(tuner_yaml, given.get("pruning", False)),
        "study": study,
        "storage": given.get("storage"),
    }


def _read_pruning(tuner_yaml: Path, pruning: bool | dict[str, Any]) -> int | None:
    if isinstance(pruning, bool):
        return WARMUP if pruning else None
    problems = check_types(pruning, {"warmup": int}, f"{tuner_yaml}: pruning")
    if problems:
        raise ConfigError("; ".join(problems))
    warmup = pruning.get("warmup", WARMUP)
    if warmup < 0:
        raise ConfigError(f"{tuner_yaml}: pruning: warmup is {warmup}, expected a number of evaluations, 0 or more")
    return warmup


def _check_monitor(tuner: Tuner) -> None:
    """A study is told the monitored metric of each trial, so all trials must have the same, and have it at all."""
    if tuner.search == "grid":
        return
    for key in ("monitor", "monitor_mode", "metrics"):
        if key in tuner.space:
            raise ConfigError(
                f"{tuner.path}: tuner_space: {key}: trials could not be compared; set it in the base experiment"
            )
    monitor, metrics = tuner.setting("monitor"), tuner.setting("metrics")
    for name in [monitor] if isinstance(monitor, str) else monitor:
        if name not in metrics:
            raise ConfigError(
                f"{tuner.path}: the monitor {name} is not one of the metrics {metrics}; add it to metrics"
            )
    if tuner.warmup is not None and tuner.setting("record") is False:
        raise ConfigError(f"{tuner.path}: pruning reads the run records; remove record: False of the base experiment")


def _read_base(tuner_yaml: Path, tuner: Mapping[str, Any]) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return settings of the base experiment, the dataset's id and the dataset's settings."""
    base_folder = Path(tuner.get("base_config") or tuner_yaml.parent)
    if not base_folder.is_dir():
        base_folder = tuner_yaml.parent / base_folder
    name = tuner["base_expid"]
    if "model_config" in tuner:
        entries = _mapping(tuner_yaml, "model_config", tuner["model_config"])
        entry = _mapping(tuner_yaml, f"model_config: {name}", _entry(tuner_yaml, "base_expid", name, entries))
        model = {**(entries.get("Base") or {}), **entry}
    else:
        model = load_model_config(base_folder, name)
    if not isinstance(model.get("model"), str):
        raise ConfigError(f"{tuner_yaml}: {name}: model is {model.get('model')!r}, expected the name of a model")
    dataset_id = tuner.get("dataset_id", model.get("dataset_id"))
    if not isinstance(dataset_id, str) or dataset_id == "TBD":
        raise ConfigError(f"{tuner_yaml}: dataset_id is {dataset_id!r}, expected a dataset id; write dataset_id: X")
    if "dataset_config" in tuner:
        entries = _mapping(tuner_yaml, "dataset_config", tuner["dataset_config"])
        dataset = _mapping(tuner_yaml, dataset_id, _entry(tuner_yaml, "dataset_id", dataset_id, entries))
        origin = tuner_yaml.parent
    else:
        dataset = load_dataset_config(base_folder, dataset_id)
        origin = base_folder
    # The folder that is written is another than the base's: paths that count from there would not be found.
    found = {key: _from_folder(dataset[key], origin) for key in (*PATH_KEYS, "data_root") if dataset.get(key)}
    return model, dataset_id, {**dataset, **found}


def _mapping(tuner_yaml: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{tuner_yaml}: {where} is {value!r}, expected a mapping of settings")
    return value


def _entry(tuner_yaml: Path, key: str, name: str, entries: Mapping[str, Any]) -> Any:
    if name not in entries:
        listing = ", ".join(str(known) for known in entries)
        raise ConfigError(f"{tuner_yaml}: {key}: there is no '{name}'{nearest(name, entries)} (there are: {listing})")
    return entries[name]


def _from_folder(paths: str | list[str], folder: Path) -> str | list[str]:
    if isinstance(paths, list):
        return [str(_from_folder(path, folder)) for path in paths]
    path = Path(paths)
    if path.is_absolute() or path.exists() or not (folder / path).exists():
        return paths
    return str((folder / path).resolve())


def _belongs_to_dataset(key: str, model: Mapping[str, Any], dataset: Mapping[str, Any]) -> bool:
    # The dataset's settings win over the experiment's where both hold a key.
    return key in dataset or (key in DATASET_KEYS and key not in EXPERIMENT_KEYS and key not in model)


def _read_space(
    tuner_yaml: Path,
    space: Any,
    search: str,
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    model_zoo: Path | None,
) -> Space:
    """Return the values to try of each tuned key."""
    space = _mapping(tuner_yaml, "tuner_space", space)
    base = {**model, **dataset}
    schema: dict[str, Any] = {**DATASET_KEYS, **EXPERIMENT_KEYS}
    models = space.get("model", model["model"])
    for name in models if isinstance(models, list) else [models]:
        schema.update(model_schema(load_model_class(name, model_zoo)))
    found: Space = {}
    for key, values in space.items():
        where = f"{tuner_yaml}: tuner_space: {key}"
        annotation = schema.get(key, Any)
        if key in FOLLOWED_KEYS:
            raise ConfigError(f"{where}: cannot be tuned; write one tuner file for each {key}")
        if key not in base and key not in schema:
            known = {**base, **schema}
            raise ConfigError(
                f"{where}: neither the base experiment, its dataset nor its model has it{nearest(key, known)}"
            )
        if isinstance(values, dict) and (set(values) & {*RANGE_KEYS} or not matches(values, annotation)):
            found[key] = read_range(values, annotation, where)
            if search == "grid":
                raise ConfigError(f"{where}: {values} is a range; for search: grid write a list, or search: tpe")
        elif isinstance(values, list):
            _check_list(where, values, base.get(key), annotation)
            found[key] = values
        else:
            found[key] = [values]
    return found


def _check_list(where: str, values: list[Any], base_value: Any, annotation: Any) -> None:
    if not values:
        raise ConfigError(f"{where}: an empty list; expected at least one value")
    if _is_flat_list(values, base_value, annotation):
        raise ConfigError(f"{where}: {values} is one value that is a list; for a grid of one write [{values}]")
    texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise ConfigError(f"{where}: {twice} is given twice; keep one of them")


def _is_flat_list(values: list[Any], base_value: Any, annotation: Any) -> bool:
    """Whether a list is one value of a list-valued setting rather than a grid of values."""
    if annotation is not Any:
        if all(matches(value, annotation) for value in values):
            return False
        if matches(values, annotation):
            return True
    return isinstance(base_value, list) and not all(value is None or isinstance(value, list) for value in values)
