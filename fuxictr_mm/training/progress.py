"""A progress bar with rate and time left, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(batches: Iterable[Any], what: str, verbose: int = 1, done: int = 0, total: int | None = None) -> tqdm:
    """Return a bar over ``batches``, of which ``done`` lie behind; ``verbose=0`` or no terminal prints nothing."""
    quiet = verbose == 0 or not sys.stderr.isatty()
    return tqdm(batches, desc=what, unit="batch", disable=quiet, leave=False, initial=done, total=total)
