"""Checks of values against annotated types, with one sentence per wrong key.

An error names the key, its value, what was expected and, for an unknown key, the nearest known one. Messages of
pydantic are not shown.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union

import annotated_types as limits
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fuxictr_mm.errors import ConfigError, nearest

SettingsType = TypeVar("SettingsType", bound="Settings")


class Settings(BaseModel):
    """Base of all groups of settings: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())
    example: ClassVar[str] = "{key: value}"

    @classmethod
    def read(cls: type[SettingsType], values: Mapping[str, Any], where: str) -> SettingsType:
        """Check settings.

        Raises
        ------
        ConfigError
            Settings are invalid; one line lists all problems and begins with ``where``.
        """
        settings, problems = validate(cls, values)
        if settings is None:
            raise SettingsError(where, problems)
        return settings


class SettingsError(ConfigError):
    """Settings of ``where``, a file or an experiment, are wrong: ``problems`` has a sentence for each key."""

    def __init__(self, where: str, problems: Mapping[str, str]) -> None:
        super().__init__(f"{where}: " + "; ".join(problems.values()))
        self.where, self.problems = where, dict(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process makes the error of; by default that is the message alone."""
        return type(self), (self.where, self.problems)


def validate(
    cls: type[SettingsType], values: Mapping[str, Any], where: str = ""
) -> tuple[SettingsType | None, dict[str, str]]:
    """Return checked settings, or None and a sentence for each key that is wrong."""
    try:
        return cls.model_validate(values), {}
    except ValidationError as error:
        problems: dict[str, str] = {}
        for found in error.errors(include_url=False):
            key, sentence = _describe_problem(cls, values, found["loc"], found, where)
            problems.setdefault(key, sentence)
        return None, problems


def _describe_problem(
    cls: type[Settings], values: Mapping[str, Any], loc: tuple[int | str, ...], found: Mapping[str, Any], where: str
) -> tuple[str, str]:
    """Return the key that pydantic's error is about and a sentence; ``loc`` leads into nested settings."""
    key = str(loc[0])
    if key not in cls.model_fields:
        return key, f"{where}{unknown_key(key, cls.model_fields)}"
    if found["type"] == "missing" and len(loc) == 1:
        return key, f"{where}{key} is missing"
    value: Any = values.get(key)
    annotation = cls.model_fields[key].rebuild_annotation()
    nested = _nested_settings(annotation)
    if nested is not None and len(loc) > 1:
        if isinstance(loc[1], int):
            entry = values[key][loc[1]]
            if len(loc) == 2:
                return key, f"{where}{key}: the entry {entry!r} is not {describe_type(nested)}"
            name = f"feature '{entry['name']}'" if "name" in entry else f"{key}: {entry}"
            loc = loc[2:]
        else:
            entry, name, loc = values[key], key, loc[1:]
        inner, sentence = _describe_problem(nested, entry, loc, found, f"{name}: ")
        return f"{name}.{inner}", sentence
    if found["type"] == "value_error":
        return key, f"{where}{found['ctx']['error']}"
    return key, f"{where}{mismatch(key, value, annotation)}"


def _nested_settings(annotation: Any) -> type[Settings] | None:
    if inspect.isclass(annotation) and issubclass(annotation, Settings):
        return annotation
    return next(filter(None, map(_nested_settings, typing.get_args(annotation))), None)


#: Keys of older versions of FuxiCTR, and what they are called since.
RENAMED = {"na_value": "fill_na"}


def unknown_key(key: object, known: Iterable[str]) -> str:
    """Return a sentence about an unknown key, with the nearest known one."""
    known = list(known)
    if RENAMED.get(str(key)) in known:
        return f"unknown key '{key}'; it is called {RENAMED[str(key)]} in FuxiCTR 2"
    return f"unknown key '{key}'{nearest(key, known)}"


def mismatch(key: str, value: Any, annotation: Any) -> str:
    """Return a sentence with what was found and what was expected."""
    return f"{key} is {value!r}, expected {describe_type(annotation)}{_hint(value, annotation)}"


def _hint(value: Any, annotation: Any) -> str:
    """Explain a value that YAML reads differently from what was probably meant."""
    if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "y", "n") and matches(True, annotation):
        meant = value.lower() in ("yes", "on", "y")
        return f" ({value} is a string in YAML 1.2: write {meant})"
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        number = int(number) if number.is_integer() else number
        return (
            f" (a number in quotes is a string: write {number} without quotes)" if matches(number, annotation) else ""
        )
    if not isinstance(value, bool | list | dict | None) and matches(str(value), annotation):
        return f" (write it in quotes: '{value}')"
    return ""


def matches(value: Any, annotation: Any) -> bool:
    """Whether a value of a YAML file fits an annotation: an integer also fits a float, a list any sequence."""
    adapter = _adapter(annotation)
    try:
        adapter.validate_python(value)
        return True
    except ValidationError:
        pass
    try:  # JSON's rules: a list fits a tuple or a set
        adapter.validate_json(json.dumps(value))
        return True
    except (ValidationError, TypeError, ValueError):
        return False


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(annotation)
    except TypeError:  # an annotation that has no hash, or that pydantic refuses, again
        return _make_adapter(annotation)


def _make_adapter(annotation: Any) -> TypeAdapter[Any]:
    if inspect.isclass(annotation) and issubclass(annotation, Settings):  # has its own
        return TypeAdapter(annotation)
    return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


#: Most annotations are those of every model, and each load of an experiment checks about 200 values.
_cached_adapter = lru_cache(maxsize=1024)(_make_adapter)


