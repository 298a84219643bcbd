"""Check values that people typed: names, types, and texts that FuxiCTR would evaluate."""

from __future__ import annotations

import ast
import difflib
import hashlib
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from fuxictr_mm.errors import ConfigError, MissingFileError
from fuxictr_mm.files import load_yaml


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


Regularizer = float | str | None


BatchView = Literal["jagged", "challenge", "flat"]


#: Keys of an experiment that are not parameters of its model, with their types.
EXPERIMENT_KEYS: dict[str, Any] = {
    "description": str,
    "model": str,
    "dataset_id": str,
    "model_root": str,
    "batch_size": int,
    "epochs": int,
    "shuffle": bool,
    "seed": int,
    "max_len": int,
    "resident": bool | Literal["auto"],
    "buffer_rows": int,
    "batch_view": BatchView | None,
    "group_id": str | None,
    "use_features": list[str] | None,
    "feature_specs": list[dict] | None,
    # Those that BaseModel of FuxiCTR takes as they are; a model of another library may read any of them.
    "task": Literal["binary_classification", "regression"],
    "loss": str,
    "metrics": list[str],
    "optimizer": str,
    "learning_rate": float,
    "embedding_dim": int,
    "embedding_regularizer": Regularizer,
    "net_regularizer": Regularizer,
    "monitor": str | dict[str, float],
    "monitor_mode": Literal["max", "min"],
    "early_stop_patience": int,
    "eval_steps": int | None,
    "save_best_only": bool,
    "reduce_lr_on_plateau": bool,
    "max_gradient_norm": float,
    "accumulation_steps": int,
    "verbose": int,
    "gpu": int,
    "precision": Literal["fp32", "tf32", "bf16"],
    "keep_memory": bool,
    "tensorboard": bool,
    "record": bool,
    # Accepted because FuxiCTR's files carry them; they have no effect here.
    "num_workers": int,
    "pickle_feature_encoder": bool,
    "debug_mode": bool,
    "feature_config": Any,
}


#: Keys of a dataset.
DATASET_KEYS: dict[str, Any] = {
    "description": str,
    "data_root": str,
    "data_format": Literal["parquet"],
    "train_data": str | None,
    "valid_data": str | None,
    "test_data": str | None,
    "item_info": str | list[str],
    "rebuild_dataset": bool,
    "feature_cols": list[dict],
    "label_col": dict,
    "resident": bool | Literal["auto"],
    "buffer_rows": int,
    "min_categr_count": int,
}


#: Keys of one entry of ``feature_cols``.
FEATURE_KEYS: dict[str, Any] = {
    "name": str | list[str],
    "active": bool,
    "dtype": Literal["int", "float", "str"],
    "type": Literal["meta", "categorical", "sequence", "numeric", "embedding"],
    "source": str,
    "vocab_size": int,
    "max_len": int,
    "embedding_dim": int,
    "pretrain_dim": int,
    "freeze_emb": bool,
    "feature_encoder": str | list[str] | None,
    "share_embedding": str,
    "padding_idx": int,
    "emb_output_dim": int,
    # Instructions to FuxiCTR's preprocessing, which has happened before the files that are read here.
    "fill_na": str | int | float,
    "remap": bool,
    "splitter": str,
    "padding": Literal["pre", "post"],
    "min_categr_count": int,
}


LABEL_KEYS: dict[str, Any] = {"name": str, "dtype": Literal["int", "float"]}


DEFAULTS: dict[str, Any] = {
    "model_root": "./checkpoints/",
    "task": "binary_classification",
    "loss": "binary_crossentropy",
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "metrics": ["AUC", "logloss"],
    "monitor": "AUC",
    "monitor_mode": "max",
    "batch_size": 2048,
    "epochs": 10,
    "shuffle": True,
    "seed": 2025,
    "max_len": 100,
    "resident": "auto",
    "buffer_rows": 1_000_000,
    "verbose": 1,
    "group_id": None,
    "use_features": None,
    "feature_specs": None,
}


PATH_KEYS = ("train_data", "valid_data", "test_data", "item_info")


VOLATILE_KEYS = (
    "gpu",
    "keep_memory",
    "tensorboard",
    "record",
    "verbose",
    "num_workers",
    "debug_mode",
    "description",
    "pickle_feature_encoder",
)


_INITIALIZERS = (r"nn\.init\.\w+_", r"torch\.nn\.init\.\w+_", r"partial")


_ENCODERS = (r"layers\.\w+", r"nn\.\w+")


def _config_files(config_dir: Path, stem: str) -> list[Path]:
    single = config_dir / f"{stem}.yaml"
    if single.is_file():
        return [single]
    files = sorted((config_dir / stem).glob("*.yaml"))
    if not files:
        raise MissingFileError(
            f"{config_dir}: holds neither {stem}.yaml nor a folder {stem}/ with .yaml files; "
            "give the folder of your configuration with --config"
        )
    return files


