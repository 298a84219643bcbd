"""Background prefetching: the next item of an iterator is computed in a thread while the current one is used."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Queue
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Iterate over a source that runs one item ahead in a background thread.

    Use it as a context manager: leaving the block ends the thread, also after an exception. An exception of the source
    is raised by ``next``.

    Parameters
    ----------
    source : iterator
        Consumed in the thread. At most one finished item waits in the queue while another one is made.
    """

    def __init__(self, source: Iterator[T]) -> None:
        self._queue: Queue[T | _Failure | _End] = Queue(maxsize=1)
        stop = threading.Event()
        thread = threading.Thread(target=_fill, args=(source, self._queue, stop), name="prefetch", daemon=True)
        # A finalizer, because a daemon thread inside native code can crash the interpreter while it shuts down.
        self._close = weakref.finalize(self, _shut_down, thread, self._queue, stop)
        thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        item = self._queue.get()
        if isinstance(item, _Failure):
            raise item.error
        if isinstance(item, _End):
            raise StopIteration
        return item

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


class _Failure:
    """An exception of the source, passed through the queue."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    """Follows the last item in the queue."""


def _fill(source: Iterator[T], queue: Queue[T | _Failure | _End], stop: threading.Event) -> None:
    last: _Failure | _End = _End()
    try:
        for item in source:
            if stop.is_set():
                return
            queue.put(item)
            del item  # otherwise two items stay in memory while the next one is made
    except BaseException as error:  # raised again in the consumer's thread
        last = _Failure(error)
    if not stop.is_set():
        queue.put(last)


def _shut_down(thread: threading.Thread, queue: Queue[T | _Failure | _End], stop: threading.Event) -> None:
    stop.set()
    # Makes room for an item that the thread may be putting right now; after that it sees the event.
    with suppress(Empty):
        queue.get_nowait()
    thread.join()
