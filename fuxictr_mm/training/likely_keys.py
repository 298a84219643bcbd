"""Find the settings that explain the shapes of other weights, by making the model anew with other settings.

It is made on torch's device ``meta``, where tensors have shapes and no memory. Setting after setting is changed to what
brings the shapes nearest to those of the file; they are named only if all of them together explain the file.
"""

from __future__ import annotations

import copy
import inspect
import re
import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap

from fuxictr_mm.config import EXPERIMENT_KEYS, model_schema

Shapes = Mapping[str, tuple[int, ...]]

#: How FuxiCTR's embedding names its tables, and the maps behind them.
_TABLE = re.compile(r"(?:^|\.)embedding_layers\.(\w+)\.weight$")
_ENCODER = re.compile(r"(?:^|\.)feature_encoders\.(\w+)\.")
#: The place of a layer among others; of thousands nothing is told.
_INDEX = re.compile(r"(?<=\.)[0-9]{1,2}(?=\.|$)")
#: Settings that no shape depends on.
_SHAPELESS = {*EXPERIMENT_KEYS, "compile", "loss_from", "factor"} - {"embedding_dim", "max_len"}
#: Tried where shapes tell no more of a setting than that a layer is there or not.
_RATES = (0.0, 0.1)
_ACTIVATIONS = ("ReLU", "PReLU", "Dice")
_MOST_CAUSES = 8


@dataclass(frozen=True)
class Blueprint:
    """What a model was made of.

    Parameters
    ----------
    model_class : type
        Its class.
    feature_map : FeatureMap
        The features as they were before: layers write their widths into them.
    settings : mapping
        Keywords of its constructor.
    """

    model_class: type
    feature_map: FeatureMap
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, model_class: type, feature_map: FeatureMap, settings: Mapping[str, Any]) -> Blueprint:
        """Keep these as they are now."""
        return cls(model_class, _copy_of(feature_map), dict(settings))

    def shapes(self, changes: Mapping[str, Any]) -> Shapes | None:
        """Return the shapes of the model with other settings, None if it cannot be made of them."""
        left_out = dict.fromkeys(("build", "compile", "reset_parameters", "model_to_device"), _nothing)
        model_class = type(self.model_class.__name__, (self.model_class,), left_out)
        settings, feature_map = {**self.settings, **changes, "gpu": -1}, _copy_of(self.feature_map)
        # Read with the data; models of FuxiCTR add up widths by it.
        feature_map.default_emb_dim = settings.get("embedding_dim", feature_map.default_emb_dim)
        try:
            with torch.device("meta"):
                model = model_class(feature_map, **settings)
        except (Exception, SystemExit):  # refused by the model, or it wants tensors that have values
            return None
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

    def settings_of_shapes(self) -> dict[str, tuple[Any, Any]]:
        """Return the type and the value of every setting that may decide a shape."""
        defaults: dict[str, Any] = {}
        for cls in reversed(self.model_class.__mro__):
            if "__init__" in vars(cls) and issubclass(cls, torch.nn.Module):
                defaults.update({k: p.default for k, p in inspect.signature(vars(cls)["__init__"]).parameters.items()})
        schema = model_schema(self.model_class)
        return {k: (schema[k], self.settings.get(k, defaults.get(k))) for k in schema if k not in _SHAPELESS}


def likely_causes(own: Shapes, found: Shapes, blueprint: Blueprint | None = None) -> list[str]:
    """Return what probably differs between the configuration of a model and that of weights.

    Parameters
    ----------
    own, found : mapping of str to tuple of int
        Shapes of the model's parameters and of those in a file.
    blueprint : Blueprint, optional
        What the model was made of; without it only what concerns features is told.

    Returns
    -------
    list of str
        Settings, each as it is named in the YAML, with what tells it.
    """
    others, data, width = _feature_causes(own, found)
    if others or blueprint is None or blueprint.shapes({}) != dict(own):
        return others + data + width
    settings, explained = _search(own, found, blueprint)
    if any(_distance(_without_data(explained), _without_data(found))):
        return data + width
    return _feature_causes(explained, found)[1] + settings


