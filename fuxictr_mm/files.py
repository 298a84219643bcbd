"""Files that are whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from fuxictr_mm.errors import ConfigError, UserError


def write_beside(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of one.

    Raises
    ------
    UserError
        The folder cannot be written or the disk is full; the old file is as it was.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its zip writer.
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        if isinstance(error, RuntimeError) and shutil.disk_usage(path.parent).free < 2**20:
            reason = "No space left on device"
        raise UserError(f"{path}: could not be written ({reason}); what stood there before is unchanged") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def check_outputs(
    outputs: Iterable[str | os.PathLike[str] | None],
    inputs: Iterable[str | os.PathLike[str] | None],
    overwrite: bool,
) -> None:
    """Refuse, before any work, files that could not or should not be written; None stands for no file.

    Raises
    ------
    ConfigError
        A file that is read as well (also with ``overwrite``), named twice, a folder, there already, or in a folder that
        cannot be written.
    """
    read = {Path(path).resolve() for path in inputs if path is not None}
    seen: set[Path] = set()
    for output in outputs:
        if output is None:
            continue
        path = Path(output).resolve()
        if path in read or path.parent in read:
            raise ConfigError(f"{output}: is read as well; choose another name to write")
        if path in seen:
            raise ConfigError(f"{output}: is named for two outputs; choose another name for one")
        seen.add(path)
        if path.is_dir():
            raise ConfigError(f"{output}: is a folder, expected a file")
        if path.exists() and not overwrite:
            raise ConfigError(f"{output}: exists already; add --overwrite or choose another name")
        folder = next(parent for parent in path.parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError(f"{output}: {folder} cannot be written; choose another place")
