"""Entries of ``model_config`` and ``dataset_config``, as they are written, and their paths."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr_mm.config.dataset import PATH_KEYS
from fuxictr_mm.errors import ConfigError, MissingFileError, nearest
from fuxictr_mm.files import StrPath
from fuxictr_mm.yaml_files import load_shared


def find_config(given: StrPath | None, script_folder: StrPath) -> Path:
    """Return the configuration folder: the given one, else the working directory if it has one, else the script's."""
    if given is not None:
        return Path(given)
    here = Path(".")
    return here if (here / "model_config.yaml").is_file() or (here / "model_config").is_dir() else Path(script_folder)


def results_csv_path(config_dir: StrPath) -> Path:
    """Return the CSV in the working directory that results of a configuration folder go to, named after the folder."""
    return Path(f"{Path(config_dir).resolve().name}.csv")


def list_experiments(folder: StrPath) -> dict[str, dict[str, Any]]:
    """Return every experiment id of a folder with its own settings (``Base`` left out)."""
    return _list_entries(folder, "model_config")


def list_datasets(folder: StrPath) -> dict[str, dict[str, Any]]:
    """Return every dataset id of a folder with its settings."""
    return _list_entries(folder, "dataset_config")


def load_model_config(folder: StrPath, expid: str) -> dict[str, Any]:
    """Return the settings of one experiment, ``Base`` included, unchecked."""
    files = _read_files(folder, "model_config")
    base: dict[str, Any] = {}
    for path, content in files.items():
        if "Base" in content:
            base.update(_entry(path, content, "Base"))
    path, entry = _find_entry(files, expid, "experiment id")
    values = {**base, **entry}
    for key in ("model", "dataset_id"):
        if not isinstance(values.get(key), str):
            raise ConfigError(f"{path}: {expid}: {key} is {values.get(key)!r}, expected a name such as '{key}: X'")
    return values


def load_dataset_config(folder: StrPath, dataset_id: str) -> dict[str, Any]:
    """Return the settings of one dataset, unchecked."""
    return _find_entry(_read_files(folder, "dataset_config"), dataset_id, "dataset id")[1]


def _read_files(folder: StrPath, stem: str) -> dict[Path, dict[str, Any]]:
    """Return the content of each file of one kind, either ``stem.yaml`` or all of a folder ``stem/``."""
    folder = Path(folder)
    single = folder / f"{stem}.yaml"
    paths = [single] if single.is_file() else sorted((folder / stem).glob("*.yaml"))
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; expected one that holds {stem}.yaml")
    if not paths:
        raise MissingFileError(
            f"{folder.absolute()}: holds neither {stem}.yaml nor a folder {stem}/ with .yaml files; "
            "give the folder of your configuration with --config, or config in Python (fuxictr-mm prepare writes one)"
        )
    return {path: load_shared(path) for path in paths}


def _list_entries(folder: StrPath, stem: str) -> dict[str, dict[str, Any]]:
    files = _read_files(folder, stem)
    return {n: _entry(path, content, n) for path, content in files.items() for n in content if _is_id(n)}


def _is_id(name: str) -> bool:
    """Whether a name is neither ``Base`` nor that of settings for others to merge (``<<: *name``)."""
    return name != "Base" and not name.startswith((".", "_"))