def list_experiments(config_dir: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return every experiment id of a folder with its own settings (``Base`` left out)."""
    return _list_entries(config_dir, "model_config")


def list_datasets(config_dir: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Return every dataset id of a folder with its settings."""
    return _list_entries(config_dir, "dataset_config")


def _list_entries(config_dir: str | os.PathLike[str], stem: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in _config_files(Path(config_dir), stem):
        content = load_yaml(path)
        found.update({name: _entry(path, content, name) for name in content if _is_id(name)})
    return found


def _is_id(name: Any) -> bool:
    """Whether a name is no ``Base``, nor starts with a dot or underscore to be merged by others (``<<: *name``)."""
    return name != "Base" and not str(name).startswith((".", "_"))


def _entry(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    entry = content[name]
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: '{name}' is {entry!r}, expected a mapping of settings")
    return entry


def _find_entry(files: Sequence[Path], name: str, kind: str) -> tuple[Path, dict[str, Any]]:
    contents = {path: load_yaml(path) for path in files}
    holding = [path for path, content in contents.items() if name in content]
    if len(holding) > 1:
        raise ConfigError(f"{' and '.join(map(str, holding))}: both hold the {kind} '{name}'; keep one of them")
    if holding:
        return holding[0], _entry(holding[0], contents[holding[0]], name)
    known = [str(k) for content in contents.values() for k in content if _is_id(k)]
    where = ", ".join(map(str, files))
    listing = ", ".join(sorted(known)) or "none"
    raise ConfigError(f"{where}: no {kind} '{name}'{nearest(name, known)} (there are: {listing})")


def load_model_config(config_dir: str | os.PathLike[str], expid: str) -> dict[str, Any]:
    """Return the settings of one experiment, ``Base`` included, unchecked."""
    files = _config_files(Path(config_dir), "model_config")
    base: dict[str, Any] = {}
    for path in files:
        content = load_yaml(path)
        if "Base" in content:
            base.update(_entry(path, content, "Base"))
    path, entry = _find_entry(files, expid, "experiment id")
    params = {**base, **entry}
    for key in ("model", "dataset_id"):
        if not isinstance(params.get(key), str):
            raise ConfigError(f"{path}: {expid}: {key} is {params.get(key)!r}, expected a name such as '{key}: X'")
    return params


def load_dataset_config(config_dir: str | os.PathLike[str], dataset_id: str) -> dict[str, Any]:
    """Return the settings of one dataset, unchecked."""
    return _find_entry(_config_files(Path(config_dir), "dataset_config"), dataset_id, "dataset id")[1]


def load_config(
    config_dir: str | os.PathLike[str], expid: str, *, data_root: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Return the parameters of an experiment: defaults, ``Base``, experiment, dataset; checked but for the model's own.

    Parameters
    ----------
    config_dir : path
        Folder with ``model_config`` and ``dataset_config``.
    expid : str
        Experiment id.
    data_root : path, optional
        Takes the place of the dataset's ``data_root`` in its file names.

    Returns
    -------
    dict
        File names are absolute or relative to the working directory; those relative ones that are not there are looked
        for from ``config_dir``.

    Raises
    ------
    ConfigError, MissingFileError
        All that is wrong with the keys, in one line.
    """
    folder = Path(config_dir)
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; --config takes the folder that holds model_config.yaml")
    model = load_model_config(folder, expid)
    dataset = load_dataset_config(folder, model["dataset_id"])
    problems = check_types(dataset, DATASET_KEYS, f"dataset {model['dataset_id']}")
    problems += [p for column in _as_list(dataset.get("feature_cols")) for p in _feature_problems(column)]
    label = dataset.get("label_col")
    if isinstance(label, list):
        problems.append(
            "label_col: a list; this library trains on one label, give one mapping {name: label, dtype: float}"
        )
    elif isinstance(label, dict):
        problems += check_types(label, LABEL_KEYS, "label_col")
    if dataset.get("rebuild_dataset"):
        problems.append(
            "rebuild_dataset: True; ids must be integers already (FuxiCTR's FeatureProcessor can make them), "
            "set rebuild_dataset: False"
        )
    for key in ("feature_cols", "label_col", "item_info"):
        if not dataset.get(key):
            problems.append(f"dataset {model['dataset_id']}: {key} is missing")
    for key in ("initializer", "embedding_initializer"):
        if key in model:
            problems += _call_problems(model[key], key, _INITIALIZERS)
    for column in _as_list(model.get("feature_specs")):
        problems += _feature_problems(column, partial=True)
    if problems:
        raise ConfigError(f"{folder}: {expid}: " + "; ".join(problems))
    if isinstance(model.get("group_id"), list):
        model["group_id"] = _only_group(model["group_id"], expid)
    dataset.pop("description", None)
    params = {**DEFAULTS, **model, **dataset}
    params["model_id"] = expid
    for key in PATH_KEYS:
        if params.get(key):
            params[key] = _resolve(params[key], folder, params.get("data_root"), data_root)
    if data_root is not None:
        params["data_root"] = str(data_root)
    return params


def _only_group(columns: list[Any], expid: str) -> Any:
    """Return the column of a list of one; FuxiCTR's files may name several."""
    if len(columns) == 1:
        return columns[0]
    raise ConfigError(
        f"{expid}: group_id is {columns}, but groups are taken from one column; name one (group_id: user_id), "
        "or write what they are together as a column of its own"
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _feature_problems(column: Any, partial: bool = False) -> list[str]:
    if not isinstance(column, dict):
        return [f"feature_cols: the entry {column!r} is no mapping such as {{name: likes_level, type: categorical}}"]
    where = f"feature '{column.get('name', '?')}'"
    problems = check_types(column, FEATURE_KEYS, where)
    required = ("name",) if partial else ("name", "dtype", "type")
    problems += [f"{where}: {key} is missing" for key in required if key not in column]
    for encoder in _as_list(column.get("feature_encoder")) or [column.get("feature_encoder")]:
        if isinstance(encoder, str) and encoder.lower() not in ("null", "none"):
            problems += _call_problems(encoder, f"{where}: feature_encoder", _ENCODERS)
    return problems


def _call_problems(text: Any, where: str, allowed: Sequence[str]) -> list[str]:
    try:
        check_call(str(text), where, allowed)
    except ConfigError as error:
        return [str(error)]
    return []


def _resolve(paths: str | list[str], folder: Path, root: str | None, new_root: str | os.PathLike[str] | None) -> Any:
    if isinstance(paths, list):
        return [_resolve(p, folder, root, new_root) for p in paths]
    text = paths
    if new_root is not None:
        inside = root is not None and os.path.normpath(text).startswith(os.path.normpath(root) + os.sep)
        relative = os.path.relpath(os.path.normpath(text), os.path.normpath(root)) if inside and root else text
        text = os.path.join(new_root, relative)
    text = os.path.expanduser(os.path.expandvars(text))
    unset = re.search(r"\$\{?(\w+)", text)
    if unset:
        raise ConfigError(
            f"{folder}: '{paths}' names the environment variable {unset[1]}, which is not set; "
            "set it to the folder of the data, or give --data_root FOLDER"
        )
    if not os.path.isabs(text) and not _present(Path(text)) and _present(folder / text):
        return str(folder / text)
    return text


def _present(path: Path) -> bool:
    return path.exists() or Path(f"{path}.parquet").exists()


def model_schema(model_class: type) -> dict[str, Any]:
    """Return the parameters that a model's constructors name, with their types: the signature is the schema."""
    schema: dict[str, Any] = {}
    for cls in reversed(model_class.__mro__):
        init = vars(cls).get("__init__")
        if init is None or cls.__module__.startswith(("torch.", "builtins")):
            continue
        try:
            hints = typing.get_type_hints(init)
        except (NameError, TypeError):
            hints = {}
        for name, parameter in inspect.signature(init).parameters.items():
            if name not in ("self", "feature_map") and parameter.kind not in (
                inspect.Parameter.VAR_KEYWORD,
                inspect.Parameter.VAR_POSITIONAL,
            ):
                schema[name] = hints.get(name, Any)
    return schema


def check_model_params(model_class: type, params: Mapping[str, Any]) -> list[str]:
    """Check an experiment's parameters against the model's signature.

    Returns
    -------
    list of str
        What could not be judged, to warn of: a model written for FuxiCTR may read any name out of its ``**kwargs``.

    Raises
    ------
    ConfigError
        A key that neither the library nor the model knows, or a value of a wrong type, all in one line.
    """
    schema = {**DATASET_KEYS, **EXPERIMENT_KEYS, "dataset_id": str, "model_id": str}
    # FuxiCTR's own constructors annotate nothing; that must not undo what is known of a key.
    schema.update({k: v for k, v in model_schema(model_class).items() if v is not Any or k not in schema})
    ours = any(c.__name__ == "MultimodalModel" for c in model_class.__mro__)
    problems: list[str] = []
    doubts: list[str] = []
    for sentence in check_types(params, schema, f"model {model_class.__name__}"):
        (doubts if "unknown key" in sentence and not ours else problems).append(sentence)
    if problems:
        raise ConfigError(f"{params.get('model_id', 'experiment')}: " + "; ".join(problems))
    return doubts


def config_hash(params: Mapping[str, Any], *, with_paths: bool = True) -> str:
    """Return a hash of everything that decides a result (not the device, nor how much is printed).

    Without paths it is the same wherever the files are, and for every seed.
    """
    paths = () if with_paths else (*PATH_KEYS, "data_root", "model_root", "seed")
    kept = {k: v for k, v in params.items() if k not in VOLATILE_KEYS and k not in paths}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()
