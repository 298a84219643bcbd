"""Large vocabularies are arrays, which find the same numbers as a dictionary and take little more than the texts."""

import tracemalloc
from zlib import crc32

import numpy as np
import pytest

from fuxictr_mm_serving import ServingError, tables
from fuxictr_mm_serving.tables import Ids

#: Two of them have the same checksum.
TEXTS = ["plumless", "a", "", "ä", "a\0", "buckeroo", "3", "3.5", "true", "日本", "\ud800"]
CASES = {
    "text": (TEXTS, False, [*TEXTS, "b", "plumles", b"a", None, 3, 3.0, 3.5, 4.0, True, float("nan")]),
    "bytes": ([t.encode(errors="surrogatepass") for t in TEXTS], False, [b"a", b"", b"\0", b"buckeroo", "a", "", None]),
    "integer": (
        [5, -7, 0, 2**62, -(2**63)],
        True,
        [5, "-7", 0, 1, None, 2**63, 2**64 - 1, -(2**63), "4611686018427387904"],
    ),
    "unsigned": ([5, 2**64 - 1, 2**63], True, [5, 2**64 - 1, 2**63, -1, 0, None, 6.0, 5.0]),
}


@pytest.mark.parametrize("kind", CASES)
def test_numbers_are_those_of_a_dictionary(monkeypatch, kind):
    assert crc32(b"plumless") == crc32(b"buckeroo")
    values, is_integer, asked = CASES[kind]
    small = Ids(values, is_integer, takes_numbers=not is_integer)
    monkeypatch.setattr(tables, "LARGE", 1)
    large = Ids(values, is_integer, takes_numbers=not is_integer)
    assert [*large.values] == values
    assert large.values[1:3] == values[1:3]
    assert large.values[-1] == values[-1]
    assert [large.value(number) for number in range(len(values) + 2)] == [None, *values, None]
    for given in (asked, [], *([one] for one in asked)):
        np.testing.assert_array_equal(large.encode(given, "x"), small.encode(given, "x"))
    if is_integer:
        with pytest.raises(ServingError):
            large.encode([2**64], "x")


@pytest.mark.parametrize("is_integer", [True, False])
def test_memory_by_id(is_integer):
    tracemalloc.start()
    ids = Ids([i * 977 if is_integer else f"B{i * 977:09}" for i in range(50_000)], is_integer)
    assert ids.encode([ids.value(4)], "x").tolist() == [4]
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 30 * 50_000
