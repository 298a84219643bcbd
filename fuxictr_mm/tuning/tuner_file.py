"""The tuner file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from fuxictr_mm.checking import Settings, matches, model_defaults, model_schema, unknown_key
from fuxictr_mm.config import (
    DATASET_KEYS,
    DEFAULTS,
    EXPERIMENT_KEYS,
    PATH_KEYS,
    ExperimentConfig,
    load_dataset_config,
    load_model_config,
)
from fuxictr_mm.errors import ConfigError, MissingFileError, nearest
from fuxictr_mm.registry import load_model_class
from fuxictr_mm.tuning.space import Point, Range, RangeSettings, Space, point_of, read_range
from fuxictr_mm.tuning.trial import FOLLOWED_KEYS
from fuxictr_mm.yaml_files import load_yaml

WARMUP = 1  # evaluations of every trial with pruning: True
SEARCHES = ("grid", "random", "tpe", "local")
BASE_KEYS = ("base_config", "base_expid", "dataset_id", "model_config", "dataset_config", "tuner_space", "search")


class StudySettings(Settings):
    """Keys of a tuner YAML for ``search: random``, ``tpe`` and ``local``."""

    trials: PositiveInt = Field(description="Number of trials.")
    seed: NonNegativeInt = Field(0, description="Seed of the sampler.")
    pruning: bool | dict[str, Any] = Field(False, description="Stop trials below the median, see `Pruning`.")
    study: str | None = Field(None, description="Name of the study and of its folder; that of the file if missing.")
    storage: str | None = Field(None, description="Database URL; SQLite in the folder if missing.")


class Pruning(Settings):
    """The mapping that ``pruning`` may be."""

    warmup: NonNegativeInt = Field(WARMUP, description="Evaluations that every trial gets.")
    epochs: NonNegativeInt | None = Field(
        None, description="Epochs that every trial gets; a third of its `epochs` if neither this nor `warmup` is given."
    )


@dataclass(frozen=True)
class Tuner:
    """A checked tuner YAML."""

    path: Path  #: The YAML.
    name: str  #: First part of the experiment ids.
    model: dict[str, Any]  #: Settings of the base experiment.
    dataset_id: str  #: Its dataset.
    dataset: dict[str, Any]  #: Settings of that.
    space: Space  #: Values to try of each tuned setting: a list, or a range.
    search: Literal["grid", "random", "tpe", "local"] = "grid"  #: Search method.
    trials: int = 0  #: Number of trials; not used by a grid.
    seed: int = 0  #: Seed of the sampler.
    pruning: Pruning | None = None  #: What every trial gets before it may be pruned; None: no pruning.
    study: str = ""  #: Name of the study and of its folder.
    storage: str | None = None  #: Database URL; None: SQLite in the folder.
    first: Point | None = None  #: The point of the first trial, in place of a sampled one.

    @property
    def folder(self) -> Path:
        """The configuration folder of the trials."""
        return self.path.with_name(self.study) if self.search != "grid" else self.path.with_suffix("")

    @property
    def dataset_keys(self) -> set[str]:
        """The tuned settings that belong to the dataset, not to the experiment."""
        # The dataset's settings take precedence over the experiment's.
        of_datasets = {key for key in DATASET_KEYS if key not in EXPERIMENT_KEYS and key not in self.model}
        return {key for key in self.space if key in self.dataset or key in of_datasets}

    def setting(self, key: str) -> Any:
        """Return a setting of the base experiment, its default if it has none."""
        return {**DEFAULTS, **self.model, **self.dataset}.get(key)


def read_tuner(tuner_yaml: Path, model_zoo: Path | None = None) -> Tuner:
    """Read and check a tuner YAML.

    Parameters
    ----------
    tuner_yaml : Path
        Holds ``base_expid`` and ``tuner_space``, and the base: ``base_config`` (a folder, by default that of the file)
        or ``model_config`` and ``dataset_config`` inline. ``dataset_id`` replaces that of the experiment. ``search``
        and the keys of a study define the search.
    model_zoo : Path, optional
        A folder of model files to search first.

    Raises
    ------
    ConfigError, MissingFileError
        A key is unknown or its value wrong, a list is empty or repeats a value, a list-valued setting is given as a
        flat list, or a range is invalid; one line lists all problems.
    """
    tuner_yaml = Path(tuner_yaml)
    if tuner_yaml.suffix != ".yaml":
        raise ConfigError(f"{tuner_yaml}: expected a tuner file that ends in .yaml; give it with --config")
    tuner = _with_dataset_config(load_yaml(tuner_yaml))
    known = (*BASE_KEYS, *StudySettings.model_fields)
    problems = [unknown_key(key, known) for key in tuner if key not in known]
    required = ("base_expid", "tuner_space")
    problems += [f"{key} is missing; see fuxictr-mm tune --help" for key in required if not tuner.get(key)]
    settings: dict[str, Any] = {"search": "tpe"}
    space: Space = {}
    model, dataset, dataset_id = dict[str, Any](), dict[str, Any](), ""
    with _collected(problems, tuner_yaml):
        settings = _read_study(tuner_yaml, tuner)
    if tuner.get("base_expid"):
        with _collected(problems, tuner_yaml):
            model = _read_model(tuner_yaml, tuner)
        with _collected(problems, tuner_yaml):
            dataset_id, dataset = _read_dataset(tuner_yaml, tuner, model)
    if tuner.get("tuner_space"):
        with _collected(problems, tuner_yaml):
            space = _read_space(tuner_yaml, tuner["tuner_space"], settings["search"], model, dataset, model_zoo)
            if isinstance(tried := space.get("initial_weights"), list):
                origin = _folder_of_models(tuner_yaml, tuner)
                found = [_from_folder(path, origin) if isinstance(path, str) else path for path in tried]
                space["initial_weights"] = found
    if problems:
        raise ConfigError(f"{tuner_yaml}: {'; '.join(problems)}")
    name = str(tuner["base_expid"])
    if model.get("dataset_id") == "TBD":
        name = f"{model['model']}_{dataset_id}"
    result = Tuner(tuner_yaml, name, model, dataset_id, dataset, space, **settings)
    _check_monitor(result)
    return replace(result, first=_base_point(result, model_zoo)) if result.search == "local" else result


def _base_point(tuner: Tuner, model_zoo: Path | None) -> Point | None:
    """Return the tuned settings of the base experiment, None where one of them is not in the space."""
    unset = {name: field.default for name, field in ExperimentConfig.model_fields.items()}
    unset |= model_defaults(load_model_class(tuner.model["model"], model_zoo))
    settings = {**unset, **DEFAULTS, **tuner.model, **tuner.dataset}
    fixed = {key: values[0] for key, values in tuner.space.items() if isinstance(values, list) and len(values) == 1}
    return point_of(tuner.space, {key: settings.get(key) for key in tuner.space} | fixed)


@contextmanager
def _collected(problems: list[str], where: object) -> Iterator[None]:
    """Append the message of an error of the block, without its prefix ``where``."""
    try:
        yield
    except (ConfigError, MissingFileError) as error:
        problems.append(str(error).removeprefix(f"{where}: "))


def _with_dataset_config(tuner: dict[str, Any]) -> dict[str, Any]:
    """Move the entry of the dataset, which some files have at the top level, to ``dataset_config``."""
    dataset_id = tuner.get("dataset_id")
    if not isinstance(dataset_id, str) or "dataset_config" in tuner or not isinstance(tuner.get(dataset_id), dict):
        return tuner
    rest = {key: value for key, value in tuner.items() if key != dataset_id}
    return {**rest, "dataset_config": {dataset_id: tuner[dataset_id]}}


def _read_study(tuner_yaml: Path, tuner: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``search`` and, unless it is a grid, the settings of the study."""
    search = tuner.get("search", "grid")
    if search not in SEARCHES:
        listing = ", ".join(SEARCHES)
        raise ConfigError(f"{tuner_yaml}: search is {search!r}, expected one of {listing}{nearest(search, SEARCHES)}")
    given = {key: tuner[key] for key in StudySettings.model_fields if key in tuner}
    if search == "grid":
        if given:
            key = next(iter(given))
            raise ConfigError(f"{tuner_yaml}: {key} has no effect with search: grid; leave it out, or set search: tpe")
        return {"search": search}
    if "trials" not in given:
        raise ConfigError(
            f"{tuner_yaml}: trials is missing; search: {search} needs the number of trials, such as trials: 50"
        )
    settings = StudySettings.read(given, str(tuner_yaml))
    study = settings.study or tuner_yaml.stem
    if not re.fullmatch(r"\w[\w.-]*", study):
        raise ConfigError(f"{tuner_yaml}: study is '{study}', expected letters, digits, '_', '-': it is a folder name")
    return {
        "search": search,
        "trials": settings.trials,
        "seed": settings.seed,
        "pruning": _read_pruning(tuner_yaml, settings.pruning),
        "study": study,
        "storage": settings.storage,
    }


