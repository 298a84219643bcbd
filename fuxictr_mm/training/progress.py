"""A progress bar with rate and time left, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from fuxictr_mm.torchrun import is_main


def progress_bar(batches: Iterable[Any], what: str, verbose: int = 1, done: int = 0, total: int | None = None) -> tqdm:
    """Return a bar over ``batches``, of which ``done`` lie behind.

    ``verbose=0``, no terminal, or a process that is not the main one: nothing is printed.
    """
    quiet = verbose == 0 or not sys.stderr.isatty() or not is_main()
    return tqdm(batches, desc=what, unit="batch", disable=quiet, leave=False, initial=done, total=total)
