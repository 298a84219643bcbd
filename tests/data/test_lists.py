import re

import polars as pl

from fuxictr_mm.data.lists import EMPTY_AS_NULL
from tests.paths import ROOT


def test_an_empty_list_becomes_null():
    frame = pl.DataFrame({"value": [[1, 2], [], [3]]})
    assert frame.explode("value", **EMPTY_AS_NULL)["value"].to_list() == [1, 2, None, 3]
    assert frame["value"].explode(**EMPTY_AS_NULL).to_list() == [1, 2, None, 3]
    assert frame.select(pl.col("value").explode(**EMPTY_AS_NULL))["value"].to_list() == [1, 2, None, 3]


def test_every_explode_says_what_becomes_of_an_empty_list():
    for folder in ("fuxictr_mm", "fuxictr_mm_serving", "model_zoo", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = re.findall(r"\.explode\([^)]*\)", path.read_text(encoding="utf-8"))
            assert all("**EMPTY_AS_NULL" in call for call in calls), path