def _read_pruning(tuner_yaml: Path, pruning: bool | dict[str, Any]) -> Pruning | None:
    if pruning is False:
        return None
    found = Pruning.read({} if pruning is True else pruning, f"{tuner_yaml}: pruning")
    is_by_evaluations = "warmup" in found.model_fields_set and found.epochs is None
    return found.model_copy(update={"epochs": 0}) if is_by_evaluations else found


def _check_monitor(tuner: Tuner) -> None:
    """Refuse a study whose trials do not all have the same monitored metric."""
    if tuner.search == "grid":
        return
    for key in ("monitor", "monitor_mode", "metrics"):
        if key in tuner.space:
            raise ConfigError(
                f"{tuner.path}: tuner_space: {key}: the trials would not be comparable; set it in the base experiment"
            )
    monitor, metrics = tuner.setting("monitor"), tuner.setting("metrics")
    for name in [monitor] if isinstance(monitor, str) else monitor:
        if name not in metrics:
            raise ConfigError(
                f"{tuner.path}: the monitor {name} is not one of the metrics {metrics}; add it to metrics"
            )
    if tuner.pruning is not None and tuner.setting("record") is False:
        raise ConfigError(
            f"{tuner.path}: pruning reads the folders of the runs; remove record: False from the base experiment"
        )


