"""Weights on disk: atomic writes, reads that do not execute code, and checks before loading."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fuxictr_mm.config import describe_differences, differing, result_differences
from fuxictr_mm.errors import MissingFileError, UserError, first_line, nearest
from fuxictr_mm.files import StrPath, read_json, write_beside
from fuxictr_mm.runs import HUB_CONFIG, HUB_FEATURES, HUB_WEIGHTS, config_of_weights
from fuxictr_mm.tables.sharded import is_distributed
from fuxictr_mm.yaml_files import load_yaml

if TYPE_CHECKING:
    from fuxictr_mm.fuxictr_imports import FeatureMap

logger = logging.getLogger(__name__)

#: What is put before the name of every parameter, and by what.
PREFIXES = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}

#: Under which keys training loops save the state dict among other things.
STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")

#: What wrappers of single layers put into names: torch.compile, FSDP, activation checkpointing.
INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")

#: What ``AveragedModel`` counts.
AVERAGE_COUNT = "n_averaged"


def save_state_dict(state: Mapping[str, Tensor], path: StrPath) -> None:
    """Write a state dict atomically: an older file is replaced once the new one is complete."""
    write_beside(path, lambda stream: torch.save(dict(state), stream))


def load_state_dict(model: nn.Module, path: StrPath) -> None:
    """Read weights into a model, all of them or none.

    Parameters
    ----------
    model : nn.Module
        Any model. Its attribute ``settings``, where it has one, is compared with the configuration that was saved with
        the weights if they do not fit.
    path : path
        A state dict by ``torch.save``, also among other things under one of ``STATE_KEYS`` or with names as wrappers
        change them (``PREFIXES``, ``AveragedModel``); a ``.safetensors`` file; or a folder written by ``fuxictr-mm
        export-hub``, whose features must be the model's.

    Raises
    ------
    MissingFileError
        There is no such file.
    UserError
        It is not a state dict, or its parameters are not the model's; missing, unexpected and mis-shaped ones are named
        and the settings that differ.
    """
    path = Path(path)
    if path.is_dir():
        path = hub_weights(path)
    if path.name == HUB_WEIGHTS and (path.parent / HUB_FEATURES).is_file():
        check_features(path.parent, getattr(model, "feature_map", None))
    own = model.state_dict()
    state = read_state_dict(path, own)
    if problems := _tensor_differences(state, own):
        problems += _setting_differences(path, getattr(model, "settings", None))
        raise UserError(
            f"{path}: not the weights of this configuration: {'; '.join(problems)}; "
            "use the configuration that they were trained with"
        )
    model.load_state_dict(state)


def load_known_rows(model: nn.Module, path: Path, known_rows: Callable[[str, int], int]) -> None:
    """Read weights into a model as ``load_state_dict`` does, of tables their first rows.

    ``known_rows`` returns, by the name of a parameter and the number of its rows in the file, how many of them the
    model has as its first ones. The others of the model keep their values. A table of the same shape, of which all rows
    are known, is copied as a whole.
    """
    if path.name == HUB_WEIGHTS and (path.parent / HUB_FEATURES).is_file():
        check_features(path.parent, getattr(model, "feature_map", None), sizes=False)
    own = model.state_dict()
    state = dict(read_state_dict(path, own))
    parts = {}
    for name in [name for name in own if name in state]:
        found, wanted = state[name], own[name]
        if found.dim() and found.shape[1:] == wanted.shape[1:]:
            rows = known_rows(name, len(found))
            # Not a table of which some rows are numbers of something else, such as those of clusters after the items.
            if rows == len(found) <= len(wanted) or rows < len(found) == len(wanted):
                parts[name] = found[:rows]
                state[name] = wanted
    if problems := _tensor_differences(state, own):
        problems += _setting_differences(path, getattr(model, "settings", None))
        raise UserError(f"initial_weights: {path}: not the weights of this model: {'; '.join(problems)}")
    for name, rows in parts.items():
        if is_distributed(own[name]):
            state[name] = rows  # of which the table takes its own
        else:
            state[name] = own[name].clone()
            state[name][: len(rows)] = rows
    model.load_state_dict(state)


def read_state_dict(path: Path, own: Mapping[str, Tensor]) -> Mapping[Any, Tensor]:
    """Return the weights of a file, with the names that a model's own state dict has."""
    if not path.is_file():
        raise _no_such_weights(path)
    spread = any(map(is_distributed, own.values()))  # a sharded table, of which some rows are read
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_tensors(path, mmap=spread)
    return _without_prefixes(path, _state_dict_in(path, state), own)


