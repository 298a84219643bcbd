"""Paths in object stores, read by fsspec: ``s3://bucket/train``, ``gs://bucket/train``, ``memory://train``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from fuxictr_mm.errors import UserError
from fuxictr_mm.files import StrPath


class RemotePath(PurePosixPath):
    """A path with a scheme that has the methods of ``Path`` by which files of rows and of items are read."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)  # PurePosixPath drops the second slash

    def __fspath__(self) -> str:
        return str(self)

    @property
    def store(self) -> Any:
        """The file system of fsspec."""
        from fsspec import filesystem

        scheme = self.parts[0].removesuffix(":")
        try:
            return filesystem(scheme)
        except (ImportError, ValueError) as error:
            packages = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
            fix = f"python -m pip install {packages[scheme]}" if scheme in packages else "copy the files to a disk"
            raise UserError(f"{self}: {scheme}:// cannot be read ({error}); {fix}") from None

    def is_file(self) -> bool:
        """Whether there is a file."""
        return bool(self._ask(self.store.isfile))

    def is_dir(self) -> bool:
        """Whether there are files whose names begin with this path and a slash."""
        return bool(self._ask(self.store.isdir))

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return bool(self._ask(self.store.exists))

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the files and folders in this folder."""
        for name in self._ask(self.store.ls, detail=False):
            yield self / PurePosixPath(name).name

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield the files and folders in this folder whose names match."""
        return (path for path in self.iterdir() if path.match(pattern))

    def stat(self) -> SimpleNamespace:
        """Return the size in bytes; the time of the last change is unknown."""
        return SimpleNamespace(st_size=self._ask(self.store.size), st_mtime_ns=0)

    def open(self, mode: str = "rb") -> Any:
        """Open a file for random reads, without read-ahead."""
        file = self._ask(self.store.open, mode=mode, cache_type="none")
        file.read = partial(self._try, type(file).read, file)
        return file

    def _ask(self, method: Callable[..., Any], **options: Any) -> Any:
        """Return what the store says of this path."""
        return self._try(method, str(self), **options)

    def _try(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Return what a method of the store or of a file returns."""
        try:
            return method(*arguments, **options)
        except FileNotFoundError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{self}: cannot be read ({reason}); check credentials and endpoint of the store"
            ) from error


def is_remote(path: StrPath) -> bool:
    """Whether a path is in an object store."""
    return isinstance(path, RemotePath) or "://" in str(path)


def path_of(path: StrPath) -> Path:
    """Return a path on a disk, or in an object store, which can be read like one.

    Examples
    --------
    >>> print(path_of("memory://folder") / "train.parquet")
    memory://folder/train.parquet
    """
    return RemotePath(path) if is_remote(path) else Path(path)  # type: ignore[return-value]
