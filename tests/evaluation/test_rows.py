"""How rows differ."""

import numpy as np

from fuxictr_mm.evaluation.rows import Rows


def test_groups_with_other_numbers_differ_where_their_rows_do():
    first, second = (Rows(4, None, np.array(group)) for group in ([7, 7, 3, 3], [1, 1, 2, 1]))
    assert first.difference(second).endswith("row 3")
    assert first.difference(Rows(4, None, np.array([5, 5, 9, 9]))) == ""
