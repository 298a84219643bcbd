"""The files of a folder as the Hugging Face hub expects it, read and compared with what is here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm.errors import MissingFileError, UserError

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
