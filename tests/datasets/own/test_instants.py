"""Times keep their order, whatever their form."""

import polars as pl
import pytest

from fuxictr_mm.datasets.own.instants import read_times
from fuxictr_mm.datasets.own.tables import Table
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


@pytest.mark.parametrize("factor", [1000, 10**6, 10**9])
@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.String])
def test_times_of_two_units_are_not_mixed(factor, kind, tmp_path):
    times = [1_700_000_000 + number for number in range(9)]
    for texts, is_mixed in ((times, False), ([t * factor for t in times], False), ([*times, times[3] * factor], True)):
        path = tmp_path / f"{len(texts)}-{texts[0]}.parquet"
        pl.DataFrame({"at": pl.Series(texts).cast(kind)}).write_parquet(path)
        table = Table([path], tmp_path, "interactions")
        if kind == pl.String:
            table = Table([path.with_suffix(".csv")], tmp_path / path.stem, "interactions", types={"at": "text"})
            pl.read_parquet(path).write_csv(path.with_suffix(".csv"))
        if not is_mixed:
            assert table.frame.select(read_times(table, "at")).collect().to_series().is_sorted()
            continue
        with raises_naming(DataError, "row 9", "at"):
            read_times(table, "at")


def test_a_counter_may_be_of_any_size(tmp_path):
    pl.DataFrame({"at": [3 * 10**number for number in range(7, 14)]}).write_parquet(tmp_path / "log.parquet")
    table = Table([tmp_path / "log.parquet"], tmp_path, "interactions")
    assert len(table.frame.select(read_times(table, "at")).collect()) == 7