def describe_type(annotation: Any, plural: bool = False) -> str:
    """Name an annotated type and its range in plain words.

    Examples
    --------
    >>> describe_type(float | None)
    'a number or null'
    >>> from pydantic import PositiveInt
    >>> describe_type(list[PositiveInt])
    'a list of integers >= 1'
    >>> describe_type(dict[str, float])
    'a mapping of names to numbers'
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:  # a class since Python 3.11
        return "anything"
    if origin is Annotated:
        return describe_type(arguments[0], plural) + _describe_range(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        if float in arguments:  # an integer is a number
            arguments = tuple(a for a in arguments if a is not int)
        return " or ".join(describe_type(a, plural) for a in arguments)
    if origin is Literal:
        listing = ", ".join(repr(a) for a in arguments)
        return listing if len(arguments) == 1 else f"one of {listing}"
    kind = origin or annotation
    if not inspect.isclass(kind):
        return "a value"
    if issubclass(kind, Settings):
        return f"mappings such as {kind.example}" if plural else f"a mapping such as {kind.example}"
    known = {bool: "True or False", int: "an integer", float: "a number", str: "a string", types.NoneType: "null"}
    if kind in known:
        return known[kind].split(" ", 1)[1] + "s" if plural and kind in (int, float, str) else known[kind]
    name, inner = kind.__name__, ""
    if issubclass(kind, Mapping):
        name, inner = "mapping", f" of names to {describe_type(arguments[1], True)}" if arguments else ""
    elif issubclass(kind, Collection):
        name, inner = "list", f" of {describe_type(arguments[0], True)}" if arguments else ""
    return f"{name}s{inner}" if plural else f"a {name}{inner}"


def _describe_range(annotation: Any, metadata: Iterable[Any]) -> str:
    parts = [p for given in metadata for p in (given.metadata if isinstance(given, FieldInfo) else [given])]
    words, suffix = [], ""
    for part in parts:
        if isinstance(part, limits.Gt):
            words.append(f">= {typing.cast(int, part.gt) + 1}" if annotation is int else f"> {part.gt}")
        elif isinstance(part, limits.Ge):
            words.append(f">= {part.ge}")
        elif isinstance(part, limits.Lt):
            words.append("finite" if part.lt == math.inf else f"< {part.lt}")
        elif isinstance(part, limits.Le):
            words.append(f"<= {part.le}")
        elif isinstance(part, limits.MinLen):
            suffix = ", not empty"
    return (" " + " and ".join(words) if words else "") + suffix


def model_schema(model_class: type) -> dict[str, Any]:
    """Return the settings that the constructors of a model name, with their annotated types.

    Of a MultimodalModel, those of FuxiCTR's base are left out: ``fuxictr_mm.config.ModelSettings`` declares them.

    Raises
    ------
    ConfigError
        An annotation of a MultimodalModel cannot be checked.
    """
    return {
        name: _resolve_annotation(model_class, init, name, parameter.annotation)
        for init, name, parameter in _parameters(model_class)
    }


def model_defaults(model_class: type) -> dict[str, Any]:
    """Return the defaults of the settings of ``model_schema`` that have one."""
    return {name: p.default for _, name, p in _parameters(model_class) if p.default is not p.empty}


def _parameters(model_class: type) -> Iterator[tuple[Any, str, inspect.Parameter]]:
    """Yield the constructor, name and parameter of each setting, those of derived classes last."""
    for cls in reversed(model_class.__mro__):
        init = vars(cls).get("__init__")
        if init is None or cls.__module__.startswith(("torch.", "builtins")):
            continue
        if is_multimodal(model_class) and not is_multimodal(cls):
            continue
        for name, parameter in inspect.signature(init).parameters.items():
            if name in ("self", "feature_map") or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            yield init, name, parameter


def _resolve_annotation(model_class: type, init: Any, name: str, annotation: Any) -> Any:
    """Return a checkable annotation; Any for one of a FuxiCTR model that cannot be checked."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={name: annotation})
    try:
        resolved = typing.get_type_hints(holder, init.__globals__, include_extras=True)[name]
        _adapter(resolved)
        return resolved
    except Exception as error:  # NameError, SyntaxError, or whatever pydantic raises on what is not a type
        if not is_multimodal(model_class):
            return Any
        raise ConfigError(uncheckable(model_class, name, annotation, error)) from error


def uncheckable(model_class: type, name: str, annotation: Any, error: Exception) -> str:
    """Return the error of an annotation that values cannot be checked against."""
    reason = " ".join(str(error).split()[:20])
    return (
        f"model {model_class.__name__}: the annotation {annotation!r} of {name} cannot be checked "
        f"({type(error).__name__}: {reason}); use built-in types, typing.Literal or those of pydantic"
    )


def is_multimodal(model_class: type) -> bool:
    """Whether a class is a MultimodalModel, without importing it."""
    return any(cls.__name__ == "MultimodalModel" for cls in model_class.__mro__)


def check_call(text: str, where: str, allowed: Sequence[str]) -> None:
    """Check that a call in a YAML text names a known function and has literal arguments.

    FuxiCTR evaluates such texts as Python; nothing but ``layers.Name(1, key="x")`` may reach it, or the bare name of an
    initializer. ``allowed`` are patterns of the names; ``where`` is the key, for the message.

    Raises
    ------
    ConfigError
        For anything else.
    """
    expected = "expected a call of a layer with literal arguments, such as layers.MaskedAveragePooling()"
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise ConfigError(f"{where}: '{text}' is not a Python expression; {expected}") from None

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
        from torch import nn

        from fuxictr_mm.fuxictr_imports import fuxictr_layers

        known = vars(fuxictr_layers if owner == "layers" else nn)
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
