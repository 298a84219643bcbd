"""Saved fits: safetensors files that hold named arrays and their meaning."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError, nearest
from fuxictr_mm.files import StrPath, write_beside

Built = TypeVar("Built")


@dataclass(frozen=True)
class SavedFormat:
    """A kind of safetensors file: named arrays, with their meaning as JSON in the metadata."""

    what: str  #: What it holds, such as ``reducer``.
    stage: str  #: The ``fuxictr-mm embed STAGE`` that writes it.
    version: int = 1  #: Of the layout of its content.

    @property
    def key(self) -> str:
        """Key of the content in the metadata."""
        return f"fuxictr_mm.{self.what}"

    def save(self, path: StrPath, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write a file atomically; raises UserError where it cannot be written."""
        from safetensors.numpy import save

        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        text = json.dumps({"format": self.version, **content})
        data = save(contiguous, metadata={self.key: text, "sha256": checksum(text, contiguous)})
        write_beside(path, lambda stream: stream.write(data))

    def load(self, path: StrPath, build: Callable[[dict[str, Any], dict[str, np.ndarray]], Built]) -> Built:
        """Return the result of ``build`` for the content and the arrays of a file.

        Raises MissingFileError, or DataError where the file is damaged or of another kind or version.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            present = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
            raise MissingFileError(
                f"{path}: no such file{nearest(path.name, present)}; expected a {self.what} that "
                f"`fuxictr-mm embed {self.stage}` wrote"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if self.key not in metadata:
                raise DataError(f"{path}: is not a {self.what}; expected a file of `fuxictr-mm embed {self.stage}`")
            if metadata.get("sha256") != checksum(metadata[self.key], arrays):
                raise ValueError("its checksum does not match its contents")
            content = json.loads(metadata[self.key])
            if content["format"] != self.version:
                raise DataError(
                    f"{path}: has the format {content['format']}, expected {self.version}; compute the "
                    f"{self.what} again"
                )
            return build(content, arrays)
        except UserError:
            raise
        except (
            *(SafetensorError, OSError, struct.error, ValueError, TypeError),
            *(KeyError, AttributeError, IndexError, RuntimeError),
        ) as error:
            reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            raise DataError(
                f"{path}: is a damaged {self.what} ({' '.join(reason.split())}); copy it again, or compute it again"
            ) from None


def checksum(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of a text and of named arrays, whatever their order."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def check_modalities(
    given: Mapping[str, int], fitted: Mapping[str, int], what: str, columns: Mapping[str, str] | None = None
) -> None:
    """Raise a ConfigError where names and dims of embeddings are not those of a fit; the message names ``columns``."""
    texts = (f"{name} of dim {dim}{f' ({columns[name]})' if columns else ''}" for name, dim in fitted.items())
    known = f"it was fitted on: {', '.join(texts)}"
    for name in given:
        if name not in fitted:
            raise ConfigError(
                f"{what}: modality '{name}' is unknown{nearest(name, fitted)} ({known}); give it as NAME=FILE:COLUMN"
            )
    for name, dim in fitted.items():
        if name not in given:
            raise ConfigError(f"{what}: modality '{name}' is missing ({known}); add NAME=FILE:COLUMN")
        if given[name] != dim:
            raise ConfigError(
                f"{what}: modality '{name}' has embeddings of dim {given[name]}, expected {dim} ({known}); "
                "use embeddings of the same model as in the fit"
            )
