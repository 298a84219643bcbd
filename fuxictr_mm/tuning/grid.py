"""From a tuner YAML to a folder of experiments, one per point of the grid."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fuxictr_mm.checking import matches, nearest
from fuxictr_mm.config import (
    DATASET_KEYS,
    EXPERIMENT_KEYS,
    PATH_KEYS,
    config_hash,
    load_dataset_config,
    load_model_config,
    model_schema,
)
from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import write_beside
from fuxictr_mm.registry import load_model_class
from fuxictr_mm.tuning.trial import FOLLOWED_KEYS
from fuxictr_mm.yaml_file import load_yaml

TUNER_KEYS = ("base_config", "base_expid", "dataset_id", "model_config", "dataset_config", "tuner_space")


class _Dumper(yaml.SafeDumper):
    """Writes what `load_yaml` reads back: repeated values in full, texts that YAML 1.2 takes as numbers in quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def enumerate_trials(tuner_yaml: Path, model_zoo: Path | None = None) -> Path:
    """Write the experiments of a grid as a configuration folder named after the tuner YAML.

    Parameters
    ----------
    tuner_yaml : Path
        Holds ``base_expid`` and ``tuner_space`` (lists are the grid, scalars replace one value), and where the base
        comes from: ``base_config`` (a folder, its own by default) or ``model_config`` and ``dataset_config`` inline.
        ``dataset_id`` takes the place of the one of the experiment.
    model_zoo : Path, optional
        A folder of model files to search first.

    Returns
    -------
    Path
        Folder with ``model_config.yaml`` (experiments ``BASE_001_<hash>`` ...) and ``dataset_config.yaml``.

    Raises
    ------
    ConfigError, MissingFileError
        If a key is unknown, a grid is empty or repeats a value, or a list-valued setting is given as a flat list.
    """
    tuner_yaml = Path(tuner_yaml)
    if tuner_yaml.suffix != ".yaml":
        raise ConfigError(f"{tuner_yaml}: expected a tuner file that ends in .yaml; give it with --config")
    tuner = load_yaml(tuner_yaml)
    for key in tuner:
        if key not in TUNER_KEYS:
            raise ConfigError(f"{tuner_yaml}: unknown key '{key}'{nearest(key, TUNER_KEYS)}")
    for key in ("base_expid", "tuner_space"):
        if not tuner.get(key):
            raise ConfigError(f"{tuner_yaml}: {key} is missing; see run_param_tuner.py --help")
    model, dataset_id, dataset = _read_base(tuner_yaml, tuner)
    name = str(tuner["base_expid"])
    if model.get("dataset_id") == "TBD":
        name = f"{model['model']}_{dataset_id}"
    space = _read_space(tuner_yaml, tuner["tuner_space"], model, dataset, model_zoo)
    in_dataset = {key for key in space if _belongs_to_dataset(key, model, dataset)}

    datasets = {}
    for combination in _combinations(dataset, {key: space[key] for key in space if key in in_dataset}):
        datasets[f"{dataset_id}_{config_hash(combination)[:8]}"] = combination
    if len(datasets) == 1:
        datasets = {dataset_id: next(iter(datasets.values()))}
    models = _combinations(model, {key: space[key] for key in space if key not in in_dataset})
    experiments = {}
    for number, (settings, (used_id, data)) in enumerate(itertools.product(models, datasets.items()), start=1):
        entry = {**settings, "dataset_id": used_id}
        experiments[f"{name}_{number:03d}_{config_hash({**entry, **data})[:8]}"] = entry

    folder = tuner_yaml.with_suffix("")
    _write_yaml(folder / "dataset_config.yaml", datasets, tuner_yaml)
    _write_yaml(folder / "model_config.yaml", experiments, tuner_yaml)
    return folder


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
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    model_zoo: Path | None,
) -> dict[str, list[Any]]:
    """Return the values to try of each tuned key."""
    space = _mapping(tuner_yaml, "tuner_space", space)
    base = {**model, **dataset}
    schema: dict[str, Any] = {**DATASET_KEYS, **EXPERIMENT_KEYS}
    for name in _grid(space.get("model", model["model"])):
        schema.update(model_schema(load_model_class(name, model_zoo)))
    for key, values in space.items():
        where = f"{tuner_yaml}: tuner_space: {key}"
        if key in FOLLOWED_KEYS:
            raise ConfigError(f"{where}: cannot be tuned; write one tuner file for each {key}")
        if key not in base and key not in schema:
            known = {**base, **schema}
            raise ConfigError(
                f"{where}: neither the base experiment, its dataset nor its model has it{nearest(key, known)}"
            )
        if values == []:
            raise ConfigError(f"{where}: an empty list; expected at least one value")
        if isinstance(values, list):
            if _is_flat_list(values, base.get(key), schema.get(key, Any)):
                raise ConfigError(f"{where}: {values} is one value that is a list; for a grid of one write [{values}]")
            texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
            twice = next((text for text in texts if texts.count(text) > 1), None)
            if twice is not None:
                raise ConfigError(f"{where}: {twice} is given twice; keep one of them")
    return {key: _grid(values) for key, values in space.items()}


def _is_flat_list(values: list[Any], base_value: Any, annotation: Any) -> bool:
    """Whether a list is one value of a list-valued setting rather than a grid of values."""
    if annotation is not Any:
        if all(matches(value, annotation) for value in values):
            return False
        if matches(values, annotation):
            return True
    return isinstance(base_value, list) and not all(value is None or isinstance(value, list) for value in values)


def _grid(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _combinations(base: Mapping[str, Any], space: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    grid = {**{key: [value] for key, value in base.items()}, **space}
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _write_yaml(path: Path, content: Mapping[str, Any], origin: Path) -> None:
    header = f"# Written by run_param_tuner.py from {origin.name}: change it there, not here.\n"
    text = yaml.dump(dict(content), Dumper=_Dumper, default_flow_style=None, sort_keys=False, allow_unicode=True)
    write_beside(path, lambda stream: stream.write((header + text).encode()))