def _base_folder(tuner_yaml: Path, tuner: Mapping[str, Any]) -> Path:
    """Return the folder of the base experiment's configuration, which may not exist."""
    folder = Path(tuner.get("base_config") or tuner_yaml.parent)
    return folder if folder.is_dir() else tuner_yaml.parent / folder


def _read_base(
    read: Callable[[Path, str], dict[str, Any]], tuner_yaml: Path, tuner: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Return an entry of the base experiment's configuration, which ``read`` takes from its folder."""
    try:
        return read(_base_folder(tuner_yaml, tuner), name)
    except MissingFileError as error:
        found = str(error).partition(";")[0]
        raise MissingFileError(
            f"{tuner_yaml}: {found}; expected the configuration of the base experiment, give its folder as base_config"
        ) from None


def _folder_of_models(tuner_yaml: Path, tuner: Mapping[str, Any]) -> Path:
    """Return the folder that relative paths of the base experiment count from."""
    return tuner_yaml.parent if "model_config" in tuner else _base_folder(tuner_yaml, tuner)


def _read_model(tuner_yaml: Path, tuner: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the base experiment."""
    base_folder, name = _base_folder(tuner_yaml, tuner), tuner["base_expid"]
    if "model_config" in tuner:
        entries = _mapping(tuner_yaml, "model_config", tuner["model_config"])
        entry = _mapping(tuner_yaml, f"model_config: {name}", _entry(tuner_yaml, "base_expid", name, entries))
        model = {**(entries.get("Base") or {}), **entry}
    elif not base_folder.is_dir():
        raise ConfigError(
            f"{tuner_yaml}: base_config: {base_folder}: no such folder; expected one that holds model_config.yaml"
        )
    else:
        model = _read_base(load_model_config, tuner_yaml, tuner, name)
    if not isinstance(model.get("model"), str):
        raise ConfigError(f"{tuner_yaml}: {name}: model is {model.get('model')!r}, expected the name of a model")
    # The experiments are written to another folder, from which relative paths would not be found.
    if isinstance(path := model.get("initial_weights"), str):
        model["initial_weights"] = _from_folder(path, _folder_of_models(tuner_yaml, tuner))
    return model


def _read_dataset(tuner_yaml: Path, tuner: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the dataset's id and settings; nothing of a base experiment ``model`` that could not be read."""
    dataset_id = tuner.get("dataset_id", model.get("dataset_id"))
    if dataset_id is None and not model:
        return "", {}
    if not isinstance(dataset_id, str) or dataset_id == "TBD":
        raise ConfigError(f"{tuner_yaml}: dataset_id is {dataset_id!r}, expected a dataset id; write dataset_id: X")
    if "dataset_config" in tuner:
        entries = _mapping(tuner_yaml, "dataset_config", tuner["dataset_config"])
        dataset = _mapping(tuner_yaml, dataset_id, _entry(tuner_yaml, "dataset_id", dataset_id, entries))
        return dataset_id, with_found_paths(dataset, tuner_yaml.parent)
    base_folder = _base_folder(tuner_yaml, tuner)
    if not model and not base_folder.is_dir():
        return dataset_id, {}  # of which the base experiment says more
    dataset = _read_base(load_dataset_config, tuner_yaml, tuner, dataset_id)
    return dataset_id, with_found_paths(dataset, base_folder)


def _mapping(tuner_yaml: Path, where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{tuner_yaml}: {where} is {value!r}, expected a mapping of settings")
    return value


def _entry(tuner_yaml: Path, key: str, name: str, entries: Mapping[str, Any]) -> Any:
    if name not in entries:
        listing = ", ".join(str(known) for known in entries)
        raise ConfigError(f"{tuner_yaml}: {key}: there is no '{name}'{nearest(name, entries)} (there are: {listing})")
    return entries[name]


def with_found_paths(dataset: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a dataset's entry whose paths are found from anywhere, those relative to its folder included."""
    found = {key: _from_folder(dataset[key], folder) for key in (*PATH_KEYS, "data_root") if dataset.get(key)}
    return {**dataset, **found}


def _from_folder(paths: str | list[str], folder: Path) -> str | list[str]:
    if isinstance(paths, list):
        return [str(_from_folder(path, folder)) for path in paths]
    path = Path(paths)
    if path.is_absolute() or path.exists() or not (folder / path).exists():
        return paths
    return str((folder / path).resolve())


def _read_space(
    tuner_yaml: Path,
    space: Any,
    search: str,
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    model_zoo: Path | None,
) -> Space:
    """Return the values to try of each tuned key; ``model`` or ``dataset`` is empty where it could not be read."""
    space = _mapping(tuner_yaml, "tuner_space", space)
    base = {**model, **dataset}
    schema: dict[str, Any] = {**DATASET_KEYS, **EXPERIMENT_KEYS}
    models = space.get("model", model.get("model", []))
    found: Space = {}
    problems: list[str] = []
    for name in dict.fromkeys(map(str, models if isinstance(models, list) else [models])):
        with _collected(problems, tuner_yaml):
            own = model_schema(load_model_class(name, model_zoo))
            schema.update({key: kind for key, kind in own.items() if kind is not Any or key not in schema})
    is_complete = bool(model and dataset) and not problems
    for key, values in space.items():
        if not is_complete and key not in base and key not in schema:
            continue  # perhaps a setting of what was not found
        with _collected(problems, tuner_yaml):
            found[key] = _read_values(f"{tuner_yaml}: tuner_space: {key}", key, values, search, base, schema)
    if problems:
        raise ConfigError(f"{tuner_yaml}: {'; '.join(problems)}")
    return found


def _read_values(
    where: str, key: str, values: Any, search: str, base: Mapping[str, Any], schema: Mapping[str, Any]
) -> list[Any] | Range:
    """Return the values to try of one key of ``tuner_space``."""
    annotation = schema.get(key, Any)
    if key in FOLLOWED_KEYS:
        raise ConfigError(f"{where}: cannot be tuned; write one tuner file for each {key}")
    if key not in base and key not in schema:
        known = {**base, **schema}
        raise ConfigError(
            f"{where}: not a setting of the base experiment, its dataset or its model{nearest(key, known)}"
        )
    if isinstance(values, dict) and (set(values) & {*RangeSettings.model_fields} or not matches(values, annotation)):
        if search == "grid":
            raise ConfigError(
                f"{where}: {values} is a range, which search: grid does not support; write a list, or set search: tpe"
            )
        return read_range(values, annotation, where)
    if not isinstance(values, list):
        return [values]
    _check_list(where, values, base.get(key), annotation)
    return values


def _check_list(where: str, values: list[Any], base_value: Any, annotation: Any) -> None:
    if not values:
        raise ConfigError(f"{where}: an empty list; expected at least one value")
    if _is_flat_list(values, base_value, annotation):
        raise ConfigError(
            f"{where}: {values} is a single value that is a list; for a grid of one value write [{values}]"
        )
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
