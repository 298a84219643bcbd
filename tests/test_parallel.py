import os
import threading

import pytest
import torch

from fuxictr_mm.parallel import run_parts


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_parts_run_at_once_with_a_thread_of_torch_each():
    both = threading.Barrier(2, timeout=10)
    seen = []

    def part():
        both.wait()  # fails unless the other part waits here as well
        seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))

    run_parts([part, part])
    assert len({thread for thread, _, _ in seen}) == 2
    assert [rest for _, *rest in seen] == [[1, False]] * 2
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()


def test_a_thread_that_begins_meanwhile_has_as_many_threads_of_torch_as_others():
    """As one that prefetches data, or another training in this process."""
    seen = []

    def part():
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()

    run_parts([part, part])
    assert seen == [2, 2]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_ends_all_parts_first(failing):
    ended = []

    def fail():
        raise ValueError(failing)

    parts = [lambda: ended.append(0)] * 2
    parts[failing] = fail
    with pytest.raises(ValueError, match=str(failing)):
        run_parts(parts)
    assert ended == [0]
    assert torch.get_num_threads() == 2


def test_inference_mode_reaches_every_part():
    with torch.inference_mode():
        x = torch.zeros(2)
        run_parts([lambda: x[:1].add_(1), lambda: x[1:].add_(2)])
    assert x.tolist() == [1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_starts_its_own_threads():
    x = torch.zeros(2)
    run_parts([lambda: x[:1].add_(1), lambda: x[1:].add_(2)])
    child = os.fork()
    if child == 0:
        run_parts([lambda: x[:1].add_(1), lambda: x[1:].add_(2)])
        os._exit(0 if x.tolist() == [2, 4] else 1)
    assert os.waitpid(child, 0)[1] == 0
