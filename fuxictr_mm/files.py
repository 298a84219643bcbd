"""Atomic file writes, JSON files, and a lock that child processes inherit."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from fuxictr_mm.errors import ConfigError, DataError, MissingFileError, UserError, first_line

#: What every function takes for a path.
StrPath: TypeAlias = str | os.PathLike[str]


@contextmanager
def atomic_path(path: StrPath) -> Iterator[Path]:
    """Yield a temporary file in the folder of ``path``; it replaces ``path`` if the block ends without an exception.

    Raises
    ------
    UserError
        The folder cannot be written or the disk is full; the old file is unchanged.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except UserError:
        raise
    except OSError as error:
        reason = _reason(error, path.parent)
        raise UserError(f"{path}: could not be written ({reason}); the old file is unchanged") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_beside(path: StrPath, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file atomically; raises as ``atomic_path``."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        try:
            write(stream)
        except RuntimeError as error:  # of torch's zip writer
            raise OSError(0, _reason(error, temporary.parent)) from error


def _reason(error: Exception, folder: Path) -> str:
    """Return why a folder could not be written; errors of torch and numpy do not say that the disk is full."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    is_full = folder.is_dir() and shutil.disk_usage(folder).free < 2**20
    return os.strerror(errno.ENOSPC) if is_full else first_line(error)


def check_folder_to_write(out: Path, markers: Sequence[str], overwrite: bool) -> None:
    """Raise an error if a folder to replace is not an earlier export, which holds the files ``markers``.

    Raises
    ------
    UserError
        Another folder or a file; an export without ``overwrite``.
    """
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    if not all((out / name).is_file() for name in markers):
        raise UserError(f"{out}: already exists and is not an export of fuxictr-mm; give another folder")
    if not overwrite:
        raise UserError(f"{out}: already holds an export; give another folder, or --overwrite")


def write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Let ``write(folder)`` fill a temporary folder, then rename it, so that ``out`` is complete or unchanged.

    Raises
    ------
    UserError
        The folder cannot be written or the disk is full.
    """
    out = out.absolute()
    beside: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        new, old = beside / "new", beside / "old"
        new.mkdir()
        write(new)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise UserError(f"{out}: could not be written ({_reason(error, out.parent)})") from error
    finally:
        if beside is not None:
            shutil.rmtree(beside)


def check_outputs(outputs: Iterable[StrPath | None], inputs: Iterable[StrPath | None], overwrite: bool) -> None:
    """Raise an error for output files that cannot or must not be written, before any work; None is skipped.

    Raises
    ------
    ConfigError
        A file that is an input as well or would be one, in a folder of part files (also with ``overwrite``); named
        twice, a folder, existing, or in a folder that cannot be written.
    """
    # As ``data.parquet.part_files`` reads a path: the ending may be left out, and folders may have Hive partitions.
    named = [Path(path) for path in inputs if path]
    endings = [Path(f"{path}{ending}") for path in named for ending in (".parquet", ".csv")]
    read = {path.resolve() for path in [*named, *filter(Path.is_file, endings)]}
    seen: set[Path] = set()
    for output in outputs:
        if output is None:
            continue
        path = Path(output).resolve()
        partitions = takewhile(lambda folder: "=" in folder.name, path.parents)
        if read & {path, path.parent, *(folder.parent for folder in partitions)}:
            raise ConfigError(f"{output}: is also an input; give another name for the output")
        if path in seen:
            raise ConfigError(f"{output}: is given for two outputs; give another name for one")
        seen.add(path)
        if path.is_dir():
            raise ConfigError(f"{output}: is a folder, expected a file")
        if path.exists() and not overwrite:
            raise ConfigError(f"{output}: already exists; add --overwrite, or give another name")
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError(f"{output}: {folder} is not writable; give another folder")


def check_replaceable(output: StrPath, names: Iterable[str], what: str) -> None:
    """Raise an error if a file to replace is not of the kind that a command writes; empty files are accepted.

    ``names`` are what a file of the kind holds: keys of its JSON object, columns of its Parquet table, or ``<html>``;
    ``what`` is the kind, for the message.

    Raises
    ------
    ConfigError
        The file exists and is of another kind.
    """
    path = Path(output)
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return
    if not set(names) <= _names_in(path):
        raise ConfigError(f"{output}: already exists and is not a {what}; give another name, or delete the file")


def _names_in(path: Path) -> set[str]:
    """Return what ``check_replaceable`` tells files by, nothing of a file of another kind."""
    try:
        with path.open("rb") as stream:
            start = stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        if start.startswith((b"<!doctype html", b"<html")):
            return {"<html>"}
        if start.startswith(b"par1"):
            import pyarrow.parquet as pq

            return set(pq.read_schema(path).names)
        return set(read_json(path)) if start.startswith(b"{") else set()
    except (OSError, ValueError):
        return set()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    MissingFileError, DataError
        There is no such file; it is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file; expected a JSON object") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with a line for each key."""
    write_beside(path, lambda stream: stream.write(json.dumps(content, indent=1).encode() + b"\n"))


class InheritedLock:
    """A lock on a file that child processes inherit: it ends with the last process that has its descriptor.

    filelock has no such lock: it unlocks the file for all processes that inherited the descriptor, and hides the
    descriptor. Without ``fcntl`` (Windows) nothing is locked.

    Parameters
    ----------
    path : Path
        The file; it is never deleted, because another process could have locked it meanwhile.

    Raises
    ------
    BlockingIOError
        Another process holds it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab")
        if importlib.util.find_spec("fcntl") is None:
            return
        import fcntl

        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self._stream.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to pass to a child."""
        return self._stream.fileno()

    def release(self) -> None:
        """Close the descriptor; a child that has it keeps the lock."""
        self._stream.close()


def try_lock(path: Path) -> InheritedLock | None:
    """Return the lock on a file, None if another process holds it."""
    try:
        return InheritedLock(path)
    except BlockingIOError:
        return None
