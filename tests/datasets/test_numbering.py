import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuxictr_mm.datasets.numbering import Numbering

VALUES = st.one_of(
    st.tuples(st.just(pl.Int64), st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)))),
    st.tuples(st.just(pl.UInt64), st.lists(st.one_of(st.none(), st.integers(0, 2**64 - 1)))),
    st.tuples(st.just(pl.String), st.lists(st.one_of(st.none(), st.text()))),
)


@settings(deadline=None)
@given(known=VALUES, seed=st.randoms())
def test_numbers_follow_the_order_of_first_occurrence(known, seed):
    dtype, values = known
    numbering = Numbering(pl.Series(values, dtype=dtype))
    order = list(dict.fromkeys(value for value in values if value is not None))
    assert numbering.values.to_list() == order
    asked = [*values, *values[:3]]
    seed.shuffle(asked)
    numbers = {value: place + 1 for place, value in enumerate(order)}
    assert numbering.encode(pl.Series(asked, dtype=dtype)).tolist() == [numbers.get(value, 0) for value in asked]


@pytest.mark.parametrize("values", [[], [4, 9]])
def test_unknown_values_are_zero(values):
    numbering = Numbering(pl.Series(values, dtype=pl.Int64))
    assert numbering.encode(pl.Series([5, None, 2**62])).tolist() == [0, 0, 0]
    assert len(numbering) == len(values)
