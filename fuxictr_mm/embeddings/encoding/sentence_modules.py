"""What a sentence-transformers folder says about pooling, projection and normalisation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fuxictr_mm.embeddings.encoding.pretrained import first_line
from fuxictr_mm.errors import DataError

#: Keys of a pooling configuration that say the mode by a flag each.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}

#: Activations of projections.
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (nn.Identity, nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid)
}


@dataclass(frozen=True)
class SentenceModules:
    """What follows the transformer.

    Parameters
    ----------
    pooling : str or None
        One of ``POOLINGS``; None where the folder does not say.
    dense : sequence of Module
        Projections after pooling, in their order.
    normalize : bool
        Whether vectors are brought to length 1 at the end.
    max_tokens : int or None
        Longest text in tokens.
    lower_case : bool
        Whether texts are put into lower case first.
    """

    pooling: str | None = None
    dense: nn.Sequential = field(default_factory=nn.Sequential)
    normalize: bool = False
    max_tokens: int | None = None
    lower_case: bool = False


def read_sentence_modules(folder: Path, pooling: str | None = None) -> SentenceModules:
    """Read ``modules.json`` and what it names; a folder without it says nothing.

    Parameters
    ----------
    folder : Path
        Of the model.
    pooling : str, optional
        Taken instead of what the folder says.

    Raises
    ------
    DataError
        A module or a pooling that is not known here: to leave it out would give other vectors than the model's.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return SentenceModules(pooling)
    normalize, dense = False, nn.Sequential()
    for module in _read(file):
        kind = str(module.get("type", "")).rpartition(".")[2]
        path = folder / str(module.get("path", ""))
        if kind == "Pooling":
            pooling = pooling or _pooling(path / "config.json")
        elif kind == "Dense":
            dense.append(_dense(path))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise DataError(
                f"{file}: module '{kind}' is not known here, expected Transformer, Pooling, Dense and Normalize; "
                "use another model, or remove modules.json and give --pooling"
            )
    settings: dict[str, Any] = {}
    if (folder / "sentence_bert_config.json").is_file():
        settings = _read(folder / "sentence_bert_config.json")
    return SentenceModules(
        pooling, dense.eval(), normalize, settings.get("max_seq_length"), bool(settings.get("do_lower_case", False))
    )


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({first_line(error)})") from None


def _pooling(file: Path) -> str:
    settings = _read(file)
    named = settings.get("pooling_mode")
    if named is not None:
        modes = [named] if isinstance(named, str) else list(named)
        modes = [{"lasttoken": "last"}.get(mode, mode) for mode in modes]
    else:
        modes = [_FLAGS.get(k, k) for k, v in settings.items() if k.startswith("pooling_mode_") and v is True]
    if len(modes) != 1 or modes[0] not in _FLAGS.values():
        raise DataError(f"{file}: pooling {modes}, expected one of cls, mean, max and lasttoken; give --pooling")
    return modes[0]


def _dense(path: Path) -> nn.Module:
    from safetensors.torch import load_file

    settings = _read(path / "config.json")
    activation = str(settings.get("activation_function", "Identity")).rpartition(".")[2]
    if activation not in _ACTIVATIONS:
        raise DataError(f"{path / 'config.json'}: activation '{activation}', expected one of {', '.join(_ACTIVATIONS)}")
    linear = nn.Linear(settings["in_features"], settings["out_features"], bias=settings.get("bias", True))
    try:
        weights = load_file(path / "model.safetensors")
        with torch.no_grad():
            linear.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in weights.items()})
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{path}: model.safetensors of this projection cannot be loaded ({first_line(error)})"
        ) from None
    return nn.Sequential(linear, _ACTIVATIONS[activation]())