def _entry(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    entry = content[name]
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: '{name}' is {entry!r}, expected a mapping of settings")
    return copy.deepcopy(entry)


def check_id(name: str, what: str) -> None:
    """Check that an id is a valid folder name, since runs are written to a folder of this name."""
    if name in ("", "..") or Path(name).name != name:
        raise ConfigError(
            f"{what} '{name}' is not a valid folder name, and its runs are in a folder of this name; rename "
            f"it, without '{os.sep}'"
        )


def _find_entry(files: Mapping[Path, dict[str, Any]], name: str, kind: str) -> tuple[Path, dict[str, Any]]:
    holding = [path for path, content in files.items() if name in content]
    if len(holding) > 1:
        raise ConfigError(f"{' and '.join(map(str, holding))}: both hold the {kind} '{name}'; keep one of them")
    if holding:
        check_id(name, f"{holding[0]}: {kind}")
        return holding[0], _entry(holding[0], files[holding[0]], name)
    known = sorted(key for content in files.values() for key in content if _is_id(key))
    where = ", ".join(map(str, files))
    listing = ", ".join(known) or "none"
    raise ConfigError(f"{where}: no {kind} '{name}'{nearest(name, known)} (there are: {listing})")


def resolve_entry(values: dict[str, Any], folder: Path, data_root: StrPath | None, where: str) -> dict[str, str]:
    """Resolve the paths in the merged settings of an experiment, and return one sentence per key that is wrong.

    Parameters
    ----------
    values : dict
        Settings, which get the paths found from ``folder``, or below ``data_root``.
    folder : Path
        Holds the configuration.
    data_root : path, optional
        Replaces the dataset's.
    where : str
        The dataset, for the sentences.
    """
    # The paths of an entry are relative to its own folder, also where autopilot links to the file.
    links = [path for name in ("dataset_config.yaml", "dataset_config") if (path := folder / name).is_symlink()]
    home = links[0].resolve().parent if links else folder
    problems: dict[str, str] = {}
    holders = [(values, key) for key in PATH_KEYS if key in values]
    if isinstance(columns := values.get("feature_cols"), list):
        holders += [(c, "pretrained_emb") for c in columns if isinstance(c, dict) and "pretrained_emb" in c]
    for holder, key in holders:
        try:
            holder[key] = resolve_paths(holder[key], home, values.get("data_root"), data_root)
        except ConfigError as error:
            problems[key] = f"{where}: {key}: {error}"
    if data_root is not None:
        values["data_root"] = str(data_root)
    elif values.get("item_info") is None and isinstance(values.get("data_root"), str):
        # Read and written below it: FuxiCTR's feature_map.json, and encoded files.
        values["data_root"] = os.path.expanduser(os.path.expandvars(values["data_root"]))
        if not Path(values["data_root"]).exists() and (home / values["data_root"]).exists():
            values["data_root"] = str(home / values["data_root"])
    if "initial_weights" in values:
        try:
            values["initial_weights"] = resolve_paths(values["initial_weights"], folder, None, None)
        except ConfigError as error:
            problems["initial_weights"] = f"initial_weights: {error}"
    return problems


def resolve_paths(paths: Any, folder: Path, root: Any, new_root: StrPath | None) -> Any:
    """Return paths with another root, variables expanded, and looked up from ``folder`` where they exist only there.

    Those below a root of ``./`` are looked up from ``folder`` first, as ``prepare`` writes them next to its data, also
    if the working directory has its own ``items.parquet``.
    """
    if isinstance(paths, list):
        return [resolve_paths(path, folder, root, new_root) for path in paths]
    if not isinstance(paths, str) or not paths:
        return paths
    text = paths
    if new_root is not None:
        plain, prefix = os.path.normpath(text), os.path.normpath(root) + os.sep if isinstance(root, str) else None
        relative = plain.removeprefix(prefix) if prefix and plain.startswith(prefix) else text
        text = relative if "://" in relative else os.path.join(new_root, relative)
    text = os.path.expanduser(os.path.expandvars(text))
    unset = re.search(r"\$\{?(\w+)", text)
    if unset:
        raise ConfigError(
            f"'{paths}' names the environment variable {unset[1]}, which is not set; "
            "set it to the folder of the data, or give --data_root FOLDER, or data_root in Python"
        )
    if "://" in text:  # in an object store
        return text
    is_beside = new_root is None and isinstance(root, str) and os.path.normpath(root) == "."
    if not os.path.isabs(text) and (is_beside or not _exists(Path(text))) and _exists(folder / text):
        return str(folder / text)
    return text


def _exists(path: Path) -> bool:
    return path.exists() or Path(f"{path}.parquet").exists()
