"""Large vocabularies are arrays, which find the same numbers as a dictionary and take little more than the texts."""

import json
import tracemalloc
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest

from fuxictr_mm.data.vocabulary import Vocabulary
from fuxictr_mm.serving.tables import write_vocabularies
from fuxictr_mm_serving import ServingError
from fuxictr_mm_serving.export import _read_ids
from fuxictr_mm_serving.tables import Ids
from fuxictr_mm_serving.vocabulary import LARGE, Integers, Texts

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


def arrays_of(values, is_integer):
    return Integers.of(values) if is_integer else Texts.of(values)


@pytest.mark.parametrize("kind", CASES)
def test_numbers_are_those_of_a_dictionary(kind):
    assert crc32(b"plumless") == crc32(b"buckeroo")
    values, is_integer, asked = CASES[kind]
    small = Ids(values, is_integer, takes_numbers=not is_integer)
    large = Ids(arrays_of(values, is_integer), is_integer, takes_numbers=not is_integer)
    assert [*large.values] == values
    assert large.values[1:3] == values[1:3]
    assert large.values[-1] == values[-1]
    assert [large.value(number) for number in range(len(values) + 2)] == [None, *values, None]
    for given in (asked, [], *([one] for one in asked)):
        np.testing.assert_array_equal(large.encode(given, "x"), small.encode(given, "x"))
    if is_integer:
        with pytest.raises(ServingError):
            large.encode([2**64], "x")


@pytest.mark.parametrize("make", [list, Texts.of])
@pytest.mark.parametrize(
    ("words", "given", "numbers"),
    [
        (["True", "False"], [True, False, "True"], [1, 2, 1]),
        (["true", "false"], [True, False], [1, 2]),
        (["TRUE", "FALSE"], [True, False], [1, 2]),
        (["12.0", "13.5"], [12, 12.0, 13.5, 13], [1, 1, 2, -1]),
        (["12", "7"], [12, 12.0, 7.5, True], [1, 1, -1, -1]),
        (["12", "12.0"], [12, 12.0], [1, 2]),
        (["ios", " tv"], ["ios ", "\tios", " tv", "tv", "  ", "NULL", " NULL"], [1, 1, 2, -1, 0, -1, -1]),
    ],
)
def test_numbers_and_truth_values_are_the_texts_of_their_file(make, words, given, numbers):
    assert Ids(make(words), False, takes_numbers=True).encode(given, "x").tolist() == numbers


@pytest.mark.parametrize("is_integer", [True, False])
def test_memory_by_id(is_integer):
    tracemalloc.start()
    ids = Ids(arrays_of([i * 977 if is_integer else f"B{i * 977:09}" for i in range(50_000)], is_integer), is_integer)
    assert ids.encode([ids.value(4)], "x").tolist() == [4]
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 30 * 50_000


@pytest.mark.parametrize("as_arrays", [True, False])  # earlier versions wrote none
def test_large_ones_are_files_of_their_own(tmp_path, as_arrays):
    texts, bits, few = [f"id-{i}" for i in range(LARGE)], [b"%d" % i for i in range(LARGE)], ["a", "b"]
    owned = {"item_id": pa.array(texts), "key": pa.array(bits, pa.large_binary()), "few": pa.array(few)}
    own = {name: Vocabulary(values) for name, values in {**owned, "a/b": pa.array(range(7, LARGE + 7))}.items()}
    dataset = SimpleNamespace(vocabularies={}, items=SimpleNamespace(vocabulary=None))
    assert write_vocabularies(dataset, tmp_path / "vocabulary.json", own, as_arrays=as_arrays) == as_arrays
    entries = json.loads((tmp_path / "vocabulary.json").read_text())
    assert [name for name in entries if "arrays" in entries[name]] == (["item_id", "key", "a/b"] if as_arrays else [])
    files = SimpleNamespace(
        folder=tmp_path,
        read=lambda name: (tmp_path / name).read_bytes(),
        array=lambda name, mapped: np.load(tmp_path / name, mmap_mode="r"),
    )
    found = _read_ids(files, "vocabulary.json")
    assert found["item_id"].encode(["id-5", "id-0", "x", None], "x").tolist() == [6, 1, -1, 0]
    assert found["key"].encode([b"5", "5"], "x").tolist() == [6, -1]
    assert found["few"].encode(["b"], "x").tolist() == [2]
    assert found["a/b"].encode([7, "8", 0], "x").tolist() == [1, 2, 0]
    assert isinstance(found["item_id"].values, Texts)
    if as_arrays:
        np.save(tmp_path / "vocabulary_0_order.npy", np.zeros(3, np.uint32))
        with pytest.raises(ServingError):
            _read_ids(files, "vocabulary.json")