def _state_dict_in(path: Path, content: Any) -> Mapping[Any, Tensor]:
    """Return a state dict, or the one in a dict that a training loop has saved."""
    if _is_state_dict(content):
        return content
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a state dict (names to tensors)")
    for key in STATE_KEYS:
        if content.get(key) and _is_state_dict(content[key]):
            logger.info(f"{path}: the weights under '{key}' are loaded; it holds {_first_few(list(map(str, content)))}")
            return content[key]
    raise UserError(
        f"{path}: holds a dict with {_first_few(list(map(str, content)))}, expected a state dict (names to tensors) or "
        f"one under {', '.join(STATE_KEYS)}"
    )


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())


def _without_prefixes(path: Path, state: Mapping[Any, Tensor], own: Mapping[str, Tensor]) -> Mapping[Any, Tensor]:
    """Return a state dict without the prefixes of wrappers, which may be one in the other, and without SWA's count."""
    if AVERAGE_COUNT in state and AVERAGE_COUNT not in own:
        state = {name: value for name, value in state.items() if name != AVERAGE_COUNT}
        logger.info(f"{path}: '{AVERAGE_COUNT}' is left out (AveragedModel adds it)")
    bare = {re.sub("|".join(map(re.escape, INSIDE)), "", str(name)): value for name, value in state.items()}
    if bare.keys() != set(map(str, state)) and len(bare) == len(state) and not any(p in n for n in own for p in INSIDE):
        state = bare
        logger.info(f"{path}: {', '.join(INSIDE)} in names are left out (wrappers of layers add them)")
    while state:
        prefix = str(next(iter(state))).split(".")[0] + "."
        bare = {str(name).removeprefix(prefix): value for name, value in state.items()}
        if not all(str(name).startswith(prefix) for name in state) or any(name.startswith(prefix) for name in own):
            break
        if prefix not in PREFIXES and bare.keys() != own.keys():  # else that of the attribute of a Lightning module
            break
        state = bare
        logger.info(
            f"{path}: the prefix '{prefix}' of all names is left out ({PREFIXES.get(prefix, 'a wrapper')} adds it)"
        )
    return state


def hub_weights(folder: Path) -> Path:
    """Return the weights in a folder written by ``fuxictr-mm export-hub``.

    Raises
    ------
    MissingFileError
        The folder has no such weights; a pickled ``pytorch_model.bin`` is not read instead.
    """
    path = folder / HUB_WEIGHTS
    if not path.is_file():
        raise MissingFileError(f"{folder}: holds no {HUB_WEIGHTS}; expected a folder written by fuxictr-mm export-hub")
    return path


def _no_such_weights(path: Path) -> MissingFileError:
    others = sorted(p.name for p in path.parent.glob("*.model")) if path.parent.is_dir() else []
    there = f" ({path.parent} holds: {', '.join(others)})" if others else ""
    return MissingFileError(f"{path}: no such weights{nearest(path.name, others)}{there}; train the experiment first")


