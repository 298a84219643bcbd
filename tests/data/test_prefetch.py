import threading

import pytest

from fuxictr_mm.data.prefetch import Prefetcher


def test_items_come_in_order_and_are_made_only_a_little_ahead():
    made = []

    def source():
        for i in range(50):
            made.append(i)
            yield i

    with Prefetcher(source()) as items:
        for i, item in enumerate(items):
            assert item == i
            assert len(made) <= i + 3  # taken, waiting, in the making
    assert made == list(range(50))


def test_what_the_source_raises_comes_after_its_items():
    def source():
        yield 1
        raise OSError("the disk is gone")

    with Prefetcher(source()) as items:
        assert next(items) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(items)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_leaving_ends_the_thread_and_closes_the_source(taken):
    before = threading.active_count()
    closed = threading.Event()

    def source():
        try:
            yield from range(1000)
        finally:
            closed.set()

    with Prefetcher(source()) as items:
        for _ in range(taken):
            next(items)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert closed.is_set() or taken == 0


def test_a_forgotten_one_ends_its_thread():
    before = threading.active_count()
    items = Prefetcher(iter(range(1000)))
    next(items)
    del items
    assert threading.active_count() == before
