"""The time until which the work of a request counts; work checks it between its parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


class DeadlineError(Exception):
    """The work is dropped: nobody waits for it any more."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Set the deadline of the work within, in seconds of ``time.monotonic``; it is checked at once."""
    token = _deadline.set(deadline)
    try:
        check_deadline()
        yield
    finally:
        _deadline.reset(token)


def check_deadline() -> None:
    """Raise a DeadlineError if the deadline has passed."""
    deadline = _deadline.get()
    if deadline is not None and time.monotonic() > deadline:
        raise DeadlineError
