"""The time of an autopilot, over all its starts, and what it has reported."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from fuxictr_mm.errors import ConfigError
from fuxictr_mm.files import read_json, write_json

#: Seconds between two notes of how much of the budget is spent: what a kill forgets.
NOTE_SECONDS = 10


class Clock:
    """The budget in seconds of all starts together, and what is spent of it, which a file keeps.

    Raises
    ------
    ConfigError
        The file is damaged.
    """

    def __init__(self, path: Path, budget: float) -> None:
        before = read_json(path).get("spent", 0.0) if path.exists() else 0.0
        if not isinstance(before, int | float):
            raise ConfigError(f"{path}: spent is {before!r}, expected seconds; delete the file to start again")
        self.before = float(before)
        self.budget = budget
        self._path = path
        self._started = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds that are spent."""
        return self.before + time.monotonic() - self._started

    def until(self, part: float) -> float:
        """Return when this part of the budget is over, by ``time.monotonic()``."""
        return time.monotonic() + self.left(part)

    def left(self, part: float) -> float:
        """Return the seconds until this part of the budget is over."""
        return part * self.budget - self.spent

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Save what is spent every few seconds and at the end."""
        over = threading.Event()

        def note() -> None:
            while not over.wait(NOTE_SECONDS):
                self._save()

        thread = threading.Thread(target=note, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._save()

    def _save(self) -> None:
        write_json(self._path, {"spent": self.spent})


class Journal:
    """What was tried, and why: kept for the page and, unless ``quiet``, printed on stderr."""

    def __init__(self, clock: Clock, quiet: bool) -> None:
        self._clock = clock
        self._quiet = quiet
        self.lines: list[str] = []

    def tell(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)
        if not self._quiet:
            tqdm.write(f"{self._clock.spent:6.0f} s  {line}", file=sys.stderr)  # above the bar of running trials
