"""The files of a folder as the Hugging Face hub expects it, read and compared with what is here."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fuxictr_mm.config import nearest
from fuxictr_mm.errors import MissingFileError, UserError
from fuxictr_mm.files import write_beside
from fuxictr_mm.training.likely_keys import likely_causes

if TYPE_CHECKING:
    from fuxictr.features import FeatureMap

WEIGHTS, CONFIG, FEATURES, CARD = "model.safetensors", "config.json", "feature_map.json", "README.md"


def weights_file(folder: Path) -> Path:
    """Return the weights of a folder.

    Raises
    ------
    MissingFileError
        It has none; a pickled ``pytorch_model.bin`` is not taken in their place.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise MissingFileError(f"{folder}: holds no {WEIGHTS}; expected a folder written by fuxictr-mm export-hub")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    MissingFileError, UserError
        No such file; not a JSON object.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected a folder written by fuxictr-mm export-hub")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


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


def check_features(folder: Path, feature_map: FeatureMap | None) -> None:
    """Refuse weights of other features than a model's: in another order they would load and score nonsense.

    Raises
    ------
    UserError
        A feature is missing, new, at another place, or of another type, size or encoder.
    """
    path = folder / FEATURES
    entries = read_json(path).get("features")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and len(e) == 1 for e in entries):
        raise UserError(f"{path}: its 'features' are no list of {{name: settings}}; export the folder anew")
    if feature_map is None:
        return
    theirs = _read_by_layers({name: spec for entry in entries for name, spec in entry.items()})
    ours = _read_by_layers(json.loads(json.dumps(feature_map.features)))
    problems = [f"'{name}' is only in the folder" for name in theirs if name not in ours]
    problems += [f"'{name}' is only here" for name in ours if name not in theirs]
    for name in [n for n in theirs if n in ours]:
        problems += [f"'{name}': {text}" for text in differences(theirs[name], ours[name])]
    if not problems and list(theirs) != list(ours):
        problems = [f"their order is {', '.join(theirs)}, here {', '.join(ours)}"]
    if problems:
        raise UserError(f"{path}: not the features of this experiment: {'; '.join(problems)}")


def _read_by_layers(features: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the features that reach a layer, without what only says where they come from."""
    told = {
        name: {k: v for k, v in spec.items() if v is not None and k not in ("max_len", "freeze_emb")}
        for name, spec in features.items()
        if isinstance(spec, dict)
    }
    return {name: spec for name, spec in told.items() if spec.get("type") != "meta"}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return a phrase for every key whose value in a folder is another than here."""
    none = object()

    def show(value: Any) -> str:
        return "not set" if value is none else json.dumps(value, default=str)

    keys = sorted({*theirs, *ours})
    pairs = {k: (theirs.get(k, none), ours.get(k, none)) for k in keys}
    return [f"{k} is {show(a)} in the folder, {show(b)} here" for k, (a, b) in pairs.items() if a != b]


def save_state_dict(state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a state dict."""
    write_beside(path, lambda stream: torch.save(dict(state), stream))


def read_tensors(path: Path) -> Any:
    """Read what ``torch.save`` wrote of tensors and plain values.

    Raises
    ------
    UserError
        The file is damaged, or holds objects whose loading would run code.
    """
    try:
        with warnings.catch_warnings():
            # Of the pickle protocol, on the way to the error below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: is not a file of plain tensors, and nothing else is loaded, because it could run code; "
            "expected a state dict by torch.save"
        ) from error
    except Exception as error:  # a damaged file can end in any of a dozen errors of the reader
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{path}: cannot be read as weights ({reason}); expected a state dict by torch.save") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file; a tensor that another one shares its memory with is there under both names.

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


def load_state_dict(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Read weights into a model, all of them or nothing.

    Parameters
    ----------
    model : nn.Module
        Any model.
    path : path
        A state dict by ``torch.save``, a ``.safetensors`` file, or a folder that ``fuxictr-mm export-hub`` wrote; the
        features of a folder must be the model's.

    Raises
    ------
    MissingFileError
        There is no such file.
    UserError
        It is no state dict, or its parameters are not the model's: missing, unexpected and mis-shaped ones are named,
        with the settings that probably differ.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_file(path)
    if path.name == WEIGHTS and (path.parent / FEATURES).is_file():
        check_features(path.parent, getattr(model, "feature_map", None))
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.model")) if path.parent.is_dir() else []
        there = f" ({path.parent} holds: {', '.join(beside)})" if beside else ""
        raise MissingFileError(
            f"{path}: no such weights{nearest(path.name, beside)}{there}; train the experiment first"
        )
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_tensors(path)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: holds a {type(state).__name__}, expected a state dict (names to tensors)")
    own = model.state_dict()
    problems = _differences("missing", [k for k in own if k not in state])
    problems += _differences("unexpected", [str(k) for k in state if k not in own])
    shapes = [
        f"{k} {tuple(state[k].shape)} (the model has {tuple(own[k].shape)})"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    problems += _differences("of another shape", shapes)
    if problems:
        causes = likely_causes(_shapes(own), _shapes(state), getattr(model, "blueprint", None))
        likely = f"likely: {', '.join(causes)}; " if causes else ""
        raise UserError(
            f"{path}: not the weights of this configuration: {'; '.join(problems)}; "
            f"{likely}use the configuration that they were trained with"
        )
    model.load_state_dict(state)


def _shapes(state: Mapping[Any, Tensor]) -> dict[str, tuple[int, ...]]:
    return {str(name): tuple(tensor.shape) for name, tensor in state.items()}


def _differences(what: str, names: list[str], shown: int = 5) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return [f"{what}: {', '.join(names[:shown])}{more}"]
