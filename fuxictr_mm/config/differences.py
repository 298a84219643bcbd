"""Differences between configurations, in one place: warnings, messages and the report are made of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from fuxictr_mm.config.dataset import PATH_KEYS
from fuxictr_mm.config.fingerprints import VOLATILE_KEYS, as_json

#: Settings that are paths, or do not change what a model computes.
LOCAL_KEYS = frozenset(
    {*PATH_KEYS, *VOLATILE_KEYS, "data_root", "model_root", "initial_weights", "resident", "buffer_rows", "streams"}
)

#: The value of a setting on a side that does not have it.
NOT_SET: Final = object()


def differing(sides: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the keys whose values differ among mappings, each with its value in every one, or ``NOT_SET``.

    Keys of mappings inside are joined by dots, where all sides have them.

    Examples
    --------
    >>> differing([{"epochs": 3, "a": {"b": 1, "c": 2}}, {"epochs": 3, "a": {"b": 1, "c": 4}}])
    {'a.c': [2, 4]}
    """
    found: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for side in sides for key in side):
        values = [side.get(key, NOT_SET) for side in sides]
        if all(isinstance(value, Mapping) for value in values):
            found |= {f"{key}.{inner}": of_inner for inner, of_inner in differing(values).items()}
        elif any(value != values[0] for value in values):
            found[key] = values
    return found


def comparable(settings: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """Return settings as JSON gives them back, with a mapping by name in place of each list of features or labels.

    Examples
    --------
    >>> comparable({"feature_cols": [{"name": ["x", "y"], "type": "numeric"}], "gpu": 0}, without=["gpu"])
    {'feature_cols': {'x': {'type': 'numeric'}, 'y': {'type': 'numeric'}}}
    """
    return {key: _by_name(value) for key, value in as_json(settings).items() if key not in without}


def _by_name(value: Any) -> Any:
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) and "name" in v for v in value):
        return value
    names = [(name, entry) for entry in value for name in _listed(entry["name"])]
    return {str(name): {k: v for k, v in entry.items() if k != "name"} for name, entry in names}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def describe_differences(found: Mapping[str, Sequence[Any]], where: str) -> list[str]:
    """Return a phrase for each difference between two sides: the first is ``where``, the second here.

    Examples
    --------
    >>> describe_differences({"epochs": [3, 5], "seed": [NOT_SET, 1]}, "in the folder")
    ['epochs is 3 in the folder, 5 here', 'seed is not set in the folder, 1 here']
    """
    return [f"{key} is {_shown(theirs)} {where}, {_shown(ours)} here" for key, (theirs, ours) in found.items()]


def _shown(value: Any) -> str:
    return "not set" if value is NOT_SET else json.dumps(value, default=str)


def result_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the settings that differ and may change a result, by key; names and paths are left out."""
    without = LOCAL_KEYS | {"model_id", "dataset_id"}
    return differing([comparable(theirs, without), comparable(ours, without)])
