"""Models, tokenizers and image processors of Hugging Face, from a folder or the hub, safetensors only."""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError

if TYPE_CHECKING:
    from torch import nn

#: What is read of a model's repository beside its weights.
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*_Dense/*.safetensors"]

#: One of these holds a tokenizer's vocabulary.
VOCABULARIES = ["tokenizer.json", "vocab.txt", "vocab.json", "*.model"]


def require_extra(*modules: str) -> None:
    """Raise where the libraries of the extra ``[encode]`` are not installed.

    Raises
    ------
    ConfigError
        One is missing; the message tells what to install.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            raise ConfigError(f'encoding needs {module}, which is missing: pip install "fuxictr-mm[encode]"') from None


def first_line(error: BaseException) -> str:
    """Return the first line of an error that may have many, or its kind where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def model_stem(name: str) -> str:
    """Return the last part of a folder or hub id, as a part of a column's name.

    Examples
    --------
    >>> model_stem("sentence-transformers/all-MiniLM-L6-v2")
    'all_MiniLM_L6_v2'
    """
    folder = Path(name).expanduser()
    return re.sub(r"\W", "_", folder.resolve().name if folder.is_dir() else name.rpartition("/")[2])


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the library's bars and reports off the terminal: what matters of them becomes an error of ours."""
    from transformers.utils import logging as their_logging

    level, bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity(logging.CRITICAL)
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        their_logging.set_verbosity(level)
        if bars:
            their_logging.enable_progress_bar()


@dataclass(frozen=True)
class Pretrained:
    """Where a model lies.

    Parameters
    ----------
    name : str
        A folder, or an id of the hub such as ``google/siglip-base-patch16-224``.
    folder : Path
        Its configuration, tokenizer and processor files; of a hub id, in the cache.
    revision : str or None
        Branch, tag or commit of a hub id.
    """

    name: str
    folder: Path
    revision: str | None = None

    @classmethod
    def find(cls, name: str, revision: str | None = None) -> Pretrained:
        """Find a folder, or fetch the small files of a hub id.

        Raises
        ------
        MissingFileError
            No such folder, and the hub cannot be reached or has no such model.
        """
        folder = Path(name).expanduser()
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise MissingFileError(f"{folder}: holds no config.json, expected a folder of save_pretrained")
            return cls(str(folder), folder)
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name):
            raise MissingFileError(f"model '{name}': no such folder, and no id of the Hugging Face hub (OWNER/NAME)")
        require_extra("huggingface_hub")
        import huggingface_hub

        try:
            found = huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=SMALL_FILES)
        except (OSError, ValueError) as error:
            raise MissingFileError(
                f"model '{name}': no such folder here, and as an id of the Hugging Face hub it cannot be had "
                f"({first_line(error)}); give a local folder with config.json, a tokenizer or processor and "
                "model.safetensors, or fill the cache where there is a network (hf download "
                f"{name}), copy it here, point HF_HOME to it and set HF_HUB_OFFLINE=1"
            ) from None
        return cls(name, Path(found), revision)

    def load_model(self) -> tuple[nn.Module, list[str]]:
        """Return the model in float32, in evaluation mode, and the names of the parameters that its file lacks.

        Raises
        ------
        DataError
            No safetensors, an unknown architecture, a model that wants code of its own, or damaged weights.
        """
        from transformers import AutoModel

        if self.name == str(self.folder):
            self._require_safetensors()
        model, report = self._load(
            AutoModel, "the model", self.name, use_safetensors=True, revision=self.revision, output_loading_info=True
        )
        if report.get("mismatched_keys"):
            names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"])
            raise DataError(f"model '{self.name}': weights of another shape than config.json says: {names[0]}")
        # Newer releases keep the file's own type; half precision is a matter of --precision alone.
        return model.float().eval(), sorted(report["missing_keys"])

    def load_tokenizer(self) -> Any:
        """Return the tokenizer; raises DataError where there is none."""
        from transformers import AutoTokenizer

        # Without a vocabulary, newer releases hand out a tokenizer to which every word is unknown.
        if not any(file for pattern in VOCABULARIES for file in self.folder.glob(pattern)):
            raise DataError(
                f"model '{self.name}': no tokenizer in {self.folder}, expected one of {', '.join(VOCABULARIES)}"
            )
        return self._load(AutoTokenizer, "the tokenizer", str(self.folder))

    def load_image_processor(self) -> Any:
        """Return the image processor, the one that works on PIL images; raises DataError where there is none."""
        import transformers
        from transformers import AutoImageProcessor

        # One way of resizing whatever is installed: torchvision's rounds otherwise than PIL's.
        major = int(transformers.__version__.partition(".")[0])
        backend: dict[str, Any] = {"backend": "pil"} if major >= 5 else {"use_fast": False}
        return self._load(AutoImageProcessor, "the image processor", str(self.folder), **backend)

    def _require_safetensors(self) -> None:
        if any(self.folder.glob("*.safetensors")):
            return
        pickled = sorted(file.name for suffix in ("bin", "pt", "ckpt") for file in self.folder.glob(f"*.{suffix}"))
        said = f"only {pickled[0]}, which is a pickle and is not loaded" if pickled else "no weights"
        raise DataError(
            f"{self.folder}: holds {said}; expected model.safetensors (written by save_pretrained, or found on the hub "
            "under --revision refs/pr/NUMBER of a conversion)"
        )

    def _load(self, auto_class: Any, what: str, name: str, **options: Any) -> Any:
        # Whatever a third party's loader raises means the same to the user: this folder does not hold what it should.
        try:
            with quiet_transformers():
                return auto_class.from_pretrained(name, trust_remote_code=False, **options)
        except Exception as error:
            raise DataError(f"model '{self.name}': {what} cannot be loaded ({first_line(error)})") from error


def weights_digest(model: nn.Module) -> str:
    """Return a digest of all parameters and buffers, by which a changed model is told."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def files_digest(folder: Path) -> str:
    """Return a digest of the small files of a model: configuration, tokenizer, processor."""
    digest = hashlib.sha256()
    for pattern in SMALL_FILES:
        for file in sorted(folder.glob(pattern)) + sorted(folder.glob(f"[0-9]_*/{pattern}")):
            digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
