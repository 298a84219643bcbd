"""Guess from two lists of parameter shapes which settings of the configuration differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

#: How FuxiCTR's embedding names its tables, and the maps behind them.
_TABLE = re.compile(r"(?:^|\.)embedding_layers\.(\w+)\.weight$")
_ENCODER = re.compile(r"(?:^|\.)feature_encoders\.(\w+)\.")
#: Words that stand in many keys and tell nothing of the layer that a key is about.
_GENERIC = {"num", "use", "hidden", "units", "layers", "dim", "net", "activations"}


def likely_causes(own: Shapes, found: Shapes, keys: Iterable[str]) -> list[str]:
    """Return what probably differs between the configuration of a model and that of weights.

    Parameters
    ----------
    own, found : mapping of str to tuple of int
        Shapes of the model's parameters and of those in a file.
    keys : iterable of str
        Settings that the model's constructors take.

    Returns
    -------
    list of str
        Settings, each as it is named in the YAML, with what tells it; a guess, never all of them for sure. A width
        that follows from another one (that of a layer's input) is not named.
    """
    keys = list(keys)
    causes, widths_follow = _feature_causes(own, found)
    parts = _parts([*own, *found])
    for part in parts:
        causes += _layer_causes(part, parts, _of_part(own, part), _of_part(found, part), keys, widths_follow)
    return list(dict.fromkeys(causes))


def _feature_causes(own: Shapes, found: Shapes) -> tuple[list[str], bool]:
    """Return what differs in the features, and whether the widths of all layers follow from it."""
    causes: list[str] = []
    tables = {m[1]: name for name in [*own, *found] if (m := _TABLE.search(name))}
    for where, there, other in (("here", own, found), ("in the file", found, own)):
        only = [feature for feature in _features(there) if feature not in _features(other)]
        if only:
            causes.append(f"use_features (only {where}: {', '.join(only)})")
    widths_follow = bool(causes)
    for feature, name in tables.items():
        ours, theirs = own.get(name), found.get(name)
        if not ours or not theirs or len(ours) != 2 or len(theirs) != 2:
            continue
        if ours[1] != theirs[1]:
            widths_follow = True
            causes.append(f"embedding_dim ({ours[1]} here, {theirs[1]} in the file)")
        if ours[0] != theirs[0]:
            causes.append(f"vocab_size of feature '{feature}' ({ours[0]} here, {theirs[0]} in the file)")
    for name in own:
        encoder = _ENCODER.search(name)
        ours, theirs = own[name], found.get(name, own[name])
        if encoder and len(ours) == len(theirs) == 2 and ours[1] != theirs[1]:
            causes.append(f"width of the vectors '{encoder[1]}' ({ours[1]} here, {theirs[1]} in the file)")
    return causes, widths_follow


def _features(shapes: Shapes) -> list[str]:
    return list(dict.fromkeys(m[1] for name in shapes if (m := _TABLE.search(name) or _ENCODER.search(name))))


def _layer_causes(
    part: str, parts: list[str], own: Shapes, found: Shapes, keys: list[str], widths_follow: bool
) -> list[str]:
    """Return what differs in one of the parts of the model."""
    if not own or not found:
        named, what = _matching(part, keys), f"'{part}' is only {'here' if own else 'in the file'}"
    elif _has_norm(own) != _has_norm(found):
        named, what = ["batch_norm"], f"in '{part}' only {'here' if _has_norm(own) else 'in the file'}"
    elif list(own) != list(found) and list(own.values()) == list(found.values()):
        # A layer without weights shifts the numbers of those after it.
        named = _closest(part, parts, [k for k in keys if "dropout" in k])
        what = f"the layers of '{part}' are numbered differently"
    elif len(own) != len(found):
        named = _closest(part, parts, [k for k in keys if k.endswith(("_units", "layers"))])
        what = f"{len(own)} tensors in '{part}' here, {len(found)} in the file"
    else:
        wider = [n for n in own if n in found and _is_of_another_width(own[n], found[n])]
        if not wider or widths_follow:
            return []
        # torch's name of the hidden layer of a transformer's feed-forward network.
        kind = "feedforward" if ".linear1." in wider[0] else "_units"
        named = _closest(part, parts, [k for k in keys if k.endswith(kind)])
        named = named or [k for k in keys if k.startswith("num_") and not k.endswith("layers")]
        what = f"{own[wider[0]][0]} here, {found[wider[0]][0]} in the file"
    return [f"{' or '.join(named)} ({what})"] if named else []


def _is_of_another_width(own: tuple[int, ...], found: tuple[int, ...]) -> bool:
    """Whether a layer gives another width; of a square one that follows from its input."""
    square = own[0:1] == own[1:2] and found[0:1] == found[1:2]
    return len(own) == len(found) == 2 and own[0] != found[0] and not square


def _parts(names: Iterable[str]) -> list[str]:
    """Return the modules that the model is made of, but its embedding."""
    return list(dict.fromkeys(n.split(".")[0] for n in names if not (_TABLE.search(n) or _ENCODER.search(n))))


def _of_part(shapes: Shapes, part: str) -> dict[str, tuple[int, ...]]:
    return {n: s for n, s in shapes.items() if n.split(".")[0] == part and not (_TABLE.search(n) or _ENCODER.search(n))}


def _has_norm(shapes: Shapes) -> bool:
    return any(name.endswith("running_mean") for name in shapes)


def _matching(part: str, keys: Iterable[str]) -> list[str]:
    """Return the keys that share a word with a module's name, or the beginning of one."""
    words = [w for w in part.lower().split("_") if w not in _GENERIC]

    def fits(key: str) -> bool:
        told = [w for w in key.lower().split("_") if w not in _GENERIC and len(w) > 2]
        return any(word.startswith(w) or w.startswith(word) for w in told for word in words)

    return [k for k in keys if fits(k)]


def _closest(part: str, parts: Iterable[str], keys: list[str]) -> list[str]:
    """Return the keys that name a part, else those that name no other part."""
    others = {k for other in parts if other != part for k in _matching(other, keys)}
    return _matching(part, keys) or [k for k in keys if k not in others]
