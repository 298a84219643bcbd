"""Vectors in the file that FuxiCTR's ``pretrained_emb`` reads: an .h5 with ``key`` and ``value``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fuxictr_mm.errors import ConfigError, UserError


class PretrainedEmbFile:
    """Write ``key`` ``(I,)`` int64 and ``value`` ``(I, K)`` float32, chunk by chunk; the padding has no row.

    The file appears under its name when it is whole.

    Parameters
    ----------
    path : str or path
        A name that ends in ``.h5``, by which FuxiCTR knows the format.
    num_items : int
        I.
    width : int
        K.
    overwrite : bool
        Replace a file that is there.

    Raises
    ------
    ConfigError
        The file is there.
    UserError
        It cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], num_items: int, width: int, overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not overwrite:
            raise ConfigError(f"{self.path}: exists already; add --overwrite or choose another name")
        self._shape = (num_items, width)
        self._row = 0
        self._temporary = Path()
        self._file: Any = None

    def __enter__(self) -> PretrainedEmbFile:
        import h5py

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            os.close(handle)
            self._temporary = Path(temporary)
            self._file = h5py.File(self._temporary, "w")
            self._file.create_dataset("key", shape=self._shape[:1], dtype=np.int64)
            self._file.create_dataset("value", shape=self._shape, dtype=np.float32)
        except OSError as error:
            self._discard()
            raise self._refused(error) from None
        return self

    def write(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Append items: ids ``(n,)`` and vectors ``(n, K)``."""
        rows = slice(self._row, self._row + len(ids))
        try:
            self._file["key"][rows] = ids
            self._file["value"][rows] = vectors
        except OSError as error:
            raise self._refused(error) from None
        self._row = rows.stop

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert self._row == self._shape[0], f"{self._row} items written, expected {self._shape[0]}"
                self._file.close()
                with self._temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
                self._temporary.chmod(0o644)
                self._temporary.replace(self.path)
        except OSError as failed:
            raise self._refused(failed) from None
        finally:
            self._discard()

    def _discard(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
        finally:
            if self._temporary.name:
                self._temporary.unlink(missing_ok=True)

    def _refused(self, error: OSError) -> UserError:
        reason = error.strerror or str(error).splitlines()[0]
        return UserError(f"{self.path}: could not be written ({reason}); what stood there before is unchanged")
