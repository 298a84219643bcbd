"""Locks on files: the system lets go of them when the last process that holds them is gone, however it went.

Where the system has no such locks (Windows) nothing is locked.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FileLock:
    """A lock that is held; a child that is given ``fileno()`` holds it as well, and after us."""

    def __init__(self, path: Path, wait: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file stays: whoever deleted it could delete the one that another process has just locked.
        self._stream = path.open("ab")
        if importlib.util.find_spec("fcntl") is None:
            return
        import fcntl

        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self._stream.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor to hand to a child."""
        return self._stream.fileno()

    def release(self) -> None:
        """Let go; a child that holds it too keeps it."""
        self._stream.close()


def try_lock(path: Path) -> FileLock | None:
    """Return the lock on a file, None if another process holds it."""
    try:
        return FileLock(path, wait=False)
    except BlockingIOError:
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock on a file and hold it for a block."""
    lock = FileLock(path, wait=True)
    try:
        yield
    finally:
        lock.release()