def _tensor_differences(found: Mapping[Any, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Return a phrase each for tensors that are missing, unexpected, or of another shape than the model's own."""
    shapes = [
        f"{name} {tuple(found[name].shape)} (the model has {tuple(own[name].shape)})"
        for name in own
        if name in found and found[name].shape != own[name].shape
    ]
    kinds = {
        "missing": [name for name in own if name not in found],
        "unexpected": [str(name) for name in found if name not in own],
        "of another shape": shapes,
    }
    return [f"{kind}: {_first_few(names)}" for kind, names in kinds.items() if names]


def _setting_differences(weights: Path, settings: Mapping[str, Any] | None) -> list[str]:
    """Return a phrase about the settings that differ from those saved with the weights, if both are known."""
    try:
        saved = saved_settings(weights)
    except UserError:
        saved = None
    if saved is None or settings is None:
        return []
    path, theirs = saved
    found = describe_differences(result_differences(theirs, settings), f"in {path}")
    return [f"settings that differ: {_first_few(found, '; ')}" if found else f"no setting differs from {path}"]


def saved_settings(weights: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the configuration that was saved with weights, and its file; None if there is none.

    They are in the folder of a run or of an export to the Hub, or those of an experiment that a run has finished.

    Raises
    ------
    UserError
        The file is damaged.
    """
    if weights.name == HUB_WEIGHTS and (weights.parent / HUB_FEATURES).is_file():
        path = weights.parent / HUB_CONFIG
        settings = read_json(path).get("parameters")
        if not isinstance(settings, dict):
            raise UserError(f"{path}: holds no parameters; export the folder again")
        return path, settings
    config = config_of_weights(weights)
    return None if config is None else (config, load_yaml(config))


def _first_few(phrases: list[str], separator: str = ", ") -> str:
    more = f" and {len(phrases) - 5} more" if len(phrases) > 5 else ""
    return separator.join(phrases[:5]) + more


def read_tensors(path: Path, mmap: bool = False) -> Any:
    """Read what ``torch.save`` wrote of tensors and plain values; with ``mmap``, tensors only when they are used.

    Raises
    ------
    UserError
        The file is damaged, or holds objects whose loading would run code.
    """
    try:
        with warnings.catch_warnings():
            # About the pickle protocol, before the error below.
            warnings.simplefilter("ignore")
            with _shared_mapping() if mmap and os.access(path, os.W_OK) else nullcontext():
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: is not a file of plain tensors, and other files are not loaded, because they could "
            "execute code; expected a state dict by torch.save"
        ) from error
    except Exception as error:  # a damaged file can end in any of a dozen errors of the reader
        reason = first_line(error)
        raise UserError(f"{path}: cannot be read as weights ({reason}); expected a state dict by torch.save") from error


def _shared_mapping() -> AbstractContextManager[Any]:
    """Map files as shared memory: of a private mapping, the system counts every page as memory of this process."""
    from mmap import MAP_SHARED

    return torch.serialization.set_default_mmap_options(MAP_SHARED)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file; a tensor that shares its memory with another is returned under both names.

    Raises
    ------
    UserError
        The file is damaged or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shared = {k: v for k, v in (file.metadata() or {}).items() if k not in state and v in state}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as weights ({error}); expected a file of safetensors") from error
    return {**state, **{name: state[kept] for name, kept in shared.items()}}


def describe_features(feature_map: FeatureMap) -> dict[str, Any]:
    """Return a feature map as FuxiCTR writes it to ``feature_map.json``."""
    return {
        "dataset_id": feature_map.dataset_id,
        "num_fields": feature_map.num_fields,
        "total_features": feature_map.total_features,
        "input_length": feature_map.input_length,
        "labels": feature_map.labels,
        "features": [{name: spec} for name, spec in feature_map.features.items()],
    }


def check_features(folder: Path, feature_map: FeatureMap | None, sizes: bool = True) -> None:
    """Check that weights are of the model's features: in another order they would load and give wrong scores.

    ``sizes`` says whether their vocabularies must have the same sizes.

    Raises
    ------
    UserError
        A feature is missing, new, at another position, or of another type, size or encoder.
    """
    path = folder / HUB_FEATURES
    entries = read_json(path).get("features")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and len(e) == 1 for e in entries):
        raise UserError(f"{path}: its 'features' are not a list of {{name: settings}}; export the folder again")
    if feature_map is None:
        return
    without = () if sizes else ("vocab_size",)
    theirs = _layer_settings({name: spec for entry in entries for name, spec in entry.items()}, without)
    ours = _layer_settings(json.loads(json.dumps(feature_map.features)), without)
    problems = [f"'{name}' is only in the folder" for name in theirs if name not in ours]
    problems += [f"'{name}' is only here" for name in ours if name not in theirs]
    both = [{name: side[name] for name in theirs if name in ours} for side in (theirs, ours)]
    problems += describe_differences(differing(both), "in the folder")
    if not problems and list(theirs) != list(ours):
        problems = [f"their order is {', '.join(theirs)}, here {', '.join(ours)}"]
    if problems:
        raise UserError(f"{path}: not the features of this experiment: {'; '.join(problems)}")


def _layer_settings(features: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Return the embedded features, with the settings that decide what their layers compute."""
    kept = {
        name: {
            k: v
            for k, v in spec.items()
            if v is not None and k not in ("max_len", "freeze_emb", "dropout", "table", "sharding", *without)
        }
        for name, spec in features.items()
        if isinstance(spec, dict)
    }
    return {name: spec for name, spec in kept.items() if spec.get("type") != "meta"}
