"""Check values that people typed: names, types, and texts that FuxiCTR would evaluate."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union

from fuxictr_mm.errors import ConfigError


def nearest(name: object, known: Iterable[object]) -> str:
    """Return ``"; did you mean 'x'?"`` for a near miss, else an empty string."""
    matches = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def check_at_least(model_id: str, least: float, **values: float | None) -> None:
    """Refuse settings below a number; one that is None is left to its default.

    Raises
    ------
    ConfigError
        For the first one.
    """
    for key, value in values.items():
        if value is not None and not value >= least:
            raise ConfigError(f"{model_id}: {key} is {value}, expected {least} or more")


def check_heads(model_id: str, num_heads: int, width: int, of: str) -> None:
    """Refuse a number of heads that does not divide the width of what they attend to.

    Raises
    ------
    ConfigError
        With the next smaller number that does.
    """
    if num_heads < 1 or width % num_heads:
        fits = max(heads for heads in range(1, max(num_heads, 1) + 1) if width % heads == 0)
        raise ConfigError(
            f"{model_id}: num_heads is {num_heads}, expected a divisor of {of} {width}; set num_heads: {fits}"
        )


def check_types(params: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> list[str]:
    """Return a sentence for every unknown key and every value of a wrong type."""
    problems = []
    for key, value in params.items():
        if key not in schema:
            problems.append(f"{where}: unknown key '{key}'{nearest(key, schema)}")
        elif not matches(value, schema[key]):
            problems.append(f"{where}: {key} is {value!r}, expected {describe(schema[key])}{_number_hint(value)}")
    return problems


def _number_hint(value: Any) -> str:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        return " (a number in quotes is text: leave the quotes out)"
    return ""


def matches(value: Any, annotation: Any) -> bool:
    """Whether a YAML value is of an annotated type; a whole number passes for a float, a list for a sequence."""
    if annotation is Any or annotation is inspect.Parameter.empty:
        return True
    if annotation is None or annotation is type(None):
        return value is None
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is not None and not arguments:  # typing.List, typing.Dict
        return isinstance(value, origin)
    if origin in (Union, types.UnionType):
        return any(matches(value, a) for a in arguments)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(matches(v, arguments[1]) for v in value.values())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(matches(v, arguments[0]) for v in value)
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation in (list, tuple, Sequence):
        return isinstance(value, list | tuple)
    return isinstance(value, annotation) if isinstance(annotation, type) else True


def describe(annotation: Any) -> str:
    """Name an annotated type in plain words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is not None and not arguments:
        return describe(origin)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin is not None and issubclass(origin, Mapping):
        return f"a mapping of names to {describe(arguments[1])}s"
    if origin is not None and issubclass(origin, Sequence):
        return f"a list of {describe(arguments[0])}s"
    names = {int: "whole number", float: "number", str: "text", bool: "True or False", dict: "mapping", list: "list"}
    return (
        "null" if annotation in (None, type(None)) else names.get(annotation, getattr(annotation, "__name__", "value"))
    )


def check_call(text: str, where: str, allowed: Sequence[str]) -> None:
    """Refuse a call in a YAML text unless it names a known function and has literal arguments.

    FuxiCTR evaluates such texts as Python; nothing but ``layers.Name(1, key="x")`` may reach it, or the bare name of an
    initializer.

    Parameters
    ----------
    text : str
        What the YAML holds.
    where : str
        Key, for the message.
    allowed : sequence of str
        Patterns of the names that may be called.

    Raises
    ------
    ConfigError
        For anything else.
    """
    expected = "expected a call of a layer with literal arguments, such as layers.MaskedAveragePooling()"
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise ConfigError(f"{where}: '{text}' is no Python expression; {expected}") from None

    def is_known(name: ast.expr) -> bool:
        return any(re.fullmatch(pattern, ast.unparse(name)) for pattern in allowed)

    def is_plain(argument: ast.expr) -> bool:
        if isinstance(argument, ast.Attribute) and is_known(argument):
            return True
        try:
            ast.literal_eval(argument)
        except (ValueError, TypeError):
            return False
        return True

    called = node.func if isinstance(node, ast.Call) else node
    arguments = [*node.args, *[k.value for k in node.keywords]] if isinstance(node, ast.Call) else []
    if not is_known(called) or not all(is_plain(a) for a in arguments):
        raise ConfigError(f"{where}: '{text}' is not allowed; {expected}")
    owner, _, name = ast.unparse(called).rpartition(".")
    if owner in ("layers", "nn"):
        from fuxictr.pytorch import layers
        from torch import nn

        known = vars(layers if owner == "layers" else nn)
        classes = [k for k, v in known.items() if inspect.isclass(v) and issubclass(v, nn.Module)]
        if name not in classes:
            raise ConfigError(f"{where}: there is no layer '{owner}.{name}'{nearest(name, classes)}")
        if not isinstance(node, ast.Call):
            raise ConfigError(f"{where}: '{text}' is the name of a layer, expected a call: {text}()")
        inputs = [
            p
            for p in list(inspect.signature(known[name].forward).parameters.values())[1:]
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if len(inputs) > 1:
            raise ConfigError(f"{where}: '{owner}.{name}' takes {len(inputs)} inputs, expected a layer of one tensor")
