"""What a stage fitted, as a safetensors file: arrays, and in the metadata JSON with a checksum of both.

safetensors itself checks sizes only.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fuxictr_mm.checking import nearest
from fuxictr_mm.errors import DataError, MissingFileError, UserError
from fuxictr_mm.files import write_beside

Built = TypeVar("Built")


@dataclass(frozen=True)
class SavedFormat:
    """One kind of file.

    Parameters
    ----------
    what : str
        What it holds, such as ``"reducer"``.
    stage : str
        Which ``fuxictr-mm embed STAGE`` writes it.
    version : int
        Of the layout of its content.
    """

    what: str
    stage: str
    version: int = 1

    @property
    def key(self) -> str:
        """Where the content stands in the metadata."""
        return f"fuxictr_mm.{self.what}"

    def save(self, path: str | os.PathLike[str], content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays, and what they mean as JSON.

        Raises
        ------
        UserError
            The file cannot be written.
        """
        from safetensors.numpy import save

        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        text = json.dumps({"format": self.version, **content})
        data = save(whole, metadata={self.key: text, "sha256": checksum(text, whole)})
        write_beside(path, lambda stream: stream.write(data))

    def load(
        self, path: str | os.PathLike[str], build: Callable[[dict[str, Any], dict[str, np.ndarray]], Built]
    ) -> Built:
        """Return what ``build`` makes of the content and the arrays of a file.

        Raises
        ------
        MissingFileError
            There is no such file.
        DataError
            It is damaged, of another kind or version, or ``build`` cannot make anything of it.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            beside = sorted(file.name for file in path.parent.iterdir()) if path.parent.is_dir() else []
            raise MissingFileError(
                f"{path}: no such file{nearest(path.name, beside)}; expected a {self.what} that "
                f"`fuxictr-mm embed {self.stage}` wrote"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, ValueError, TypeError, struct.error) as error:
            raise self._damaged(path, str(error)) from None
        if self.key not in metadata:
            raise DataError(f"{path}: is no {self.what}; expected a file that `fuxictr-mm embed {self.stage}` wrote")
        if metadata.get("sha256") != checksum(metadata[self.key], arrays):
            raise self._damaged(path, "its checksum is not that of its contents")
        try:
            content = json.loads(metadata[self.key])
            if content["format"] != self.version:
                raise DataError(
                    f"{path}: has the format {content['format']}, expected {self.version}; make the {self.what} anew"
                )
            return build(content, arrays)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            raise self._damaged(path, said) from None

    def _damaged(self, path: Path, reason: str) -> DataError:
        return DataError(
            f"{path}: is damaged as a {self.what} ({' '.join(reason.split())}); copy it again, or make it anew"
        )


def checksum(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of a text and of named arrays, whatever their order."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
