"""Processes: how they start, and how they end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import parent_process, resource_tracker
from multiprocessing.context import SpawnProcess

from fuxictr_mm_serving.errors import ServingError


def start(process: SpawnProcess) -> SpawnProcess:
    """Start a process that never gets SIGINT and return it: a terminal sends that to all, and the parent ends its own.

    It is blocked from the first instruction on, before modules are imported, which takes a second.
    """
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
    if can_block:
        resource_tracker.ensure_running()  # whose start would unblock it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    except OSError as error:
        raise ServingError(f"a process could not be started ({error.strerror or error})") from error
    finally:
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def end_with_parent(end: Callable[[], object] = lambda: os._exit(1)) -> None:
    """End this process, started by ``multiprocessing``, when its parent has ended: also one that was killed."""
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        end()

    threading.Thread(target=wait, daemon=True, name="parent").start()


def reason_of(code: int) -> str:
    """Return how a process ended, by its exit code.

    Examples
    --------
    >>> reason_of(1), reason_of(-15), reason_of(-40)
    ('ended with exit code 1', 'ended by SIGTERM', 'ended by signal 40')
    """
    if code >= 0:
        return f"ended with exit code {code}"
    name = {number.value: number.name for number in signal.Signals}.get(-code, f"signal {-code}")
    return f"ended by {name}" + (", probably by the system because memory is short" if name == "SIGKILL" else "")
