"""A progress bar with rate and time left, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(batches: Iterable[Any], what: str, verbose: int = 1) -> tqdm:
    """Return a bar over ``batches``; ``verbose=0``, or an output that is no terminal, prints nothing."""
    quiet = verbose == 0 or not sys.stderr.isatty()
    return tqdm(batches, desc=what, unit="batch", disable=quiet, leave=False, dynamic_ncols=True)
