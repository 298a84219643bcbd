"""Arrow columns become checked NumPy arrays, and what they may not hold is named."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from fuxictr_mm.data import arrow_types, decoding, item_columns, labels
from fuxictr_mm.data.groups import decode_group
from fuxictr_mm.data.vocabulary import Vocabulary
from fuxictr_mm.errors import DataError
from tests.errors import raises_naming

ROWS = [[3, 1], None, [], [7], [5, 6, 2]]


def as_rows(array):
    flat, offsets = decoding.lists(array, "f: c", 0)
    return [flat[a:b].tolist() for a, b in itertools.pairwise(offsets)]


PAIRS = [[1, 2], None, [5, 6], None, [0, 9]]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        *((ROWS, kind) for kind in (pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.int16()))),
        *((rows, pa.list_(pa.int64(), 2)) for rows in ([[1, 2], [3, 4], [5, 6], [7, 8]], PAIRS)),
    ],
)
def test_null_lists_are_empty_in_whole_and_sliced_arrays(rows, kind):
    array = pa.array(rows, kind)
    for start in range(len(rows)):
        for stop in range(start, len(rows) + 1):
            assert as_rows(array.slice(start, stop - start)) == [row or [] for row in rows[start:stop]]


@pytest.mark.parametrize("ids", [None, ["a", "b"], [5, 6]])
@pytest.mark.parametrize(
    "kind",
    [pa.null(), pa.float64(), pa.string(), pa.large_list(pa.string()), pa.list_(pa.float64()), pa.list_(pa.null()),
     pa.large_list(pa.null()), pa.list_(pa.null(), 0), pa.list_(pa.int64(), 0)],
)  # fmt: skip
def test_histories_that_are_all_empty_have_any_type(kind, ids):
    """As of new users: writers then choose the type."""
    vocabulary = None if ids is None else Vocabulary.build([pa.array(ids)])
    nothing: object = [] if arrow_types.is_list(kind) else {pa.float64(): np.nan, pa.string(): ""}.get(kind)
    for rows in ([None, None], [nothing, nothing], [nothing, None]):
        found = item_columns.decode_positions(pa.array(rows, kind), "f: c", 0, np.ones(3, bool), None, vocabulary)
        assert (found.items.tolist(), found.offsets.tolist()) == ([], [0, 0, 0])


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (pa.array([0, 3], pa.uint8()), np.int64),
        (pa.array([0.0, 3.0], pa.float32()), np.int64),
        (pa.array([False, True]), np.int64),
    ],
)
def test_whole_numbers_of_any_type(array, dtype):
    values = decoding.scalars(array, "f: c", 0)
    assert values.dtype == dtype
    assert values.tolist() == array.cast(pa.int64()).to_pylist()


def test_the_largest_ids_in_range_pass():
    decoding.check_ids(np.array([0, 4]), 5, "f: c", 0)
    decoding.check_ids(np.array([2**31 - 1]), None, "f: c", 0)
    decoding.check_ids(np.array([], dtype=np.int64), 5, "f: c", 0)


@pytest.mark.parametrize(
    ("text", "is_padding"), [("0", True), ("<pad>", True), ("[PAD]", True), ("-1", True), ("c", False)]
)
def test_texts_that_pad_histories_say_what_padding_is(text, is_padding):
    vocabulary = Vocabulary.build([pa.array(["a", "b"])])
    with raises_naming(DataError, "x.parquet: seen", "row 4", repr(text)) as raised:
        item_columns.decode_positions(
            pa.array([["a"], [text, "b"]]), "x.parquet: seen", 3, np.ones(3, bool), None, vocabulary
        )
    assert ("padding" in str(raised.value)) == is_padding


def test_ids_beyond_int64_are_shown_as_they_are():
    large = 2**63 + 11
    ids = pa.array([1, large], pa.uint64())
    for decode in (
        lambda: decoding.scalars(ids, "f: x", 7),
        lambda: decoding.integers(np.array([1, large], np.uint64), "f: x", 7),
    ):
        with raises_naming(DataError, "f: x", "row 8", large):
            decode()
    found = decode_group(pa.array([large, large, large + 1, 3], pa.uint64()), "f: x", 0)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("array", "floating", "found"),
    [
        (pa.array([None, "a"]), False, ["string", "integers"]),
        (pa.array([None]), True, ["row 10", "null"]),
        (pa.array(["12.5", None, "3"]), True, ["string", "cast"]),
        (pa.array(["12.5", "12,5"]), True, ["row 11", "'12,5'", "replace"]),
        (pa.array(["12.5", "low"]), True, ["row 11", "'low'"]),
        (pa.array([0], pa.timestamp("us")), False, ["timestamp[us]", "weekday"]),
        (pa.array([0], pa.timestamp("us")), True, ["timestamp[us]", "epoch"]),
    ],
)
def test_columns_of_no_numbers_say_what_fits(array, floating, found):
    with raises_naming(DataError, "f: c", *found):
        decoding.scalars(array, "f: c", 10, floating=floating)


@pytest.mark.parametrize(
    ("texts", "binary", "expected"),
    [
        ([None, "yes", "no"], True, ["row 11", "'yes'", "0 or 1", "=="]),
        (["0", "1"], True, ["row 10", "'0'", "Int8"]),
        (["2.5"], False, ["row 10", "'2.5'", "Float64"]),
    ],
)
def test_labels_of_text_say_what_fits(texts, binary, expected):
    with raises_naming(DataError, "f: c", "string", *expected) as caught:
        labels.decode_label(pa.array(texts), "f: c", 10, binary)
    assert "as integers first" not in str(caught.value)


def test_what_training_does_not_have_is_0():
    with raises_naming(DataError, "f: user_id", "99999", "400"):
        decoding.check_ids(np.array([3, 99_999]), 401, "f: user_id", 0)
