"""Weights on disk: written beside and renamed, read without running anything.

A state dict by ``torch.save``, a ``.safetensors`` file, or a folder as ``fuxictr-mm export-hub`` writes it.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fuxictr_mm.checking import nearest
from fuxictr_mm.errors import MissingFileError, UserError
from fuxictr_mm.files import write_beside
from fuxictr_mm.hub_folder import FEATURES, WEIGHTS, check_features, weights_file
from fuxictr_mm.training.likely_keys import likely_causes


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
