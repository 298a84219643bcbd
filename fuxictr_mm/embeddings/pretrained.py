"""Finding and loading pretrained models, in a folder or on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError, first_line

if TYPE_CHECKING:
    from torch import nn

#: Files of a hub repository that are fetched, and the copies in other formats that are not.
HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
HUB_COPIES = ["onnx/*", "openvino/*", "original/*", "consolidated*"]

#: Seconds in which the hub has to answer.
PATIENCE = 8.0


def require_extra(*modules: str) -> None:
    """Raise ConfigError where a library of the extra ``[encode]`` is not installed."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise ConfigError(f'encoding needs {module}, which is missing: pip install "fuxictr-mm[encode]"') from None


def model_stem(name: str) -> str:
    """Return the last part of a folder or hub id, as a part of a column's name.

    Examples
    --------
    >>> model_stem("sentence-transformers/all-MiniLM-L6-v2")
    'all_MiniLM_L6_v2'
    """
    folder = Path(name).expanduser()
    return re.sub(r"\W", "_", folder.resolve().name if folder.is_dir() else name.rpartition("/")[2])


def find_model(name: str, revision: str | None = None) -> Path:
    """Return the folder of a model; a hub id is downloaded into the cache, or found there."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise MissingFileError(f"{folder}: holds no config.json, expected a folder written by save_pretrained")
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
        folder = _download(name, revision)
    else:
        raise MissingFileError(f"model '{name}': not a folder, and not an id of the Hugging Face hub (OWNER/NAME)")
    pickled = [f for f in sorted(folder.rglob("pytorch_model*.bin")) if not any(f.parent.glob("*.safetensors"))]
    if pickled or not any(folder.rglob("*.safetensors")):
        found = f"only {pickled[0].name}, which is a pickle, which is not loaded" if pickled else "no weights"
        raise DataError(
            f"{pickled[0].parent if pickled else folder}: holds {found}; expected model.safetensors (written by "
            "save_pretrained, or found on the hub under --revision refs/pr/NUMBER of a conversion)"
        )
    return folder


def _download(name: str, revision: str | None) -> Path:
    require_extra("huggingface_hub")
    import huggingface_hub
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    files: dict[str, Any] = {"allow_patterns": HUB_FILES, "ignore_patterns": HUB_COPIES}
    is_silent = not HF_HUB_OFFLINE and not is_reachable(ENDPOINT)
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=is_silent, **files))
    except (OSError, ValueError) as error:
        found = f"{ENDPOINT} does not answer, and it is not in the cache" if is_silent else first_line(error)
        raise MissingFileError(
            f"model '{name}': no such folder here, and as an id of the Hugging Face hub it cannot be downloaded "
            f"({found}); give a local folder with config.json, a tokenizer or processor and "
            "model.safetensors, or fill the cache where there is a network (hf download "
            f"{name}), copy it here, point HF_HOME to it and set HF_HUB_OFFLINE=1"
        ) from None


def is_reachable(url: str) -> bool:
    """Return whether a server answers within ``PATIENCE`` seconds, whatever it answers.

    Without a network, the hub's own requests are repeated for minutes, and a lookup of a name has no time limit.
    """
    import huggingface_hub

    answers: list[bool] = []

    def ask() -> None:
        with suppress(Exception):  # of the HTTP library, of which there are several
            huggingface_hub.get_session().head(url, timeout=PATIENCE)
            answers.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return bool(answers)


def folder_digest(folder: Path) -> str:
    """Return a digest of a model's files: configuration, prompts, tokenizer, processor, weights."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in HUB_FILES for file in folder.rglob(pattern)}):
        digest.update(str(file.relative_to(folder)).encode() + b"\0")
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Disable progress bars and logs of the libraries; errors are raised by this module."""
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    levels = [logger.level for logger in loggers]
    hf_logging.disable_progress_bar()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()


@contextmanager
def loading(part: str, model: str) -> Iterator[None]:
    """Turn any exception of a library while it loads a folder into a DataError of one line."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"model '{model}': {part} cannot be loaded ({first_line(error)})") from error


def refuse_missing(network: nn.Module, model: str, pooler: bool = True) -> bool:
    """Check that a model's file has all parameters; transformers would initialize missing ones at random.

    Returns whether any is missing, of the pooler where that is not needed.
    """
    state = network.state_dict(keep_vars=True)
    missing = [name for name, value in state.items() if not getattr(value, "_is_hf_initialized", False)]
    needed = [name for name in missing if pooler or "pooler" not in name]
    if needed:
        raise DataError(
            f"model '{model}': {len(needed)} parameters are missing in its file, first '{needed[0]}', which would be "
            "random; expected a file that fits its config.json"
        )
    return bool(missing)
