"""Arrays of recent users, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

State = dict[str, np.ndarray]


#: Bytes of an entry beside its arrays (key, dict, places in two tables), and of an array beside its numbers.
ENTRY_BYTES, ARRAY_BYTES = 600, 200


class StateCache:
    """Least recently used states are dropped when all together exceed a number of bytes.

    Parameters
    ----------
    max_bytes : int
        Bytes of all entries, with their keys and objects, roughly; 0 keeps none.

    Examples
    --------
    >>> cache = StateCache(1000)
    >>> one = cache.get("a", lambda: {"x": np.zeros(2)})
    >>> cache.get("a", lambda: {}) is one, cache.get("b", lambda: {"x": np.ones(2)}) is one, len(cache)
    (True, False, 1)
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = self.hits = self.misses = 0
        self._states: OrderedDict[str, State] = OrderedDict()
        self._lock = threading.Lock()
        self._reported = (0, 0)

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: str, make: Callable[[], State]) -> State:
        """Return the state of a key, made if it is not held."""
        with self._lock:
            if key in self._states:
                self._states.move_to_end(key)
                self.hits += 1
                return self._states[key]
            self.misses += 1
        state = make()  # without the lock: two requests may make the same state, which is harmless
        size = _bytes(state)
        if size > self.max_bytes:
            return state
        with self._lock:
            if key not in self._states:
                self._states[key] = state
                self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= _bytes(self._states.popitem(last=False)[1])
        return state

    def new_counts(self) -> tuple[int, int]:
        """Return hits and misses since the last call: of requests that run at once, each is counted once."""
        with self._lock:
            hits, misses = self.hits - self._reported[0], self.misses - self._reported[1]
            self._reported = (self.hits, self.misses)
        return hits, misses


def _bytes(state: State) -> int:
    return ENTRY_BYTES + sum(ARRAY_BYTES + array.nbytes for array in state.values())