def _feature_causes(own: Shapes, found: Shapes) -> tuple[list[str], list[str], list[str]]:
    """Return whether features differ, the sizes of data that do, and the width of all embeddings or of some."""
    others = []
    for where, there, other in (("here", own, found), ("in the file", found, own)):
        only = [feature for feature in _features(there) if feature not in _features(other)]
        if only:
            others.append(f"use_features (only {where}: {', '.join(only)})")
    tables = {m[1]: (own[n], found[n]) for n in own if n in found and (m := _TABLE.search(n))}
    tables = {name: shapes for name, shapes in tables.items() if all(len(shape) == 2 for shape in shapes)}
    data = [
        f"vocab_size of feature '{name}' ({ours[0]} here, {theirs[0]} in the file)"
        for name, (ours, theirs) in tables.items()
        if ours[0] != theirs[0]
    ]
    for name in own:
        encoder = _ENCODER.search(name)
        ours, theirs = own[name], found.get(name, own[name])
        if encoder and len(ours) == len(theirs) == 2 and ours[1] != theirs[1]:
            data.append(f"width of the vectors '{encoder[1]}' ({ours[1]} here, {theirs[1]} in the file)")
    wider = {name: (ours[1], theirs[1]) for name, (ours, theirs) in tables.items() if ours[1] != theirs[1]}
    if len(wider) == len(tables) and len(set(wider.values())) == 1:
        return others, data, [_here_and_there("embedding_dim", *next(iter(wider.values())))]
    return others, data, [_here_and_there(f"embedding_dim of feature '{n}'", *widths) for n, widths in wider.items()]


def _features(shapes: Shapes) -> list[str]:
    return list(dict.fromkeys(m[1] for name in shapes if (m := _TABLE.search(name) or _ENCODER.search(name))))


def _here_and_there(key: str, ours: Any, theirs: Any) -> str:
    return f"{key} ({ours} here, {theirs} in the file)"


def _search(own: Shapes, found: Shapes, blueprint: Blueprint) -> tuple[list[str], Shapes]:
    """Return the settings that bring the model nearest to the shapes found, and the shapes that it has then."""
    tried = blueprint.settings_of_shapes()
    changes: dict[str, Any] = {}
    causes: dict[str, str] = {}  # by setting: one that is changed again is named once
    shapes = own
    while len(causes) < _MOST_CAUSES and any(distance := _distance(shapes, found)):
        start, best = distance, list[tuple[str, Any, Shapes]]()
        for key, (annotation, value) in tried.items():
            for other in _candidates(key, annotation, changes.get(key, value), shapes, found, blueprint, changes):
                made = blueprint.shapes({**changes, key: other})
                reached = start if made is None else _distance(made, found)
                if made is None or reached > distance or reached == start:
                    continue
                if reached < distance:
                    distance, best = reached, []
                if key not in [k for k, _, _ in best]:
                    best.append((key, other, made))
        if not best:
            break
        key, other, made = best[0]
        same = [b for b in best if b[2] == made]
        causes[key] = " or ".join(_cause(k, tried[k][1], v, shapes, made, own, found) for k, v, _ in same)
        changes[key], shapes = other, made
        if other == tried[key][1]:
            del causes[key]
    return list(causes.values()), shapes


