"""A progress bar that counts items."""

from __future__ import annotations

from tqdm import tqdm

from fuxictr_mm.training.progress import progress_bar


def item_bar(items: int, what: str, verbose: int, done: int = 0) -> tqdm:
    """Return a bar of so many items, of which ``done`` lie behind, to be told of more by ``update``."""
    bar = progress_bar([], what, verbose, done, items)
    bar.unit, bar.unit_scale = " items", True
    return bar
