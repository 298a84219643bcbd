"""An iterator that runs in a thread of its own, ahead of the one who takes from it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Queue
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class _Failure:
    """What the iterator raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    """Stands behind the last item."""


class ReadAhead(Generic[T]):
    """Take from an iterator whose next item is made meanwhile.

    Used as a context manager: leaving it, in whatever way, ends the thread. What the iterator raises is raised by
    ``next``.

    Parameters
    ----------
    source : iterator
        Runs in the thread; at most one item waits, and one more is being made.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._waiting: Queue[T | _Failure | _End] = Queue(maxsize=1)
        stop = threading.Event()
        thread = threading.Thread(target=_fill, args=(source, self._waiting, stop), name="read-ahead", daemon=True)
        # Also called where the object is forgotten and where the interpreter ends: a thread that runs on amid native
        # code would crash it.
        self._close = weakref.finalize(self, _end, thread, self._waiting, stop)
        thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._waiting.get()
        if isinstance(item, _Failure):
            raise item.error
        if isinstance(item, _End):
            raise StopIteration
        return item

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def _fill(source: Iterator[T], waiting: Queue[T | _Failure | _End], stop: threading.Event) -> None:
    last: _Failure | _End = _End()
    try:
        for item in source:
            if stop.is_set():
                return
            waiting.put(item)
            del item  # else it lives on while the next one is made
    except BaseException as error:  # for the one who waits, whatever it is
        last = _Failure(error)
    if not stop.is_set():
        waiting.put(last)


def _end(thread: threading.Thread, waiting: Queue[T | _Failure | _End], stop: threading.Event) -> None:
    stop.set()
    # Makes room for the one item that may be on its way; after it, the thread sees that it is to stop.
    with suppress(Empty):
        waiting.get_nowait()
    thread.join()
