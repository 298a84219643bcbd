"""Processes that end with the one that started them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from multiprocessing import parent_process


def end_with_parent(end: Callable[[], object] = lambda: os._exit(1)) -> None:
    """End this process, started by ``multiprocessing``, when its parent has ended: also one that was killed."""
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        end()

    threading.Thread(target=wait, daemon=True, name="parent").start()
