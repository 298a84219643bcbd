"""Parts of one computation on several threads, each with one thread of torch."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch


def run_parts(parts: Sequence[Callable[[], None]]) -> None:
    """Run the parts of a computation at once, without recording gradients; a single one on the calling thread.

    Where a part is a sequence of operations on data that fit into a core's cache, this scales better than to divide
    each operation among the threads, which then meet after every operation instead of once.

    Parameters
    ----------
    parts : sequence of callable
        One for each thread; each uses a single thread of torch. They may write to disjoint parts of a tensor. They
        may not sample from torch's default generator, since the order would vary, and may
        not call this function with several parts, since they would wait for threads that wait for them.
    """
    if len(parts) == 1:
        parts[0]()
        return
    inference = torch.is_inference_mode_enabled()

    def run(part: Callable[[], None]) -> None:
        with torch.inference_mode() if inference else torch.no_grad():  # modes belong to a thread
            part()

    pool = _pool(torch.get_num_threads())
    running: list[Future[None]] = []
    try:
        for part in parts:
            running.append(pool.submit(run, part))
    finally:
        wait(running)
    for future in running:
        future.result()


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Return threads that have begun, since each sets torch's number of threads where it begins.

    That number belongs to the thread that sets it, but threads that begin later take it as well. Were it set in every
    call, another training in this process, or a thread that reads its data, could begin with 1.
    """
    pool = ThreadPoolExecutor(count, "fuxictr_mm_parts", _use_one_thread)
    all_begun = threading.Barrier(count)
    wait([pool.submit(all_begun.wait) for _ in range(count)])
    torch.set_num_threads(count)
    return pool


def _use_one_thread() -> None:
    torch.get_num_threads()  # the first operation of a thread takes the number of others, also after it has set its own
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # a child has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
