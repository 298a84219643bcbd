"""Errors that a user can fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ServingError(ValueError):
    """An export, a request or a file of rows is wrong; the message is one line."""


class DamagedError(ServingError):
    """A file of an export differs from its checksum."""


class UnknownItemError(ServingError):
    """A row holds an item that the export does not hold."""


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Raise errors within as a ServingError that begins with ``what``: files of an export may hold anything."""
    try:
        yield
    except (ServingError, MemoryError):  # without memory the export may be good: it is tried again
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ServingError(f"{what} ({reason}); export again") from error
