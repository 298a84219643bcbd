"""Ctrl-C and SIGTERM, to be looked at where it suits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM in a list instead of letting them raise.

    An exception amid a write, an update of the weights or the locks of threads would leave them in disorder.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may set handlers
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
