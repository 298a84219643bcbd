"""Which ids a vocabulary numbers: in training, in the checks of data and in the stages of ``embed``."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_mm.check_data.numbering import find_translation
from fuxictr_mm.config import Roles
from fuxictr_mm.data.ids import AS_IS, Numbering, number_ids, why_numbered
from fuxictr_mm.data.items import ItemTable
from fuxictr_mm.data.schema import Feature
from fuxictr_mm.embeddings.numbering import find_numbering


@pytest.mark.parametrize(
    ("ids", "training", "checks", "stages"),
    [
        ([1, 2, 3], False, False, False),
        ([1.0, 2.0, 3.0], False, False, False),
        (["a", "b", "c"], True, True, True),
        ([b"a", b"b", b"c"], True, True, True),
        ([-1, -2, 3], True, True, True),
        ([2**31, 2**63 - 1, 3], True, True, True),
        ([-1, 2, 3], True, False, True),  # one id that is wrong is a finding
        ([2**31, 2, 3], True, False, True),
        ([5_000_000, 2, 3], True, False, False),  # a table of embeddings would be mostly empty
        ([0, 1, 2], True, False, False),  # without histories, 0 is padding
    ],
)
def test_who_numbers_ids(tmp_path, ids, training, checks, stages):
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": ids, "x": [1.0, 2.0, 3.0]}), path)
    items = ItemTable.from_parquet(str(path), [Feature("x", "numeric", "item")], ids="auto")
    found = [items.vocabulary, find_translation([path], Roles()).items, find_numbering([path], Roles()).items]
    assert [vocabulary is not None for vocabulary in found] == [training, checks, stages]
    assert find_numbering([path], Roles(), "as_is").items is None
    assert find_translation([path], Roles(), "as_is").items is None
    if not isinstance(ids[0], float):
        chosen = [find_numbering([path], Roles(), "vocabulary"), find_translation([path], Roles(), "vocabulary")]
        assert [numbered.items.values.to_pylist() for numbered in chosen] == [ids, ids]


@pytest.mark.parametrize(("ids", "why"), [("as_is", False), ("vocabulary", True), ("auto", False)])
def test_the_setting_decides(ids, why):
    assert bool(why_numbered([pa.array([1, None, 2])], ids)) == why


def test_zero_is_padding_unless_it_is_an_item():
    assert number_ids([pa.array([3, 0, 2])], "ids", False).values.to_pylist() == [3, 2]
    assert number_ids([pa.array([3, 0, 2])], "ids", True).values.to_pylist() == [3, 0, 2]
    assert number_ids([pa.array(["a", "", "0"])], "ids", True).values.to_pylist() == ["a", "0"]


def test_numbers_are_shown_as_ids():
    numbered = Numbering(Roles(target="asin"), number_ids([pa.array([b"\x07", b"\x09"])], "ids", False))
    assert numbered.shown(np.array([2, 0])) == ["09", None]
    assert numbered.name(1) == "asin 07"
    assert (AS_IS.items, AS_IS.shown(np.array([2, 0]))) == (None, [2, 0])
