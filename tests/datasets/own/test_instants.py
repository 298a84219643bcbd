"""Times keep their order, whatever their form."""

import polars as pl
import pytest

from fuxictr_mm.errors import DataError
from tests.datasets.shop import rewrite, without_time
from tests.errors import raises_naming


def test_times_of_nanoseconds_keep_their_order(shop, prepare_log, read_split):
    rewrite(shop / "interactions.csv", lambda log: log.sort("time").with_columns(pl.int_range(pl.len()).alias("time")))
    whole, _, _ = prepare_log(shop, folder="whole")
    rewrite(shop / "interactions.csv", lambda log: log.with_columns(pl.col("time") + 1_700_000_000_000_000_000))
    folder, _, _ = prepare_log(shop)
    assert without_time(read_split(whole, "test")) == without_time(read_split(folder, "test"))


@pytest.mark.parametrize("first", ["2024-03-31T01:00:00+01:00", "2024-03-31 01:00"])
def test_times_with_and_without_a_zone_are_not_mixed(first, shop, prepare_log):
    texts = [first, *(["2024-03-31T01:00:00"] if "+" in first else ["2024-03-31T01:00:00Z"]) * 299]
    pl.read_csv(shop / "interactions.csv").with_columns(time=pl.Series(texts)).write_csv(shop / "interactions.csv")
    with raises_naming(DataError, "interactions.csv: row 1", "zone"):
        prepare_log(shop)
