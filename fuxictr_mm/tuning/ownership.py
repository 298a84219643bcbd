"""Which process runs a trial: locks on the files of one folder, heartbeats in the database of several machines."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from fuxictr_mm.files import InheritedLock, try_lock, write_beside
from fuxictr_mm.tuning.stored_trials import StoredTrial, StoredTrials

BEAT_SECONDS = 20.0
STALE_SECONDS = 180.0


class Locks:
    """The locks of the processes that share a folder, which holds their files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the study against the other processes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / "study.lock"):
            yield

    def try_trial(self, number: int) -> InheritedLock | None:
        """Return the lock on a trial, None if another process runs it."""
        return try_lock(self._folder / f"{number:04d}.lock")

    def place(self) -> str:
        """Return a name of this machine and folder; processes that share it see each other's locks."""
        path = self._folder / "place"
        if not path.exists():
            name = uuid.uuid4().hex
            write_beside(path, lambda stream: stream.write(name.encode()))
        return f"{socket.gethostname()} {path.read_text(encoding='utf-8')}"


@dataclass
class _Heart:
    """Heartbeats of a trial: of ours, those that were written; of another process, the last one and when it came."""

    last: Any = 0
    at: float = field(default_factory=time.monotonic)


class Owners:
    """The owners of the trials of a study, of which this process is one, at a ``place`` of ``Locks.place``.

    ``has_other_places``: the database may have owners elsewhere, whose locks are not seen.
    """

    def __init__(self, stored: StoredTrials, place: str, has_other_places: bool) -> None:
        self._stored = stored
        self._has_other_places = has_other_places
        self._us = {"place": place, "process": uuid.uuid4().hex}
        self._ours: dict[int, _Heart] = {}
        self._theirs: dict[int, _Heart] = {}

    def take(self, number: int) -> None:
        """Note that a trial is ours."""
        self._stored.note(number, "owner", self._us)
        self._ours[number] = _Heart()

    def is_abandoned(self, trial: StoredTrial) -> bool:
        """Whether nobody runs a running trial whose lock is held here."""
        if not self._has_other_places or (trial.owner is not None and trial.owner["place"] == self._us["place"]):
            return True  # its lock was free
        beat = (trial.owner, trial.beat)
        heart = self._theirs.get(trial.number)
        if heart is None or heart.last != beat:
            self._theirs[trial.number] = _Heart(beat)
            return False
        return time.monotonic() - heart.at > STALE_SECONDS

    def is_lost(self, number: int) -> bool:
        """Whether another machine has taken over a trial of ours because our heartbeat stopped."""
        trial = self._stored.get(number)
        return trial.is_finished or trial.owner != self._us

    def beat(self, number: int) -> bool:
        """Write the next heartbeat if it is time; return whether the trial is still ours."""
        heart = self._ours[number]
        if time.monotonic() - heart.at < BEAT_SECONDS:
            return True
        heart.at = time.monotonic()
        if self.is_lost(number):
            return False
        heart.last += 1
        self._stored.note(number, "beat", heart.last)
        return True
