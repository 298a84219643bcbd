"""Worker processes: started, started again when they end, and ended together."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from fuxictr_mm_serving.errors import ServingError
from fuxictr_mm_serving.processes import end_with_parent, reason_of, start

logger = logging.getLogger("fuxictr_mm_serving")

#: Starts of each worker, with none that serves in between, after which the command ends.
ATTEMPTS = 3

#: Seconds for which the end of a worker delays the next start, and the longest delay.
COUNTED_SECONDS, LONGEST_DELAY = 300, 60

#: What a worker does: it is given a function to call when it serves, then arguments.
Work = Callable[..., None]


def delay_of(ends: int) -> float:
    """Return the seconds until the next start, by the number of workers that have ended of late.

    Examples
    --------
    >>> [delay_of(ends) for ends in (1, 2, 3, 4, 5, 6, 1000)]
    [0, 2, 6, 14, 30, 60, 60]
    """
    return min(2 ** min(ends, 10) - 2, LONGEST_DELAY)


@dataclass
class _Worker:
    process: SpawnProcess | None = None
    #: From which it tells, once, that it serves or why it cannot.
    pipe: Connection | None = None
    error: str = ""
    serves: bool = False
    start_at: float = 0.0


class Workers:
    """Runs the same work in several processes.

    Parameters
    ----------
    work : callable
        Importable by its name.
    count : int
        Processes.
    grace : float
        Seconds until those that were asked to end are killed.
    on_serving : callable
        Called once, when the first serves.
    on_end : callable
        Called before the processes are asked to end.
    """

    def __init__(
        self,
        work: Work,
        args: tuple[Any, ...],
        *,
        count: int,
        grace: float,
        on_serving: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._work, self._args, self._grace = work, args, grace
        self._on_serving, self._before_end = on_serving, on_end
        self._workers = [_Worker() for _ in range(count)]
        self._ends: list[float] = []
        self._in_vain = 0
        self._have_served = False
        self._signals = 0

    def run(self) -> None:
        """Run them until SIGTERM or SIGINT; a second one kills them.

        Raises
        ------
        ServingError
            The first cannot serve, or all have been tried several times and none serves.
        """
        with self._signals_counted():
            try:
                while not self._signals:
                    for worker in self._workers:
                        self._look_at(worker)
                    processes = [worker.process.sentinel for worker in self._workers if worker.process]
                    wait([*processes, *(worker.pipe for worker in self._workers if worker.pipe)], 0.2)
            finally:
                self._end()

    @contextmanager
    def _signals_counted(self) -> Iterator[None]:
        def count(*_: object) -> None:
            self._signals += 1

        before = {number: signal.signal(number, count) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _look_at(self, worker: _Worker) -> None:
        if worker.process is None:
            if time.monotonic() >= worker.start_at:
                self._start(worker)
            return
        code = worker.process.exitcode  # before the pipe is read: what it tells comes before its end
        if worker.pipe is not None and worker.pipe.poll():
            try:
                worker.error = worker.pipe.recv()
                worker.serves = not worker.error
            except (EOFError, OSError):  # it ended without a word
                pass
            worker.pipe.close()
            worker.pipe = None
            if worker.serves:
                if not self._have_served:
                    self._on_serving()
                self._in_vain, self._have_served = 0, True
        if code is not None:
            self._on_end(worker, worker.error or reason_of(code))

    def _start(self, worker: _Worker) -> None:
        context = get_context("spawn")
        worker.error, worker.serves = "", False
        here, there = context.Pipe(duplex=False)
        try:
            with there:  # closed here, so that the end of the process is the end of the pipe
                args = (there, self._work, self._args)
                worker.process = start(context.Process(target=_run, args=args, daemon=True))
        except ServingError as error:  # the other workers may still serve requests
            here.close()
            self._on_end(worker, str(error))
        else:
            worker.pipe = here

    def _on_end(self, worker: _Worker, reason: str) -> None:
        self._in_vain += not worker.serves
        if worker.error and not self._have_served:
            raise ServingError(worker.error)
        worker.process, worker.serves = None, False
        if self._in_vain >= ATTEMPTS * len(self._workers) and not any(other.serves for other in self._workers):
            raise ServingError(
                f"--workers {len(self._workers)}: {self._in_vain} in a row did not serve, the last {reason}"
            )
        now = time.monotonic()
        self._ends = [*(end for end in self._ends if end > now - COUNTED_SECONDS), now]
        delay = delay_of(len(self._ends))
        worker.start_at = now + delay
        logger.error(json.dumps({"worker": "ended", "reason": reason, "started_again_in_s": delay}))

    def _end(self) -> None:
        self._before_end()
        processes = [worker.process for worker in self._workers if worker.process]
        for process in processes:
            process.terminate()
        deadline, before = time.monotonic() + self._grace, self._signals
        while alive := [process.sentinel for process in processes if process.exitcode is None]:
            if time.monotonic() > deadline or self._signals > before:
                for process in processes:
                    process.kill()
            wait(alive, 0.2)


def _run(pipe: Connection, work: Work, args: tuple[Any, ...]) -> None:
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))  # otherwise it keeps the port
    has_told = False

    def tell(error: str = "") -> None:
        nonlocal has_told
        if not has_told:
            has_told = True
            pipe.send(error)
            pipe.close()

    try:
        work(tell, *args)
    except Exception as error:
        if has_told:
            raise
        message = str(error) if isinstance(error, ServingError) else f"{type(error).__name__}: {error}"
        tell(" ".join(message.split()))
        sys.exit(1)
