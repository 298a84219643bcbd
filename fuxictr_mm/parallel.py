"""Parts of one computation on several threads, each with one thread of torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch


def run_parts(parts: Sequence[Callable[[], None]]) -> None:
    """Run the parts of a computation at once, the first one on the calling thread, without recording gradients.

    Where a part is a sequence of operations on data that fit into a core's cache, this scales better than to divide
    each operation among the threads, which then meet after every operation instead of once.

    Parameters
    ----------
    parts : sequence of callable
        One for each thread; each uses a single thread of torch. They may write to disjoint parts of a tensor. They
        may not draw random numbers from torch's default generator, since the order of the draws would vary.
    """
    if len(parts) == 1:
        parts[0]()
        return
    inference = torch.is_inference_mode_enabled()

    def run(part: Callable[[], None]) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode() if inference else torch.no_grad():  # modes belong to a thread
            part()

    threads = torch.get_num_threads()
    try:
        others = [_pool().submit(run, part) for part in parts[1:]]
        try:
            run(parts[0])
        finally:
            wait(others)
    finally:
        torch.set_num_threads(threads)
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="fuxictr_mm_parts")


if hasattr(os, "register_at_fork"):  # a child has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