def _cause(key: str, value: Any, other: Any, before: Shapes, after: Shapes, own: Shapes, found: Shapes) -> str:
    """Name a setting and the tensor that tells it."""
    changed = [n for n in {**after, **before} if before.get(n) != after.get(n)]
    changed.sort(key=lambda name: name in before and name in after)
    name = next((n for n in changed if after.get(n) == found.get(n) != own.get(n)), changed[0])
    if name in own and name in found:
        tells = f"{name} is {_size(own[name])} here, {_size(found[name])} in the file"
    else:
        tells = f"{name} is only {'here' if name in own else 'in the file'}"
    if isinstance(other, float) or other in _ACTIVATIONS:
        return f"{key} ({value} here; {tells})"
    return f"{key} ({value} here, {other} in the file; {tells})"


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _distance(shapes: Shapes, found: Shapes) -> tuple[int, int]:
    """Count the tensors that only one of them has, then the sizes that differ.

    In this order, because a layer more or less changes widths as well, which other settings might explain wrongly.
    """
    sizes = 0
    for name in shapes.keys() & found.keys():
        ours, theirs = shapes[name], found[name]
        sizes += sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    return len(shapes.keys() ^ found.keys()), sizes


def _without_data(shapes: Shapes) -> Shapes:
    """Leave out the sizes that come from data: rows of tables, widths of stored vectors."""
    kept = {name: shape[1:] if _TABLE.search(name) else shape for name, shape in shapes.items()}
    return {name: shape[:1] if _ENCODER.search(name) else shape for name, shape in kept.items()}


def _candidates(
    key: str,
    annotation: Any,
    value: Any,
    shapes: Shapes,
    found: Shapes,
    blueprint: Blueprint,
    changes: Mapping[str, Any],
) -> Iterator[Any]:
    """Give the values of a setting that the shapes of a file suggest."""
    kinds = typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    options = [option for kind in kinds if typing.get_origin(kind) is Literal for option in typing.get_args(kind)]
    if options:
        yield from (option for option in [*options, *([None] if types.NoneType in kinds else [])] if option != value)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int) or int in kinds:
        yield from _whole_numbers(key, value, shapes, found, blueprint, changes)
    elif isinstance(value, list | tuple):
        yield from _widths(found)
    elif isinstance(value, float) and "dropout" in key:
        yield _RATES[value == 0]
    elif "activation" in key:
        yield from (name for name in _ACTIVATIONS if name != value)


_UNIONS = (typing.Union, types.UnionType)


def _whole_numbers(
    key: str, value: int | None, shapes: Shapes, found: Shapes, blueprint: Blueprint, changes: Mapping[str, Any]
) -> Iterator[int]:
    """Give the whole numbers for which a size would be what it is in the file, and counts of layers."""
    # Most sizes are linear in a setting, so that two points tell all of them; some values are refused, as of heads.
    start = 0 if value is None else value
    points = [] if value is None else [(value, shapes)]
    for number in range(start + 1, start + 65):
        if len(points) == 2:
            break
        made = blueprint.shapes({**changes, key: number})
        if made is not None:
            points.append((number, made))
    numbers: set[int] = set()
    if len(points) == 2:
        (first, there), (second, then) = points
        for name in there.keys() & then.keys() & found.keys():
            for a, b, wanted in zip(there[name], then[name], found[name], strict=False):
                if a != b and (wanted - a) * (second - first) % (b - a) == 0:
                    numbers.add(first + (wanted - a) * (second - first) // (b - a))
        if there.keys() != then.keys():
            numbers |= {int(part) + 1 for name in found for part in _INDEX.findall(name)}
        else:  # a rounded quotient, as of a reduction, is not linear
            numbers |= {1, 2, 3, 4}
    yield from sorted(number for number in numbers if number >= 0 and number != value)


def _widths(found: Shapes) -> list[list[int]]:
    """Return what lists of widths the file's layers, one behind the other, may come from."""
    rows: dict[str, list[int]] = defaultdict(list)
    order = sorted(found, key=lambda name: [part.zfill(2) for part in name.split(".")])
    for name in order:
        if len(found[name]) == 2 and not _TABLE.search(name) and not _ENCODER.search(name):
            rows[re.split(r"\.\d+\.", name)[0]].append(found[name][0])
    return [widths for all_rows in rows.values() for widths in (all_rows[:-1], all_rows) if widths]


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _copy_of(feature_map: FeatureMap) -> FeatureMap:
    copied = copy.copy(feature_map)
    copied.features = copy.deepcopy(feature_map.features)
    return copied
